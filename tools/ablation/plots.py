"""Figures of a study: what its parts gave, and how its runs trained."""

import io
from dataclasses import dataclass
from itertools import pairwise

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .results import METRICS, Log
from .table import Results

# Okabe and Ito's without black and yellow: the colour-blind tell them apart.
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
DASHES = ["-", "--", ":", "-."]
BASELINE = dict(color="#1f2328", linewidth=2)
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.parse_math": False,  # a cell's name may have a $
}


@dataclass
class Plot:
    name: str  # of its file
    title: str
    png: bytes


def make_plots(results: Results, logs: dict[str, list[Log]]) -> list[Plot]:
    """Figures of what has finished: AP by layers, where these vary, AP by part, loss, AP by epoch.

    Args:
        logs: of the finished runs, by the name of their cell.
    """
    counts = {cell.settings.get("layers") for cell in results.study.cells if cell.name in logs}
    with matplotlib.rc_context(STYLE):
        plots = [_by_layers(results, set(logs))] if len(counts - {None}) > 1 else []
        plots.append(_by_part(results, list(logs)))
        for name, title, x, kind, key in (
            ("loss", "Training loss", "iteration", "train", "loss"),
            ("ap_by_epoch", "AP after each evaluation", "epoch", "val", METRICS["AP"]),
        ):
            curves = {cell: _mean(of_cell, kind, key) for cell, of_cell in logs.items()}
            plots.append(_curves(name, title, x, curves, results.study.baseline.name))
    return plots


def _mean(logs: list[Log], kind: str, key: str) -> pd.Series:
    """By step, the mean over the logs of what all of them have."""
    series = [pd.Series({line["step"]: line[key] for line in getattr(log, kind)}) for log in logs]
    return pd.concat(series, axis=1, join="inner").sort_index().mean(axis=1)


def _by_layers(results: Results, finished: set[str]) -> Plot:
    """A line for each value of the other axes; a cell without deformable layers is on all that
    share its other settings.
    """
    cells = [c for c in results.study.cells if "layers" in c.settings and c.name in finished]
    counts = {cell.name: cell.settings["layers"] for cell in cells}
    others = {c.name: {k: v for k, v in c.settings.items() if k != "layers"} for c in cells}
    lines = []
    for name, rest in others.items():
        if counts[name] and rest not in lines:
            lines.append(rest)
    step = min(b - a for a, b in pairwise(sorted(set(counts.values()))))
    figure, axes = _figure(3.4)
    for i, line in enumerate(lines):
        names = [
            name
            for name, rest in others.items()
            if rest == line or (not counts[name] and rest.items() <= line.items())
        ]
        part = results.cells.loc[sorted(names, key=counts.get)]
        shift = 0.08 * step * (i - (len(lines) - 1) / 2)  # side by side, not one over the other
        places = [counts[name] + (shift if counts[name] else 0) for name in part.index]
        style = dict(color=PALETTE[i % len(PALETTE)], marker="osD^vP"[i % 6], markersize=5)
        # Two points are no trend.
        style["linestyle"] = "-" if len(part) > 2 else "none"
        label = ", ".join(v if isinstance(v, str) else f"{k} {v}" for k, v in line.items())
        axes.errorbar(
            places, part["AP"], part["AP std"], label=label or "deformable", capsize=3, **style
        )
        for place, name in zip(places, part.index, strict=True):
            aside = place + step * (0.05 if shift > 0 else -0.05)
            _seeds(axes, results, name, lambda ap, x=aside: ([x] * len(ap), ap), style["color"])
    axes.set_xticks(sorted(set(counts.values())))
    axes.set_xlabel("deformable layers")
    axes.set_ylabel("AP (mean ± std, dots: seeds)")
    return _plot(figure, "ap_by_layers", "AP by the number of deformable layers")


def _by_part(results: Results, names: list[str]) -> Plot:
    figure, axes = _figure(1.0 + 0.34 * len(names))
    baseline = results.study.baseline.name
    for place, name in enumerate(names):
        colour = BASELINE["color"] if name == baseline else PALETTE[0]
        cell = results.cells.loc[name]
        if name == baseline:
            axes.axvline(cell["AP"], color=colour, linestyle="--", linewidth=1, alpha=0.6)
        axes.errorbar(cell["AP"], place, xerr=cell["AP std"], fmt="D", color=colour, capsize=3)
        _seeds(axes, results, name, lambda ap, y=place + 0.25: (ap, [y] * len(ap)), colour)
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", alpha=0)
    axes.set_xlabel("AP (diamond: mean ± std, dots: seeds)")
    return _plot(figure, "ap_by_part", "AP by part; dashed: the baseline")


def _seeds(axes: Axes, results: Results, cell: str, place, colour: str) -> None:
    """A dot per seed, where it has several."""
    ap = results.runs.loc[results.runs["cell"] == cell, "AP"].dropna().tolist()
    if len(ap) > 1:
        axes.plot(*place(ap), ".", color=colour, alpha=0.6, markersize=5)


def _curves(name: str, title: str, x: str, curves: dict[str, pd.Series], baseline: str) -> Plot:
    figure, axes = _figure(3.2)
    i = 0
    for cell, values in curves.items():
        style = dict(color=PALETTE[i % 6], linestyle=DASHES[i // 6 % 4], linewidth=1.4)
        if cell == baseline:
            style = BASELINE
        else:
            i += 1
        marker = "o" if len(values) < 12 else ""
        axes.plot(values, label=_short(cell), marker=marker, markersize=4, **style)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(x)
    axes.set_ylabel(f"{'AP' if x == 'epoch' else name}, mean over seeds")
    return _plot(figure, name, title)


def _short(name: str, length: int = 26) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, height), layout="constrained")
    return figure, figure.add_subplot()


def _plot(figure: Figure, name: str, title: str) -> Plot:
    labels = figure.axes[0].get_legend_handles_labels()[1]
    if labels:
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(labels) // 2))
        figure.legend(loc="outside lower center", ncols=2, handlelength=2.6)
    figure.suptitle(title, fontsize=10.5)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160)
    return Plot(name, title, out.getvalue())
