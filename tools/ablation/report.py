"""The report of a study: one HTML page to read, and Markdown with its plots to put elsewhere."""

import base64
from datetime import datetime
from pathlib import Path

import jinja2
import pandas as pd

from .intervals import MOST
from .pictures import SCORE, make_pictures
from .plots import make_plots
from .results import Results, write_text
from .running import LOG
from .study import StudyError

INTERVAL = "family-wise 95 % interval"
OFFSETS = (
    "What every deformable layer did at the end of training, mean over seeds: the length of its "
    "offsets Δp (pixels of the layer's input; for RoI pooling, of the image), the share of its "
    "samples that lie outside, and mean ± standard deviation of its masks Δm."
)
READING = (
    "{meaning}, after the last epoch: mean ± standard deviation over seeds. Difference is in "
    "{main} to the baseline, {baseline}; its interval is family-wise 95 % (Dunnett, pooled "
    "variance of all cells): with 95 % confidence, all intervals of the table hold at once, that "
    "of the best cell included, although chance flatters a mean that is picked as the highest. "
    "Cells with fewer than two finished seeds are not compared. Seeds for 80 % power are how many "
    "per cell find a true difference as large as the one seen four times in five (two-sided, "
    "family-wise 5 %, pooled standard deviation, Šidák's bound on Dunnett's critical value, which "
    "errs towards more seeds). × is relative to the baseline. GFLOPs are 1e9 multiply-adds of one "
    "image in inference; memory is training's peak, of the GPU or the process."
)
PAIRS = (
    "Differences in {main} of the first to the second of two cells, in pairs that the study names: "
    "Bonferroni's intervals, pooled variance of all cells. With 95 % confidence, all intervals of "
    "this table hold at once."
)


def write_report(results: Results, folder: Path, command: str, machine: dict[str, object]) -> Path:
    """Write `report.html`, `report.md` and `plots/*.png` into `folder`.

    Returns the path of the page.

    Args:
        command: that the study is run with.
        machine: what to say of the machine, shown as it is.

    Raises:
        StudyError: no run has finished.
    """
    failed = [(run, record) for run, record in results.ended if record.error]
    if not results.cells["finished"].any():
        raise StudyError(
            f"{results.study.path}: no run has finished yet, there is nothing to report"
            + "".join(f"\n{run.name}: {record.error}" for run, record in failed)
        )
    study = results.study
    content = dict(
        title=study.title,
        lead=_lead(results),
        facts=_facts(results, command, machine),
        table=as_text(results),
        reading=READING.format(
            meaning=study.metrics.meaning, main=study.metrics.main, baseline=study.baseline.name
        ),
        pairs=_pairs_as_text(results),
        pairs_reading=PAIRS.format(main=study.metrics.main),
        plots=make_plots(results, folder / "plots"),
        layers={cell: found for cell, each in results.logs.items() if len(found := _layers(each))},
        offsets=OFFSETS,
        failed=failed,
    )
    write_text(folder / "report.md", _markdown(**content))
    slides, problems = make_pictures(results)
    for problem in problems:
        print(problem, flush=True)
    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    page = jinja2.Template(source, autoescape=True, trim_blocks=True).render(
        content,
        base64=lambda data: base64.b64encode(data).decode(),
        baseline=study.baseline.name,
        cells=results.cells,
        pair_bounds=results.pairs,
        waiting=[run.name for run, record in results.ended if record.state == "waiting"],
        **dict(slides=slides, problems=problems, score=SCORE, log=LOG),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _facts(results: Results, command: str, machine: dict[str, object]) -> dict[str, str]:
    study = results.study
    data = study.config.train_dataloader.dataset
    while "dataset" in data:  # RepeatDataset and the like
        data = data["dataset"]
    parts = [data.get(key) for key in ("type", "data_root", "ann_file")]
    known = (f"{key.replace('_', ' ')}: {value}" for key, value in machine.items() if value)
    facts = {
        "command": command,
        "base config": study.base.as_posix(),
        "options": ", ".join(f"{key}={value}" for key, value in study.options.items()),
        "epochs": str(study.config.train_cfg.max_epochs),
        "data set": " ".join(str(part) for part in parts if part),
        "seeds": ", ".join(map(str, study.seeds)),
        "runs": f"{results.cells['finished'].sum():.0f} of {len(results.ended)} finished",
        "baseline": study.baseline.name,
        "machine": "; ".join(known),
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    return {key: value for key, value in facts.items() if value}


def summary(results: Results) -> str:
    """The main finding and the tables, as Markdown."""
    tables = [as_text(results), _pairs_as_text(results)]
    return "\n\n".join([_lead(results), *(to_markdown(table) for table in tables if len(table))])


def _lead(results: Results) -> str:
    best, base, cells = results.best, results.study.baseline.name, results.cells
    metrics = results.study.metrics
    difference, interval = as_text(results).loc[best.name, ["difference", INTERVAL]]
    text = f"Highest mean {metrics.text(best[metrics.main], ': ')}, {best.name}"
    if interval:
        text += f" ({difference} to the baseline, {INTERVAL} {interval})"
    elif difference:
        text += f" ({difference} to the baseline; an interval takes two seeds of both)"
    elif best.name == base:
        text += ", the baseline"
    known, clear = cells["low"].count(), ((cells["low"] > 0) | (cells["high"] < 0)).sum()
    return f"{text}. Intervals without zero: {clear} of {known}." if known else f"{text}."


def _layers(logs: list[pd.DataFrame]) -> pd.DataFrame:
    """The last figures that each deformable layer logged, mean over the runs."""
    found = (log.filter(like="offsets/").ffill() for log in logs)
    last = pd.DataFrame([log.iloc[-1] for log in found if len(log)]).mean()
    lines: dict[str, dict[str, float]] = {}
    for key, value in last.items():
        layer, figure = key.removeprefix("offsets/").rsplit("/", 1)
        lines.setdefault(layer, {})[figure] = value
    figures = pd.DataFrame(lines, ["mean", "p95", "outside", "mask_mean", "mask_std"]).T
    mask_std = formatted(figures["mask_std"], " ± {:.2f}")
    columns = {
        "mean |Δp|": formatted(figures["mean"], "{:.2f}"),
        "95th percentile": formatted(figures["p95"], "{:.2f}"),
        "outside": formatted(figures["outside"], "{:.1%}"),
        "mask Δm": formatted(figures["mask_mean"], "{:.2f}") + mask_std,
    }
    return pd.DataFrame(columns).rename_axis("layer")


def _markdown(
    title, lead, facts, table, reading, pairs, pairs_reading, plots, layers, offsets, failed
) -> str:
    lines = [f"# {markdown_text(title)}", "", markdown_text(lead), ""]
    for key, value in facts.items():
        lines.append(f"- {key}: {_code(value) if key == 'command' else markdown_text(value)}")
    lines += ["", to_markdown(table), "", markdown_text(reading), ""]
    if len(pairs):
        lines += [to_markdown(pairs), "", markdown_text(pairs_reading), ""]
    for plot, path in plots.items():
        lines += [f"![{plot}](plots/{path.name})", ""]
    if layers:
        every = pd.concat(layers, names=["cell"])
        lines += ["## Deformable layers", "", offsets, "", to_markdown(every), ""]
    if failed:
        lines += ["## Failed", ""]
        lines += [f"- {markdown_text(run.name)}: {_code(record.error)}" for run, record in failed]
    return "\n".join(lines).rstrip() + "\n"


def _code(text: str) -> str:
    text = " ".join(text.split())
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def as_text(results: Results) -> pd.DataFrame:
    """The table of cells to read; what is not known is empty."""
    cells, baseline = results.cells, results.study.baseline.name
    main, *others = results.study.metrics.keys
    digits = results.study.metrics.digits

    def spread(metric: str) -> pd.Series:
        std = formatted(cells[f"{metric} std"], f" ± {{:.{digits}f}}")
        return formatted(cells[metric], f"{{:.{digits}f}}") + std

    def cost(key: str, form: str, unit: float = 1) -> pd.Series:
        relative = formatted(cells[key] / cells.loc[baseline, key], " (×{:.2f})")
        return formatted(cells[key] / unit, form) + relative.where(cells.index != baseline, "")

    needed = cells["seeds needed"]
    failed = formatted(cells["failed"].where(cells["failed"] > 0), " ({:.0f} failed)")
    columns = {
        "seeds": formatted(cells["finished"], "{:.0f}") + failed,
        main: spread(main),
        **_differences(cells, digits),
        "seeds for 80 % power": formatted(needed, "{:.0f}").replace("inf", f">{MOST}"),
        **{other: spread(other) for other in others},
        "params (M)": cost("parameters", "{:.2f}", 1e6),
        "GFLOPs": cost("gflops", "{:.2f}"),
        "s / iteration": cost("seconds_per_iteration", "{:#.3g}"),
        "memory (MB)": cost("memory_mb", "{:.0f}"),
    }
    return pd.DataFrame(columns)


def _pairs_as_text(results: Results) -> pd.DataFrame:
    return pd.DataFrame(_differences(results.pairs, results.study.metrics.digits))


def _differences(found: pd.DataFrame, digits: int) -> dict[str, pd.Series]:
    signed = f"{{:+.{digits}f}}"
    low, high = formatted(found["low"], f"{signed} to "), formatted(found["high"], signed)
    return {"difference": formatted(found["difference"], signed), INTERVAL: low + high}


def formatted(values: pd.Series, form: str) -> pd.Series:
    """As text; what is not known is empty."""
    return values.map(lambda value: "" if pd.isna(value) else form.format(value))


def to_markdown(table: pd.DataFrame) -> str:
    """As a table of Markdown, in which no text is HTML or ends a cell."""
    plain = table.reset_index().map(lambda text: markdown_text(str(text)))
    plain.columns = plain.columns.map(markdown_text)
    return plain.to_markdown(index=False, disable_numparse=True)


def markdown_text(text: str) -> str:
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", r"\|")
