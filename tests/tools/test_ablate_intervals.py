"""The statistics of an ablation study, beside tables, textbooks and formulas by hand."""

from pathlib import Path
from statistics import mean, variance

import numpy as np
import pytest
from scipy import stats

from tools.ablation.intervals import compare, compare_pairs, seeds_needed
from tools.ablation.results import read_results
from tools.ablation.study import Study

ROOT = Path(__file__).resolve().parents[2]


def test_one_cell_has_the_pooled_t_interval():
    base, cell = [0.50, 0.52, 0.51, 0.55], [0.60, 0.54]
    found = compare({"base": base, "cell": cell}, "base").loc["cell"]
    pooled = (3 * variance(base) + variance(cell)) / 4
    half = stats.t.ppf(0.975, 4) * (pooled * (1 / 4 + 1 / 2)) ** 0.5
    difference = mean(cell) - mean(base)
    assert found["low"] == pytest.approx(difference - half, abs=half / 100)
    assert found["high"] == pytest.approx(difference + half, abs=half / 100)
    assert found["seeds needed"] == seeds_needed(difference / pooled**0.5, 1) == 7


# Of C. W. Dunnett, New tables for multiple comparisons with a control, Biometrics 20 (1964), 482:
# two-sided, 5 %, by the number of cells compared and of seeds per cell.
@pytest.mark.parametrize(
    ("cells", "seeds", "critical"),
    [(2, 3, 2.86), (3, 3, 2.88), (5, 3, 2.90), (2, 5, 2.50), (3, 5, 2.59), (4, 5, 2.65)],
)
def test_the_critical_value_is_the_published_one(cells, seeds, critical):
    values = np.random.default_rng(cells).normal(size=(cells + 1, seeds))
    found = compare({i: each.tolist() for i, each in enumerate(values)}, 0)
    half = critical * (values.var(axis=1, ddof=1).mean() * 2 / seeds) ** 0.5
    differences = values[1:].mean(axis=1) - values[0].mean()
    assert found["low"].to_numpy() == pytest.approx(differences - half, abs=0.005 * half)
    assert found["high"].to_numpy() == pytest.approx(differences + half, abs=0.005 * half)


def test_the_family_is_the_cells_with_two_seeds():
    values = {"base": [0.1, 0.2, 0.3], "a": [0.4, 0.5], "b": [0.2, 0.6, 0.1]}
    found = compare(values, "base")
    assert found.index.tolist() == ["a", "b"]
    assert compare(values | {"one": [0.9], "none": []}, "base").equals(found)
    assert compare(values, "base").equals(found)  # the same in every report
    assert compare(values | {"base": [0.1]}, "base").empty
    assert compare({"base": [0.1, 0.2]}, "base").empty
    equal = {"base": [0.1, 0.1], "a": [0.3, 0.3]}
    assert compare(equal, "base").empty
    assert len(compare(equal | {"b": [0.1, 0.2]}, "base")) == 2


def test_pairs_share_the_error():
    values = {"a": [0.50, 0.52, 0.51, 0.55], "b": [0.60, 0.54], "c": [0.1, 0.3, 0.2], "d": [0.4]}
    pairs = [("b", "a"), ("c", "b"), ("a", "d")]
    found = compare_pairs(values, pairs)
    assert found.index.tolist() == ["b − a", "c − b"]
    pooled = sum((len(v) - 1) * variance(v) for v in values.values() if len(v) > 1) / 6
    for (cell, other), line in zip(pairs, found.to_numpy(), strict=False):
        a, b = values[cell], values[other]
        half = stats.t.ppf(1 - 0.025 / 3, 6) * (pooled * (1 / len(a) + 1 / len(b))) ** 0.5
        expected = mean(a) - mean(b)
        assert line == pytest.approx([expected, expected - half, expected + half])
    assert compare_pairs({"a": [1.0], "b": [1.0]}, [("a", "b")]).empty
    assert compare_pairs(values, []).empty
    # One pair of two cells: the interval of the t-test.
    test = stats.ttest_ind(values["b"], values["a"]).confidence_interval()
    [line] = compare_pairs({k: values[k] for k in "ab"}, [("b", "a")]).to_numpy()
    assert line[1:] == pytest.approx([test.low, test.high])


def test_seeds_of_a_textbook():
    """J. Cohen, Statistical power analysis for the behavioral sciences (1988), table 2.4.1."""
    assert [seeds_needed(d, 1) for d in (1, 0.8, -0.8, 0.6)] == [17, 26, 26, 45]
    assert seeds_needed(0.1, 1) == seeds_needed(0, 3) == np.inf
    assert seeds_needed(1e3, 8) == 2


def test_seeds_find_what_they_are_to_find():
    """Simulated, with Dunnett's own critical values for three cells (1964)."""
    effect, rng = 2.25, np.random.default_rng(0)

    def power(seeds, critical):
        x = rng.normal(size=(20_000, 4, seeds))
        std = x.var(axis=2, ddof=1).mean(axis=1) ** 0.5
        difference = x[:, 1].mean(axis=1) + effect - x[:, 0].mean(axis=1)
        return (abs(difference) > critical * std * (2 / seeds) ** 0.5).mean()

    assert seeds_needed(effect, 3) == 5
    assert power(4, 2.68) < 0.8 < power(5, 2.59)


@pytest.mark.parametrize(
    ("study", "cell", "low", "high", "clear"),
    [
        ("digits_layers", "12 layers, mdconv", 0.011, 0.065, 1),
        ("digits_layers", "6 layers, dconv", -0.003, 0.051, 1),
        ("bccd", "mdconv + mdpool + mimic", -0.029, -0.004, 1),
        ("digits_mimic", "mimic foreground", -0.044, 0.014, 0),
    ],
)
def test_the_studies_that_were_run(study, cell, low, high, clear):
    path = ROOT / "docs/results" / study / "results.csv"
    cells = read_results(Study.read(ROOT / f"configs/studies/{study}.py"), path).cells
    assert cells.loc[cell, ["low", "high"]].tolist() == pytest.approx([low, high], abs=6e-4)
    assert ((cells["low"] > 0) | (cells["high"] < 0)).sum() == clear
