"""Figures of a study: what its parts gave, and how its runs trained."""

import io
from dataclasses import dataclass

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
    base = results.study.baseline.name
    counts = {cell.settings.get("layers") for cell in results.study.cells if cell.name in logs}
    with matplotlib.rc_context(STYLE):
        plots = [_by_layers(results, set(logs))] if len(counts - {None}) > 1 else []
        plots.append(_by_part(results, list(logs)))
        losses = {cell: _mean(of_cell, "train", "loss") for cell, of_cell in logs.items()}
        plots.append(_curves("loss", "Training loss", "iteration", losses, base))
        aps = {cell: _mean(of_cell, "val", METRICS["AP"]) for cell, of_cell in logs.items()}
        plots.append(_curves("ap_by_epoch", "AP after each evaluation", "epoch", aps, base))
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
    lines = [rest for name, rest in others.items() if counts[name]]
    lines = [rest for i, rest in enumerate(lines) if rest not in lines[:i]]
    figure, axes = _figure(3.4)
    for i, line in enumerate(lines):
        names = [
            name
            for name in sorted(others, key=counts.get)
            if others[name] == line or (not counts[name] and others[name].items() <= line.items())
        ]
        label = ", ".join(v if isinstance(v, str) else f"{k} {v}" for k, v in line.items())
        # Side by side, not one over the other.
        places = [counts[name] + (counts[name] and 0.15 * (i - 0.5)) for name in names]
        style = dict(color=PALETTE[i % 6], marker="osD^vP"[i % 6], markersize=5, capsize=3)
        style["linestyle"] = "-" if len(names) > 2 else "none"  # two points are no trend
        part = results.cells.loc[names]
        axes.errorbar(places, part["AP"], part["AP std"], label=label or "deformable", **style)
        for place, name in zip(places, names, strict=True):
            seeds = _seeds(results, name)
            axes.plot([place] * len(seeds), seeds, ".", color=style["color"], alpha=0.4)
    axes.set_xticks(sorted(set(counts.values())))
    axes.set_xlabel("deformable layers")
    axes.set_ylabel("AP (mean ± std, dots: seeds)")
    return _plot(figure, "ap_by_layers", "AP by the number of deformable layers")


def _by_part(results: Results, names: list[str]) -> Plot:
    figure, axes = _figure(1.0 + 0.34 * len(names))
    for place, name in enumerate(names):
        cell, is_base = results.cells.loc[name], name == results.study.baseline.name
        colour = BASELINE["color"] if is_base else PALETTE[0]
        if is_base:
            axes.axvline(cell["AP"], color=colour, linestyle="--", linewidth=1, alpha=0.6)
        axes.errorbar(cell["AP"], place, xerr=cell["AP std"], fmt="D", color=colour, capsize=3)
        seeds = _seeds(results, name)
        axes.plot(seeds, [place + 0.25] * len(seeds), ".", color=colour, alpha=0.6)
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("AP (diamond: mean ± std, dots: seeds)")
    return _plot(figure, "ap_by_part", "AP by part; dashed: the baseline")


def _seeds(results: Results, cell: str) -> list[float]:
    return results.runs.loc[results.runs["cell"] == cell, "AP"].dropna().tolist()


def _curves(name: str, title: str, x: str, curves: dict[str, pd.Series], baseline: str) -> Plot:
    figure, axes = _figure(3.2)
    styles = [dict(color=c, linestyle=dash) for dash in DASHES for c in PALETTE] * len(curves)
    for cell, values in curves.items():
        style = BASELINE if cell == baseline else styles.pop(0)
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
