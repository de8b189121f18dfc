"""Detections of a study's cells, drawn side by side."""

import io
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dcndet.data.errors import DataError
from dcndet.data.loading import read_image
from dcndet.models.visualization import draw_boxes
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from .study import Run
from .table import Results

TEST = Path(__file__).resolve().parents[1] / "test.py"
SCORE = 0.5  # what is drawn has at least this
TRUTH = "annotated"

Box = tuple[list[float], int, float]  # [x1, y1, x2, y2], category id, score


@dataclass
class Slide:
    """One image: a panel as annotated and one for each cell, by the panel's title."""

    name: str
    panels: dict[str, bytes]  # WebP
    counts: dict[str, int]  # boxes


@dataclass
class Pictures:
    cells: list[str] = field(default_factory=list)  # that have detections
    slides: list[Slide] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # why others have none


def make_pictures(results: Results) -> Pictures:
    """Draw the first images of the evaluation set with what the study's `pictures['cells']` found.

    Of a cell it is the run with the lowest seed; without names it is the baseline and the cell with
    the highest mean AP. Where tools/test.py fails, `problems` says so.
    """
    study = results.study
    names = study.pictures["cells"] or [study.baseline.name, results.best.name]
    made = Pictures()
    runs: dict[str, Run] = {}
    found: dict[str, dict[int, list[Box]]] = {}
    for name in dict.fromkeys(names):
        finished = results.finished(name)
        if not finished:
            made.problems.append(f"{name}: no run has finished")
            continue
        runs[name] = min(finished, key=lambda run: run.seed)
        try:
            found[name] = detections(runs[name])
        except PictureError as error:
            made.problems.append(f"{name}: {error}")
    made.cells = list(found)
    if found:
        try:
            made.slides = _slides(runs[made.cells[0]], study.pictures["images"], found)
        except DataError as error:
            made.problems.append(f"the evaluation set cannot be shown: {error}")
    return made


class PictureError(Exception):
    """Why a run has no detections."""


def detections(run: Run) -> dict[int, list[Box]]:
    """What a run's last checkpoint finds on the evaluation set, by image id.

    tools/test.py is run unless its file is there and newer than the checkpoint.

    Raises:
        PictureError: it failed, with its last line.
    """
    try:
        checkpoint = (run.folder / "last_checkpoint").read_text(encoding="utf-8").strip()
    except OSError:
        raise PictureError(f"no checkpoint in {run.folder}") from None
    path = run.folder / Path(checkpoint).name  # the folder may have moved since
    out = run.folder / "detections.json"
    if path.exists() and out.exists() and out.stat().st_mtime >= path.stat().st_mtime:
        try:
            return _read(out)
        except (ValueError, TypeError, KeyError):
            pass  # cut off: made again
    print(f"{run.name}: detections", flush=True)
    command = [sys.executable, str(TEST), str(run.config), str(path)]
    command += ["--work-dir", str(run.folder / "test"), "--out", str(out)]
    process = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if process.returncode:
        last = [f"exit status {process.returncode}", *process.stdout.strip().splitlines()][-1]
        raise PictureError(f"tools/test.py failed on {path}: {last}")
    try:
        return _read(out)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PictureError(f"tools/test.py left no detections in {out}: {error}") from error


def _read(path: Path) -> dict[int, list[Box]]:
    boxes: dict[int, list[Box]] = {}
    for item in json.loads(path.read_text(encoding="utf-8")):
        if item["score"] >= SCORE:
            x, y, width, height = item["bbox"]
            box = ([x, y, x + width, y + height], item["category_id"], item["score"])
            boxes.setdefault(item["image_id"], []).append(box)
    return boxes


def _slides(run: Run, count: int, found: dict[str, dict[int, list[Box]]]) -> list[Slide]:
    init_default_scope("mmdet")
    dataset = DATASETS.build(Config.fromfile(run.config).val_dataloader.dataset)
    classes = dataset.metainfo["classes"]
    slides = []
    for i in range(min(count, len(dataset))):
        info = dataset.get_data_info(i)
        image = read_image(info["img_path"])[..., ::-1]
        truth = [(each["bbox"], each["bbox_label"], None) for each in info["instances"]]
        panels = {TRUTH: truth} | {
            cell: [(box, dataset.cat_ids.index(category), score) for box, category, score in boxes]
            for cell, by_image in found.items()
            for boxes in [by_image.get(info["img_id"], [])]
        }
        drawn = {}
        for title, items in panels.items():
            boxes, labels, scores = zip(*items, strict=True) if items else ([], [], [])
            known = None if title == TRUTH else scores
            picture = draw_boxes(image, boxes, labels, known, classes, 384, 800)
            out = io.BytesIO()
            Image.fromarray(picture).save(out, "webp", quality=88)
            drawn[title] = out.getvalue()
        counts = {title: len(items) for title, items in panels.items()}
        slides.append(Slide(Path(info["img_path"]).name, drawn, counts))
    return slides
