"""The report of a study: one HTML page to read, and Markdown with its plots to put elsewhere."""

import base64
from datetime import datetime
from pathlib import Path

import jinja2
import pandas as pd

from .pictures import SCORE, make_pictures
from .plots import make_plots
from .results import Log, read_log, write_text
from .running import LOG
from .study import StudyError
from .table import Results, as_text, costs_as_text, formatted, markdown_text, to_markdown

OFFSETS = (
    "What every deformable layer did at the end of training, mean over seeds: the length of its "
    "offsets Δp (pixels of the layer's input; for RoI pooling, of the image), the share of its "
    "samples that lie outside, and mean ± standard deviation of its masks Δm."
)
READING = (
    "AP is COCO's, from 0 to 1, after the last epoch: mean ± standard deviation over seeds. "
    "Difference is to the baseline, {}; its interval is Welch's, of 95 % confidence, over seeds. "
    "Where zero lies in it, these seeds do not tell the cell from the baseline; and it misses one "
    "time in twenty, so that of many cells some are clear of zero by chance. GFLOPs are 1e9 "
    "multiply-adds of one image in inference, memory is the peak in training."
)


def write_report(results: Results, folder: Path, command: str, machine: dict[str, object]) -> Path:
    """Write `report.html`, `report.md` and `plots/*.png` into `folder`.

    Detections that are not there yet are made (see `pictures.detections`), which takes an
    evaluation for each cell that is shown.

    Returns the path of the page.

    Args:
        command: that the study is run with.
        machine: what to say of the machine, shown as it is.

    Raises:
        StudyError: no run has finished.
    """
    failed = [(run, record) for run, record in results.ended if record and not record.finished]
    if not results.cells["finished"].any():
        raise StudyError(
            f"{results.study.path}: no run has finished yet, there is nothing to report"
            + "".join(f"\n{run.name}: {record.error}" for run, record in failed)
        )
    logs = {
        name: [read_log(run.folder) for run in results.finished(name)]
        for name in results.cells.index[results.cells["finished"] > 0]
    }
    plots = make_plots(results, logs)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for plot in plots:
        (folder / "plots" / f"{plot.name}.png").write_bytes(plot.png)
    layers = {name: found for name, of_cell in logs.items() if len(found := _layers(of_cell))}
    content = dict(study=results.study, lead=_lead(results), table=as_text(results.cells))
    content |= dict(facts=_facts(results, command, machine), plots=plots, layers=layers)
    content |= dict(reading=READING.format(results.study.baseline.name), offsets=OFFSETS)
    content["failed"] = failed
    write_text(folder / "report.md", _markdown(**content))
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    slides, problems = make_pictures(results)
    page = environment.get_template("report.html").render(
        content,
        costs=costs_as_text(results.cells, results.study.baseline.name),
        clear=(results.cells["low"] > 0) * 1 - (results.cells["high"] < 0),
        waiting=[run for run, record in results.ended if record is None],
        **dict(slides=slides, problems=problems, score=SCORE, log=LOG),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _facts(results: Results, command: str, machine: dict[str, object]) -> dict[str, str]:
    study, config = results.study, results.study.config
    data = config.train_dataloader.dataset if "train_dataloader" in config else {}
    while "dataset" in data:  # RepeatDataset and the like
        data = data["dataset"]
    known = {key.replace("_", " "): value for key, value in machine.items() if value}
    facts = {
        "command": command,
        "base config": study.base.as_posix(),
        "options": ", ".join(f"{key}={value}" for key, value in study.options.items()),
        "epochs": str(config.train_cfg.max_epochs),
        "data set": " ".join(
            str(data[key]) for key in ("type", "data_root", "ann_file") if data.get(key)
        ),
        "seeds": ", ".join(map(str, study.seeds)),
        "runs": f"{results.cells['finished'].sum()} of {len(results.ended)} finished",
        "baseline": study.baseline.name,
        "machine": "; ".join(f"{key}: {value}" for key, value in known.items()),
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    return {key: value for key, value in facts.items() if value}


def _lead(results: Results) -> str:
    best = results.best
    text = f"Highest mean AP: {best['AP']:.3f}, {best.name}"
    if pd.notna(best["low"]):
        gain = "{difference:+.3f} to the baseline, 95 % interval {low:+.3f} to {high:+.3f}"
        text += f" ({gain.format(**best)})"
    elif pd.notna(best["difference"]):
        text += f" ({best['difference']:+.3f} to the baseline; an interval takes two seeds of both)"
    elif best.name == results.study.baseline.name:
        text += ", the baseline"
    return text + "."


def _layers(logs: list[Log]) -> pd.DataFrame:
    """The last figures that each deformable layer logged, mean over the runs."""
    last = pd.DataFrame([{k: v for line in log.offsets for k, v in line.items()} for log in logs])
    lines: dict[str, dict[str, float]] = {}
    for key, value in last.mean().filter(like="offsets/").items():
        layer, figure = key.removeprefix("offsets/").rsplit("/", 1)
        lines.setdefault(layer, {})[figure] = value
    figures = pd.DataFrame(lines, ["mean", "p95", "outside", "mask_mean", "mask_std"]).T
    columns = {
        "mean |Δp|": formatted(figures["mean"], "{:.2f}"),
        "95th percentile": formatted(figures["p95"], "{:.2f}"),
        "outside": formatted(figures["outside"], "{:.1%}"),
        "mask Δm": formatted(figures["mask_mean"], "{:.2f}")
        + formatted(figures["mask_std"], " ± {:.2f}"),
    }
    return pd.DataFrame(columns).rename_axis("layer")


def _markdown(study, lead, facts, reading, table, plots, layers, offsets, failed, **_) -> str:
    lines = [f"# {markdown_text(study.title)}", "", markdown_text(lead), ""]
    for key, value in facts.items():
        lines.append(f"- {key}: {_code(value) if key == 'command' else markdown_text(value)}")
    lines += ["", to_markdown(table), "", markdown_text(reading), ""]
    for plot in plots:
        lines += [f"![{plot.title}](plots/{plot.name}.png)", ""]
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
