"""Which cells differ from the baseline, and how many seeds it takes to see it."""

from collections.abc import Sequence
from statistics import mean, variance

import numpy as np
import pandas as pd
from scipy.stats import dunnett, ncf, t

CONFIDENCE, POWER = 0.95, 0.8
MOST = 100  # seeds that are tried


def compare(values: dict[str, list[float]], baseline: str) -> pd.DataFrame:
    """Dunnett's simultaneous intervals (1955) of every cell's difference to the baseline.

    The cells that are compared have two values or more, so that none widens the intervals of the
    others before it has one itself; the variance is pooled over them and the baseline.

    Returns:
        By cell, `low` and `high` of its interval and its `seeds needed`. It is empty where the
        baseline or all others have fewer values, and where none has two that differ.
    """
    known = _compared(values)
    columns = ["low", "high", "seeds needed"]
    if not {baseline} < known.keys():
        return pd.DataFrame(columns=columns, dtype=float)
    std, _ = _pooled(known)
    control = known.pop(baseline)
    # scipy integrates over random points; rng makes them the same in every report.
    interval = dunnett(*known.values(), control=control, rng=0).confidence_interval(CONFIDENCE)
    seeds = [seeds_needed((mean(v) - mean(control)) / std, len(known)) for v in known.values()]
    return pd.DataFrame(dict(zip(columns, (*interval, seeds), strict=True)), index=[*known])


def compare_pairs(values: dict[str, list[float]], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Bonferroni's simultaneous intervals of the differences that a study names in advance.

    The variance is pooled as in `compare`.

    Returns:
        By pair, as "CELL − OTHER": `difference` of their means, `low` and `high`. Pairs with a cell
        of fewer than two values are left out, but count as comparisons.
    """
    known = _compared(values)
    std, freedom = _pooled(known)
    critical = t.ppf(1 - (1 - CONFIDENCE) / 2 / max(len(pairs), 1), freedom)
    found = {}
    for cell, other in pairs:
        if {cell, other} <= known.keys():
            difference = mean(known[cell]) - mean(known[other])
            half = critical * std * (1 / len(known[cell]) + 1 / len(known[other])) ** 0.5
            found[f"{cell} − {other}"] = (difference, difference - half, difference + half)
    columns = ["difference", "low", "high"]
    pairs = pd.DataFrame.from_dict(found, orient="index", columns=columns, dtype=float)
    return pairs.rename_axis("pair")


def _compared(values: dict[str, list[float]]) -> dict[str, list[float]]:
    """Those with two values or more; none where no cell has two that differ."""
    known = {name: each for name, each in values.items() if len(each) > 1}
    return known if any(map(variance, known.values())) else {}


def _pooled(known: dict[str, list[float]]) -> tuple[float, int]:
    """The standard deviation over all cells, and its degrees of freedom."""
    freedom = [len(each) - 1 for each in known.values()]
    if not freedom:
        return np.nan, 0
    return np.average([*map(variance, known.values())], weights=freedom) ** 0.5, sum(freedom)


def seeds_needed(effect: float, cells: int) -> float:
    """Seeds per cell that find a difference with POWER; infinity for more than MOST.

    By a two-sided test of so many `cells` against one baseline, at the family-wise level. Its
    critical value is Šidák's bound on Dunnett's: exact for one cell, else up to a tenth too large.

    Args:
        effect: the difference, in standard deviations over seeds.
    """
    n = np.arange(2, MOST + 1)
    freedom = (cells + 1) * (n - 1)
    critical = t.ppf((1 + CONFIDENCE ** (1 / cells)) / 2, freedom)
    # The square of a noncentral t, which scipy's own nct does not compute for large effects.
    power = ncf.sf(critical**2, 1, freedom, effect**2 * n / 2)
    return next(iter(n[power >= POWER]), np.inf)
