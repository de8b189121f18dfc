"""Figures of a study: what its parts gave, and how its runs trained."""

import io
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .results import METRICS, Log
from .study import Cell
from .table import Row

# Okabe and Ito's without black and yellow: the colour-blind tell them apart, on white and black.
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
DASHES = ["-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1, 1, 1))]
MARKERS = "osD^vP"
INK = "#1f2328"  # of text and lines; an SVG takes the page's instead
WIDTH = 4.6  # inches: text of 10 pt can then be read at the width of a phone
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a cell's name may have a $
    "xtick.color": INK,
    "ytick.color": INK,
}
DARK = (
    "<style>svg{color:" + INK + "}text{font-family:system-ui,sans-serif!important}"
    "@media(prefers-color-scheme:dark){svg{color:#e6e8eb}}</style>"
)


@dataclass
class Plot:
    """A figure: a PNG on white, and an SVG whose text and axes are light on a dark page."""

    name: str  # of its file
    title: str
    description: str  # in words, for who cannot see it
    png: bytes
    svg: str


def make_plots(rows: list[Row], baseline: Cell, logs: dict[str, list[Log]]) -> list[Plot]:
    """Figures of what has finished: AP by layers, where these vary, AP by part, loss, AP by epoch.

    Args:
        logs: of the finished runs, by the folder of their cell.
    """
    rows = [row for row in rows if row.finished]
    styles = _styles(rows, baseline)
    with matplotlib.rc_context(STYLE):
        plots = []
        if len({row.cell.settings.get("layers") for row in rows} - {None}) > 1:
            plots.append(_by_layers(rows))
        plots.append(_by_part(rows, baseline))
        plots.append(
            _curves(
                *("loss", "Training loss", "iteration", "loss"),
                *(rows, styles, lambda row: _mean(logs[row.cell.folder], "train", "loss")),
            )
        )
        plots.append(
            _curves(
                *("ap_by_epoch", "AP after each evaluation", "epoch", "AP"),
                *(rows, styles, lambda row: _mean(logs[row.cell.folder], "val", METRICS["AP"])),
            )
        )
    return plots


def _by_layers(rows: list[Row]) -> Plot:
    """A line for each value of the other axes; a cell without deformable layers is on all that
    share its other settings.
    """

    def others(row: Row) -> dict:
        return {axis: value for axis, value in row.cell.settings.items() if axis != "layers"}

    rows = [row for row in rows if "layers" in row.cell.settings]
    lines: list[dict] = []
    for row in rows:
        if _count(row) and others(row) not in lines:
            lines.append(others(row))
    figure, axes = _figure(3.4)
    counts = sorted({_count(row) for row in rows})
    step = min(b - a for a, b in pairwise(counts))
    described = []
    for i, line in enumerate(lines):
        points = [
            row
            for row in rows
            if others(row) == line or (not _count(row) and others(row).items() <= line.items())
        ]
        points.sort(key=_count)
        label = ", ".join(_text(*item) for item in line.items()) or "deformable"
        shift = 0.08 * step * (i - (len(lines) - 1) / 2)  # side by side, not one over the other
        colour = PALETTE[i % len(PALETTE)]
        places = [_count(row) + (shift if _count(row) else 0) for row in points]
        means = [row.mean["AP"] for row in points]
        style = dict(color=colour, marker=MARKERS[i % len(MARKERS)])
        axes.plot(places, means, label=label, linewidth=1.6, markersize=5, **style)
        for place, row in zip(places, points, strict=True):
            if _count(row):
                _spread(axes, row, place, step * (0.05 if shift > 0 else -0.05), style)
        said = (f"{_count(row)}: {row.mean['AP']:.3f}" for row in points)
        described.append(f"{label}, {', '.join(said)}")
    for row in rows:
        if not _count(row):  # where lines begin, and of none of their colours
            _spread(axes, row, 0, step * 0.05, dict(color=INK, marker="D"))
    axes.set_xticks(counts)
    axes.set_xlabel("deformable layers")
    axes.set_ylabel("AP (mean ± std, dots: seeds)")
    _legend(figure, len(lines))
    description = f"Mean AP by the number of deformable layers. {'; '.join(described)}."
    return _plot(figure, "ap_by_layers", "AP by the number of deformable layers", description)


def _count(row: Row) -> int:
    return row.cell.settings["layers"]


def _spread(axes: Axes, row: Row, place: float, aside: float, style: dict) -> None:
    """Mean ± standard deviation of a row's AP at an x, its seeds beside it."""
    axes.errorbar(
        *(place, row.mean["AP"], row.std.get("AP")),
        **style,
        **dict(markersize=5, capsize=3, elinewidth=1, zorder=3),
    )
    values = row.values("AP")
    if len(values) > 1:
        beside = [place + aside] * len(values)
        axes.plot(beside, values, ".", color=style["color"], alpha=0.6, markersize=5)


def _by_part(rows: list[Row], baseline: Cell) -> Plot:
    figure, axes = _figure(1.0 + 0.34 * len(rows))
    described = []
    for place, row in enumerate(rows):
        is_base = row.cell == baseline
        colour = INK if is_base else PALETTE[0]
        values, mean = row.values("AP"), row.mean["AP"]
        if is_base:
            axes.axvline(mean, color=INK, linestyle=DASHES[1], linewidth=1, alpha=0.6)
        if len(values) > 1:
            beside = [place + 0.25] * len(values)
            axes.plot(values, beside, ".", color=colour, alpha=0.6, markersize=5)
        axes.errorbar(
            mean, place, xerr=row.std.get("AP"), fmt="D", color=colour, markersize=5, capsize=3
        )
        std = f" ± {row.std['AP']:.3f}" if "AP" in row.std else ""
        described.append(f"{row.cell.name}{' (baseline)' if is_base else ''} {mean:.3f}{std}")
    axes.set_yticks(range(len(rows)), [_short(row.cell.name) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", alpha=0)
    axes.set_xlabel("AP (diamond: mean ± std, dots: seeds)")
    title = "AP by part; dashed: the baseline"
    return _plot(figure, "ap_by_part", title, f"AP of each cell: {'; '.join(described)}.")


def _curves(
    name: str,
    title: str,
    x: str,
    y: str,
    rows: list[Row],
    styles: dict[str, dict],
    points: Callable[[Row], dict[int, float]],
) -> Plot:
    figure, axes = _figure(3.2)
    ends = []
    for row in rows:
        values = points(row)
        style = dict(styles[row.cell.folder])
        if len(values) < 12:
            style |= dict(marker="o", markersize=4)
        axes.plot(list(values), list(values.values()), label=_short(row.cell.name), **style)
        if values:
            ends.append(f"{row.cell.name} {list(values.values())[-1]:.3f}")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(x)
    axes.set_ylabel(f"{y}, mean over seeds")
    _legend(figure, len(rows))
    return _plot(figure, name, title, f"{title} by {x}; at the end {', '.join(ends)}.")


def _mean(logs: list[Log], kind: str, key: str) -> dict[int, float]:
    """Step -> mean over the logs of what all of them have."""
    series = [{line["step"]: line[key] for line in getattr(log, kind)} for log in logs]
    steps = set.intersection(*map(set, series))
    return {step: statistics.fmean(values[step] for values in series) for step in sorted(steps)}


def _styles(rows: list[Row], baseline: Cell) -> dict[str, dict]:
    """By folder: the baseline in ink; colour by the first axis and dashes by the others, where
    these few tell the cells apart, else colours and then dashes in turn.
    """
    cells = [row.cell for row in rows if row.cell != baseline]
    pairs = [(list(cell.settings.items())[:1], list(cell.settings.items())[1:]) for cell in cells]
    firsts, rests = ([pair[i] for pair in pairs] for i in range(2))
    colours = [item for i, item in enumerate(firsts) if item not in firsts[:i]]
    dashes = [item for i, item in enumerate(rests) if item not in rests[:i]]
    unique = all(pair not in pairs[:i] for i, pair in enumerate(pairs))
    if unique and len(colours) <= len(PALETTE) and len(dashes) <= len(DASHES):
        places = [(colours.index(first), dashes.index(rest)) for first, rest in pairs]
    else:
        places = [(i, i // len(PALETTE)) for i in range(len(cells))]
    styles = {baseline.folder: dict(color=INK, linewidth=1.8)}
    for cell, (colour, dash) in zip(cells, places, strict=True):
        colour, line = PALETTE[colour % len(PALETTE)], DASHES[dash % len(DASHES)]
        styles[cell.folder] = dict(color=colour, linestyle=line, linewidth=1.4)
    return styles


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend(figure: Figure, entries: int) -> None:
    columns = 2
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-entries // columns))
    figure.legend(loc="outside lower center", ncols=columns, handlelength=2.6)


def _text(axis: str, value: object) -> str:
    return str(value) if isinstance(value, str) else f"{axis} {value}"


def _short(name: str, length: int = 26) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _plot(figure: Figure, name: str, title: str, description: str) -> Plot:
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    figure.suptitle(title, fontsize=10.5)
    figure.savefig(png, format="png", dpi=160, facecolor="white")
    start, tag, rest = svg.getvalue().partition("<defs>")
    text = start[start.index("<svg") :] + DARK + tag + rest.replace(INK, "currentColor")
    return Plot(name, title, description, png.getvalue(), text)
