"""The table of a study: what its runs showed, a row a cell, as dataclasses, CSV and Markdown."""

import csv
import io
import statistics
from dataclasses import dataclass, field
from html import escape
from typing import Any

from scipy.stats import ttest_ind

from .complexity import Complexity
from .results import METRICS, Record
from .study import Cell, Run, Study

CONFIDENCE = 0.95


@dataclass
class Row:
    """What one cell showed. AP in 0..1, seconds, MB."""

    cell: Cell
    finished: list[tuple[Run, Record]] = field(default_factory=list)
    failed: list[tuple[Run, Record]] = field(default_factory=list)
    waiting: list[Run] = field(default_factory=list)
    complexity: Complexity | None = None
    mean: dict[str, float] = field(default_factory=dict)  # of each of METRICS, over seeds
    std: dict[str, float] = field(default_factory=dict)  # with two seeds or more
    # Mean minus that of the baseline, and the confidence interval of it (Welch's), where both have
    # two seeds or more that differ. The baseline itself has neither.
    difference: dict[str, float] = field(default_factory=dict)
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    iteration: float | None = None  # seconds, median over seeds
    memory: float | None = None  # MB, median over seeds

    def values(self, metric: str) -> list[float]:
        return [record.metrics[metric] for _, record in self.finished]


def make_rows(
    study: Study, ended: list[tuple[Run, Record | None]], complexity: dict[str, Complexity]
) -> list[Row]:
    """A row a cell, in the study's order.

    Args:
        ended: every run of the study with its record, None where it has none yet.
        complexity: by the folder of the cell, as far as known.
    """
    rows = {cell.folder: Row(cell, complexity=complexity.get(cell.folder)) for cell in study.cells}
    for run, record in ended:
        row = rows[run.cell.folder]
        if record is None:
            row.waiting.append(run)
        else:
            (row.finished if record.finished else row.failed).append((run, record))
    base = rows[study.baseline.folder]
    for row in rows.values():
        if not row.finished:
            continue
        records = [record for _, record in row.finished]
        row.iteration = statistics.median(record.iteration for record in records)
        memory = [record.memory for record in records if record.memory is not None]
        row.memory = statistics.median(memory) if memory else None
        for metric in METRICS:
            values = row.values(metric)
            row.mean[metric] = statistics.fmean(values)
            if len(values) > 1:
                row.std[metric] = statistics.stdev(values)
            if row is base or not base.finished:
                continue
            row.difference[metric] = row.mean[metric] - statistics.fmean(base.values(metric))
            # Equal values to the last digit are rounding, not certainty.
            spread = len({*values}) > 1 or len({*base.values(metric)}) > 1
            if spread and min(len(values), len(base.finished)) > 1:
                test = ttest_ind(values, base.values(metric), equal_var=False)
                interval = test.confidence_interval(CONFIDENCE)
                row.interval[metric] = (float(interval.low), float(interval.high))
    return list(rows.values())


def to_csv(rows: list[Row]) -> str:
    """A line a run, whatever became of it."""
    axes = list(dict.fromkeys(axis for row in rows for axis in row.cell.settings))
    header = ["cell", *axes, "seed", "state", *METRICS, "seconds_per_iteration", "memory_mb"]
    header += ["parameters", "gflops", "seconds", "folder", "error"]
    out = io.StringIO()
    writer = csv.DictWriter(out, header, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        ended: list[tuple[Run, Record | None]] = [*row.finished, *row.failed]
        for run, record in [*ended, *((run, None) for run in row.waiting)]:
            line: dict[str, Any] = {"cell": run.cell.name, "seed": run.seed, **run.cell.settings}
            line |= {"state": "waiting", "folder": run.folder}
            if record is not None:
                line |= record.metrics
                line["state"] = "finished" if record.finished else "failed"
                line["seconds_per_iteration"] = record.iteration
                line["memory_mb"] = record.memory
                line["seconds"] = record.seconds
                line["error"] = record.error
            if row.complexity is not None:
                line["parameters"] = row.complexity.parameters
                line["gflops"] = row.complexity.gflops
            writer.writerow(line)
    return out.getvalue()


COLUMNS = [
    *("", "seeds", "AP", "difference", "95 % interval", "AP50", "AP75"),
    *("params (M)", "GFLOPs", "s / iteration", "memory (MB)"),
]


def cells_of(row: Row) -> list[str]:
    """A row's `COLUMNS` as text; what is not known is empty."""

    def spread(metric: str) -> str:
        if metric not in row.mean:
            return ""
        std = f" ± {row.std[metric]:.3f}" if metric in row.std else ""
        return f"{row.mean[metric]:.3f}{std}"

    difference, interval = row.difference.get("AP"), row.interval.get("AP")
    cost = row.complexity
    return [
        row.cell.name,
        str(len(row.finished)) + (f" ({len(row.failed)} failed)" if row.failed else ""),
        spread("AP"),
        "" if difference is None else f"{difference:+.3f}",
        "" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}",
        spread("AP50"),
        spread("AP75"),
        "" if cost is None else f"{cost.parameters / 1e6:.2f}",
        "" if cost is None else f"{cost.gflops:.2f}",
        "" if row.iteration is None else f"{row.iteration:.3f}",
        "" if row.memory is None else f"{row.memory:.0f}",
    ]


def to_markdown(rows: list[Row]) -> str:
    cells = [[escape(text).replace("|", "\\|") for text in cells_of(row)] for row in rows]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
