"""The tables of a study: what its runs showed, as numbers and as text."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from .results import METRICS, Record
from .study import Run, Study

CONFIDENCE = 0.95
COSTS = ["seconds_per_iteration", "memory_mb", "parameters", "gflops"]


@dataclass
class Results:
    """A study with what its runs showed. AP in 0..1, seconds, MB; unknown is NaN.

    `runs` has a line per run: its cell, the cell's settings, seed, `state` (finished, failed or
    waiting), `METRICS`, `COSTS` and what else belongs into results.csv.

    `cells` has a line per cell, by name: how many runs `finished` and `failed`; of each of METRICS
    the mean over seeds and, as `AP std`, the standard deviation; the medians of COSTS; and
    `difference` in mean AP to the baseline with its confidence interval (Welch's), from `low` to
    `high`, where both have two seeds or more that differ. The baseline has none of these three.
    """

    study: Study
    ended: list[tuple[Run, Record | None]]
    runs: pd.DataFrame
    cells: pd.DataFrame

    def finished(self, cell: str) -> list[Run]:
        return [run for run, r in self.ended if r and r.finished and run.cell.name == cell]

    @property
    def best(self) -> pd.Series:
        """The cell with the highest mean AP."""
        return self.cells.loc[self.cells["AP"].idxmax()]


def make_results(
    study: Study, ended: list[tuple[Run, Record | None]], complexity: dict[str, dict[str, float]]
) -> Results:
    """Of runs with their records, None where there is none yet, and `parameters` and `gflops` by
    the name of the cell, as far as known.
    """
    axes = list(dict.fromkeys(axis for cell in study.cells for axis in cell.settings))
    lines = []
    for run, record in ended:
        line = {"cell": run.cell.name, "seed": run.seed, "state": "waiting"} | run.cell.settings
        line |= complexity.get(run.cell.name, {}) | {"folder": run.folder}
        if record is not None:
            line |= record.metrics | {"state": "finished" if record.finished else "failed"}
            line |= {"seconds_per_iteration": record.iteration, "memory_mb": record.memory}
            line |= {"seconds": record.seconds, "error": record.error}
        lines.append(line)
    columns = ["cell", *axes, "seed", "state", *METRICS, *COSTS, "seconds", "folder", "error"]
    runs = pd.DataFrame(lines, columns=columns)
    runs[[*METRICS, *COSTS, "seconds"]] = runs[[*METRICS, *COSTS, "seconds"]].astype(float)
    order = {cell.name: i for i, cell in enumerate(study.cells)}
    runs = runs.sort_values("cell", key=lambda names: names.map(order), kind="stable")

    names = pd.Index(order, name="cell")
    by_cell = runs[runs["state"] == "finished"].groupby("cell")
    cells = pd.concat([by_cell[[*METRICS]].mean(), by_cell[COSTS].median()], axis=1).reindex(names)
    for state in ("finished", "failed"):
        counts = runs.loc[runs["state"] == state, "cell"].value_counts()
        cells[state] = counts.reindex(names, fill_value=0)
    for metric in METRICS:
        cells[f"{metric} std"] = by_cell[metric].std()
    base = study.baseline.name
    cells["difference"] = (cells["AP"] - cells.loc[base, "AP"]).where(names != base)
    cells[["low", "high"]] = np.nan
    values = {name: group["AP"].tolist() for name, group in by_cell}
    for name in values.keys() - {base}:
        pair = (values[name], values.get(base, []))
        # Equal values to the last digit are rounding, not certainty.
        if min(map(len, pair)) > 1 and max(len(set(each)) for each in pair) > 1:
            test = ttest_ind(*pair, equal_var=False)
            cells.loc[name, ["low", "high"]] = [*test.confidence_interval(CONFIDENCE)]
    return Results(study, ended, runs, cells)


def as_text(cells: pd.DataFrame) -> pd.DataFrame:
    """The table of `cells` to read; what is not known is empty."""

    def spread(metric: str) -> pd.Series:
        std = formatted(cells[f"{metric} std"], " ± {:.3f}")
        return formatted(cells[metric], "{:.3f}") + std

    low, high = formatted(cells["low"], "{:+.3f} to "), formatted(cells["high"], "{:+.3f}")
    failed = formatted(cells["failed"].where(cells["failed"] > 0), " ({:.0f} failed)")
    columns = {"seeds": cells["finished"].astype(str) + failed, "AP": spread("AP")}
    columns |= {
        "difference": formatted(cells["difference"], "{:+.3f}"),
        "95 % interval": low + high,
    }
    columns |= {metric: spread(metric) for metric in METRICS if metric != "AP"}
    for title, values, form in (
        ("params (M)", cells["parameters"] / 1e6, "{:.2f}"),
        ("GFLOPs", cells["gflops"], "{:.2f}"),
        ("s / iteration", cells["seconds_per_iteration"], "{:#.3g}"),
        ("memory (MB)", cells["memory_mb"], "{:.0f}"),
    ):
        columns[title] = formatted(values, form)
    return pd.DataFrame(columns)


def costs_as_text(cells: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Gain and cost of `cells`, the costs relative to those of the baseline."""
    columns = {"AP difference": formatted(cells["difference"], "{:+.3f}")}
    for title, cost in zip(("time", "memory", "params", "GFLOPs"), COSTS, strict=True):
        columns[f"× {title}"] = formatted(cells[cost] / cells.loc[baseline, cost], "{:.2f}")
    return pd.DataFrame(columns)


def formatted(values: pd.Series, form: str) -> pd.Series:
    """As text; what is not known is empty."""
    return values.map(lambda value: "" if pd.isna(value) else form.format(value))


def to_markdown(table: pd.DataFrame) -> str:
    """As a table of Markdown, in which no text is HTML or ends a cell."""
    plain = table.reset_index().map(lambda text: markdown_text(str(text)))
    plain.columns = plain.columns.map(markdown_text)
    return plain.to_markdown(index=False, disable_numparse=True)


def markdown_text(text: str) -> str:
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return text.replace(">", "&gt;").replace("|", r"\|")
