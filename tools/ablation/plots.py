"""Figures of a study: what its parts gave, and how its runs trained."""

import re
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .results import Results, curve

# Okabe and Ito's without black and yellow: the colour-blind tell them apart.
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
BASELINE = "#1f2328"
LEGEND = dict(loc="outside lower center", ncols=2, handlelength=2.6)
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=PALETTE),
    "grid.alpha": 0.25,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.parse_math": False,  # a cell's name may have a $
}


def make_plots(results: Results, folder: Path) -> dict[str, Path]:
    """Figures of what has finished: the main metric by layers, where these vary, by part and by
    epoch; and the loss.

    Returns their files in `folder`, by the figure's title.
    """
    files, main = {}, results.study.metrics.main
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figures = {
            f"{_slug(main)}_by_layers": _by_layers(results),
            f"{_slug(main)}_by_part": _by_part(results),
            "loss": _curves(results, "Training loss", "loss", "iteration", "loss"),
            f"{_slug(main)}_by_epoch": _curves(
                results,
                f"{main} after each evaluation",
                main,
                "epoch",
                results.study.metrics.keys[main],
            ),
        }
        for name, figure in figures.items():
            if figure is not None:
                path = files[figure.get_suptitle()] = folder / f"{name}.png"
                figure.savefig(path, dpi=160)
    return files


def _by_layers(results: Results) -> Figure | None:
    """A line for each value of the other axes; a cell without deformable layers is on all that
    share its other settings.
    """
    main = results.study.metrics.main
    cells = [c for c in results.study.cells if c.name in results.logs and "layers" in c.settings]
    others = {cell.name: dict(cell.settings) for cell in cells}
    counts = pd.Series({name: settings.pop("layers") for name, settings in others.items()})
    if counts.nunique() < 2:
        return None
    lines = [settings for name, settings in others.items() if counts[name]]
    lines = [line for i, line in enumerate(lines) if line not in lines[:i]]
    figure, axes = _figure(f"{main} by the number of deformable layers", 3.4, len(lines))
    for i, line in enumerate(lines):
        names = [
            name
            for name, other in others.items()
            if other == line or (not counts[name] and other.items() <= line.items())
        ]
        places = counts[names].sort_values()
        places = places + 0.15 * (i - 0.5) * (places > 0)  # side by side, not one over the other
        label = ", ".join(v if isinstance(v, str) else f"{k} {v}" for k, v in line.items())
        style = dict(color=PALETTE[i % 6], marker="osD^vP"[i % 6], markersize=5, capsize=3)
        style["linestyle"] = "-" if len(names) > 2 else "none"  # two points are no trend
        part = results.cells.loc[places.index]
        axes.errorbar(places, part[main], part[f"{main} std"], label=label or "deformable", **style)
        runs = results.runs[results.runs["cell"].isin(names)]
        axes.plot(runs["cell"].map(places), runs[main], ".", color=style["color"], alpha=0.4)
    axes.set_xticks(sorted(set(counts)))
    axes.set(xlabel="deformable layers", ylabel=f"{main} (mean ± std, dots: seeds)")
    figure.legend(**LEGEND)
    return figure


def _by_part(results: Results) -> Figure:
    main = results.study.metrics.main
    cells, base = results.cells.loc[[*results.logs]], results.study.baseline.name
    figure, axes = _figure(f"{main} by part; dashed: the baseline", 1.3 + 0.34 * len(cells))
    half, style = (cells["high"] - cells["low"]) / 2, dict(color=PALETTE[0])
    axes.errorbar(cells[main], range(len(cells)), xerr=half, fmt="D", capsize=3, **style)
    runs = results.runs[results.runs["cell"].isin(cells.index)]
    axes.plot(runs[main], cells.index.get_indexer(runs["cell"]) + 0.25, ".", alpha=0.6, **style)
    if base in cells.index:
        axes.axvline(cells.loc[base, main], color=BASELINE, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(cells)), cells.index.map(_short))
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(5))
    bars = "bars: against the baseline, family-wise 95 %\n(Dunnett, pooled variance of all cells)"
    axes.set_xlabel(f"{main} (diamond: mean, dots: seeds)\n{bars}")
    return figure


def _curves(results: Results, title: str, y: str, x: str, key: str) -> Figure:
    """For each cell, at the steps that all its runs have, mean ± std of their `key`."""
    figure, axes = _figure(title, 3.2, len(results.logs))
    for cell, logs in results.logs.items():
        runs = pd.concat([curve(log, key) for log in logs], axis=1, join="inner")
        mean, std = runs.mean(axis=1), runs.std(axis=1)
        is_base = cell == results.study.baseline.name
        style = dict(color=BASELINE, linestyle="-", linewidth=2) if is_base else {}
        marker = "o" if len(mean) < 12 else ""
        [line] = axes.plot(mean, label=_short(cell), marker=marker, markersize=4, **style)
        band = dict(color=line.get_color(), alpha=0.15, linewidth=0)
        axes.fill_between(mean.index, mean - std, mean + std, **band)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel=x, ylabel=f"{y}, mean ± std over seeds")
    figure.legend(**LEGEND)
    return figure


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower())


def _short(name: str, length: int = 26) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _figure(title: str, height: float, legend: int = 0) -> tuple[Figure, Axes]:
    """With room for a legend of so many entries."""
    figure = Figure(figsize=(4.6, height + 0.2 * -(-legend // 2)), layout="constrained")
    figure.suptitle(title, fontsize=10.5)
    return figure, figure.add_subplot()
