"""The report of a study: one HTML page to read, and Markdown with its plots to put elsewhere."""

import base64
import statistics
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template

from .pictures import SCORE, Pictures, make_pictures
from .plots import Plot, make_plots
from .results import Log, read_log, write_text
from .running import LOG
from .study import Study, StudyError
from .table import COLUMNS, Row, cells_of, to_markdown

TEMPLATE = Path(__file__).with_name("report.html")
FIGURES = ["mean", "p95", "outside", "mask_mean", "mask_std"]  # of a deformable layer
OFFSET_COLUMNS = ["layer", "mean |Δp|", "95th percentile", "outside", "mask Δm"]
OFFSETS = (
    "What every deformable layer did at the end of training, mean over seeds: the length of its "
    "offsets Δp (pixels of the layer's input; for RoI pooling, of the image), the share of its "
    "samples that lie outside, and mean ± standard deviation of its masks Δm."
)

Layers = dict[str, dict[str, float]]  # layer -> figure -> value


def write_report(
    study: Study,
    rows: list[Row],
    folder: Path,
    command: str,
    machine: dict[str, object] | None = None,
) -> Path:
    """Write `report.html`, `report.md` and `plots/*.png` into `folder`.

    Detections that are not there yet are made (see `pictures.detections`), which takes an
    evaluation for each cell that is shown.

    Args:
        command: that the study is run with.
        machine: what to say of the machine, shown as it is.

    Returns:
        The path of the page.

    Raises:
        StudyError: no run has finished.
    """
    if not any(row.finished for row in rows):
        raise StudyError(
            f"{study.path}: no run has finished yet, there is nothing to report"
            + "".join(f"\n{run.name}: {record.error}" for row in rows for run, record in row.failed)
        )
    logs = {
        row.cell.folder: [read_log(run.folder) for run, _ in row.finished]
        for row in rows
        if row.finished
    }
    plots = make_plots(rows, study.baseline, logs)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for plot in plots:
        (folder / "plots" / f"{plot.name}.png").write_bytes(plot.png)
    facts = _facts(study, rows, command, machine)
    layers = {key: found for key, of_cell in logs.items() if (found := _layers(of_cell))}
    write_text(folder / "report.md", _markdown(study, rows, facts, layers, plots))
    page = folder / "report.html"
    write_text(page, _page(study, rows, facts, layers, plots, make_pictures(study, rows)))
    return page


def _facts(
    study: Study, rows: list[Row], command: str, machine: dict[str, object] | None
) -> dict[str, str]:
    finished = sum(len(row.finished) for row in rows)
    known = {key.replace("_", " "): value for key, value in (machine or {}).items() if value}
    facts = {
        "command": command,
        "seeds": ", ".join(map(str, study.seeds)),
        "runs": f"{finished} of {len(study.cells) * len(study.seeds)} finished",
        "baseline": study.baseline.name,
        "machine": "; ".join(f"{key}: {value}" for key, value in known.items()),
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    return {key: value for key, value in facts.items() if value}


def _reading(study: Study) -> str:
    return (
        "AP is COCO's, from 0 to 1, after the last epoch: mean ± standard deviation over seeds. "
        f"Difference is to the baseline, {study.baseline.name}; its interval is Welch's, of 95 % "
        "confidence, over seeds. Where it has zero in it, these seeds do not tell the cell from "
        "the baseline; and it misses one time in twenty, so that of many cells some are clear of "
        "zero by chance. GFLOPs are 1e9 multiply-adds of one image in inference, memory is the "
        "peak in training."
    )


def _lead(study: Study, rows: list[Row]) -> str:
    best = max((row for row in rows if row.finished), key=lambda row: row.mean["AP"])
    text = f"Highest mean AP: {best.mean['AP']:.3f}, {best.cell.name}"
    if "AP" in best.difference:
        text += f" ({best.difference['AP']:+.3f} to the baseline"
        text += (
            ", 95 % interval {:+.3f} to {:+.3f})".format(*best.interval["AP"])
            if "AP" in best.interval
            else "; an interval takes two seeds of both)"
        )
    elif best.cell == study.baseline:
        text += ", the baseline"
    return text + "."


def _layers(logs: list[Log]) -> Layers:
    """The last figures that each deformable layer logged, mean over the runs."""
    values: dict[str, dict[str, list[float]]] = {}
    for log in logs:
        last = {key: value for line in log.offsets for key, value in line.items()}
        for key, value in last.items():
            if key.startswith("offsets/"):
                layer, figure = key.removeprefix("offsets/").rsplit("/", 1)
                values.setdefault(layer, {}).setdefault(figure, []).append(value)
    return {
        layer: {figure: statistics.fmean(each) for figure, each in figures.items()}
        for layer, figures in values.items()
    }


def _offset_cells(figures: dict[str, float]) -> list[str]:
    mask = ""
    if "mask_mean" in figures:
        mask = f"{figures['mask_mean']:.2f} ± {figures['mask_std']:.2f}"
    lengths = [f"{figures['mean']:.2f}", f"{figures['p95']:.2f}"]
    return [*lengths, f"{figures['outside']:.1%}", mask]


def _markdown(
    study: Study,
    rows: list[Row],
    facts: dict[str, str],
    layers: dict[str, Layers],
    plots: list[Plot],
) -> str:
    lines = [f"# {_plain(study.title)}", "", _plain(_lead(study, rows)), ""]
    lines += [
        f"- {key}: {_plain(value, key == 'command')}" for key, value in facts.items() if value
    ]
    lines += ["", to_markdown(rows), _plain(_reading(study)), ""]
    for plot in plots:
        lines += [f"![{_plain(plot.title)}](plots/{plot.name}.png)", ""]
    if layers:
        lines += ["## Deformable layers", "", OFFSETS, ""]
        lines += [f"| cell | {' | '.join(_plain(c) for c in OFFSET_COLUMNS)} |", "|---" * 6 + "|"]
    for row in rows:
        for layer, figures in layers.get(row.cell.folder, {}).items():
            name = _plain(row.cell.name)
            lines.append(f"| {name} | `{layer}` | {' | '.join(_offset_cells(figures))} |")
    failed = [(run, record) for row in rows for run, record in row.failed]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {_plain(run.name)}: {_plain(record.error, True)}" for run, record in failed]
    return "\n".join(lines) + "\n"


def _plain(text: str, code: bool = False) -> str:
    """As text of a line of Markdown, in which it is no HTML and ends no table's cell."""
    text = " ".join(text.split())
    if code:
        return f"`` {text} ``" if "`" in text else f"`{text}`"
    return escape(text, quote=False).replace("|", r"\|")


def _page(
    study: Study,
    rows: list[Row],
    facts: dict[str, str],
    layers: dict[str, Layers],
    plots: list[Plot],
    pictures: Pictures,
) -> str:
    listed = {
        key: f"<code>{escape(v)}</code>" if key == "command" else escape(v)
        for key, v in facts.items()
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(study.title),
        lead=escape(_lead(study, rows)),
        facts="\n".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in listed.items()),
        reading=escape(_reading(study)),
        results=_results(study, rows),
        cost=_cost(study, rows),
        plots="\n".join(map(_figure, plots)),
        detections=_detections(pictures),
        offsets=_offsets(rows, layers),
        unfinished=_unfinished(rows),
    )


def _table(label: str, columns: list[str], lines: list[str], sortable: bool = True) -> str:
    """A table that scrolls in its own box; `lines` are rows of HTML, the rest is text."""
    heads = []
    for column in columns:
        name = escape(column)
        head = f'aria-sort="none"><button type="button">{name}</button>' if sortable else f">{name}"
        heads.append(f'<th scope="col" {head}</th>')
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table>\n'
        f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n"
        "</tbody></table></div>"
    )


def _line(head: str, cells: list[str], kind: str = "", kinds: dict[int, str] | None = None) -> str:
    """A table's row: `kind` is its class, `kinds` those of single cells."""
    text = ""
    for i, cell in enumerate(cells):
        mark = (kinds or {}).get(i)
        text += f'<td class="{mark}">{escape(cell)}</td>' if mark else f"<td>{escape(cell)}</td>"
    return f'<tr{kind and f" class={kind}"}><th scope="row">{escape(head)}</th>{text}</tr>'


def _head(study: Study, row: Row) -> tuple[str, str]:
    is_base = row.cell == study.baseline
    return row.cell.name + (" (baseline)" if is_base else ""), "baseline" if is_base else ""


def _results(study: Study, rows: list[Row]) -> str:
    lines = []
    column = COLUMNS.index("95 % interval")
    for row in rows:
        name, kind = _head(study, row)
        cells, kinds = cells_of(row), {}
        low, high = row.interval.get("AP", (0.0, 0.0))
        if low > 0 or high < 0:
            kinds[column - 1] = "better" if low > 0 else "worse"
            cells[column] += " ▲" if low > 0 else " ▼"
        lines.append(_line(name, cells[1:], kind, kinds))
    return _table("Results", ["cell", *COLUMNS[1:]], lines) + (
        '<p class="soft">▲ better, ▼ worse than the baseline: the interval is clear of zero. '
        "A click on a header sorts.</p>"
    )


def _cost(study: Study, rows: list[Row]) -> str:
    base = next(row for row in rows if row.cell == study.baseline)

    def against(value: float | None, reference: float | None) -> str:
        return f"{value / reference:.2f}" if value and reference else ""

    lines = []
    for row in rows:
        name, kind = _head(study, row)
        difference = row.difference.get("AP")
        own, other = row.complexity, base.complexity
        cells = [
            "" if difference is None else f"{difference:+.3f}",
            "" if row.iteration is None else f"{row.iteration:.3f}",
            against(row.iteration, base.iteration),
            "" if row.memory is None else f"{row.memory:.0f}",
            against(row.memory, base.memory),
            against(own and own.parameters, other and other.parameters),
            against(own and own.gflops, other and other.gflops),
        ]
        lines.append(_line(name, cells, kind))
    columns = ["cell", "AP difference", "s / iteration", "× time", "memory (MB)", "× memory"]
    return _table("Gain and cost", [*columns, "× params", "× GFLOPs"], lines)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _figure(plot: Plot) -> str:
    source = _uri("svg+xml", plot.svg.encode())
    return (
        f"<figure><figcaption>{escape(plot.title)}</figcaption>"
        f'<img src="{source}" alt="{escape(plot.description)}"></figure>'
    )


def _detections(pictures: Pictures) -> str:
    problems = "".join(f'<p class="problem">{escape(text)}</p>\n' for text in pictures.problems)
    if not pictures.slides:
        return f'<section id="detections">\n<h2>Detections</h2>\n{problems}</section>'
    titles = list(pictures.slides[0].panels)
    boxes = "\n".join(
        f'<label><input type="checkbox" value="{i}" checked>{escape(title)}</label>'
        for i, title in enumerate(titles)
    )
    slides = []
    for slide in pictures.slides:
        panels = []
        for i, title in enumerate(titles):
            count = slide.counts[title]
            caption = f"{title}: {count} {'box' if count == 1 else 'boxes'}"
            alt = f"{slide.name}, {caption}"
            panels.append(
                f'<figure data-panel="{i}"><figcaption>{escape(caption)}</figcaption><img '
                f'src="{_uri("webp", slide.panels[title])}" alt="{escape(alt)}"></figure>'
            )
        slides.append(
            f'<div class="slide" data-name="{escape(slide.name)}"><div class="panels">\n'
            + "\n".join(panels)
            + "\n</div></div>"
        )
    return (
        '<section id="detections">\n<h2>Detections</h2>\n'
        f'<p class="soft">The first images of the evaluation set, with boxes of score {SCORE} or '
        "more; of each cell the run with the lowest seed. The arrow keys turn the pages.</p>\n"
        f'{problems}<div class="bar" hidden>\n'
        '<button type="button" id="previous" aria-label="previous image">←</button>\n'
        '<button type="button" id="next" aria-label="next image">→</button>\n'
        f'<span id="place" aria-live="polite"></span>\n{boxes}\n</div>\n'
        + "\n".join(slides)
        + "\n</section>"
    )


def _offsets(rows: list[Row], layers: dict[str, Layers]) -> str:
    if not layers:
        return ""
    parts = []
    for row in rows:
        if found := layers.get(row.cell.folder):
            name = row.cell.name
            lines = [_line(layer, _offset_cells(figures)) for layer, figures in found.items()]
            parts.append(
                f"<details><summary>{escape(name)}</summary>\n"
                + _table(f"Offsets of {name}", OFFSET_COLUMNS, lines, sortable=False)
                + "</details>"
            )
    return (
        '<section id="offsets">\n<h2>Deformable layers</h2>\n'
        f'<p class="soft">{escape(OFFSETS)}</p>\n' + "\n".join(parts) + "\n</section>"
    )


def _unfinished(rows: list[Row]) -> str:
    failed = [
        f"<li>{escape(run.name)}: <code>{escape(record.error)}</code>, see "
        f"<code>{escape(str(run.folder / LOG))}</code></li>"
        for row in rows
        for run, record in row.failed
    ]
    waiting = [
        f"<li>{escape(row.cell.name)}: seed {', '.join(str(run.seed) for run in row.waiting)}</li>"
        for row in rows
        if row.waiting
    ]
    text = ""
    for title, items in (("Failed", failed), ("Not run yet", waiting)):
        if items:
            text += f'<section id="{title.split()[0].lower()}">\n<h2>{title}</h2>\n<ul>\n'
            text += "\n".join(items) + "\n</ul>\n</section>\n"
    return text
