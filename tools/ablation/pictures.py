"""Detections of a study's cells, drawn side by side."""

import io
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dcndet.data.errors import DataError
from dcndet.data.loading import read_image
from dcndet.models.visualization import draw_boxes
from mmdet.registry import DATASETS
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


def make_pictures(results: Results) -> tuple[list[Slide], list[str]]:
    """Draw the first images of the evaluation set with what the study's `pictures['cells']` found.

    Of a cell it is the run with the lowest seed; without names it is the baseline and the cell with
    the highest mean AP.

    Returns:
        The pictures, and why a cell has none.
    """
    study, problems = results.study, []
    found: dict[str, tuple[Run, dict[int, list[Box]]]] = {}
    for name in study.pictures["cells"] or [study.baseline.name, results.best.name]:
        try:
            run = min(results.finished(name), key=lambda run: run.seed)
            found[name] = (run, detections(run))
        except ValueError:
            problems.append(f"{name}: no run has finished")
        except PictureError as error:
            problems.append(f"{name}: {error}")
    try:
        return _slides(study.pictures["images"], found), problems
    except DataError as error:
        return [], [*problems, f"the evaluation set cannot be shown: {error}"]


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
    with suppress(OSError, ValueError, TypeError, KeyError):  # cut off: made again
        if out.stat().st_mtime >= path.stat().st_mtime:
            return _read(out)
    print(f"{run.name}: detections", flush=True)
    command = [sys.executable, str(TEST), str(run.config), str(path)]
    command += ["--work-dir", str(run.folder / "test"), "--out", str(out)]
    process = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if process.returncode:
        last = [f"exit status {process.returncode}", *process.stdout.strip().splitlines()][-1]
        raise PictureError(f"tools/test.py failed on {path}: {last}")
    return _read(out)


def _read(path: Path) -> dict[int, list[Box]]:
    boxes: dict[int, list[Box]] = {}
    for item in json.loads(path.read_text(encoding="utf-8")):
        if item["score"] >= SCORE:
            x, y, width, height = item["bbox"]
            box = ([x, y, x + width, y + height], item["category_id"], item["score"])
            boxes.setdefault(item["image_id"], []).append(box)
    return boxes


def _slides(count: int, found: dict[str, tuple[Run, dict[int, list[Box]]]]) -> list[Slide]:
    if not found:
        return []
    init_default_scope("mmdet")
    run = next(iter(found.values()))[0]
    dataset = DATASETS.build(run.content.val_dataloader.dataset)
    slides = []
    for i in range(min(count, len(dataset))):
        info = dataset.get_data_info(i)
        image = read_image(info["img_path"])[..., ::-1]
        panels = {TRUTH: [(each["bbox"], each["bbox_label"], 1) for each in info["instances"]]}
        for cell, (_, by_image) in found.items():
            panels[cell] = [
                (box, dataset.cat_ids.index(category), score)
                for box, category, score in by_image.get(info["img_id"], [])
            ]
        slide = Slide(Path(info["img_path"]).name, {}, {t: len(b) for t, b in panels.items()})
        for title, items in panels.items():
            boxes, labels, scores = zip(*items, strict=True) if items else ([], [], [])
            known = None if title == TRUTH else scores
            classes = dataset.metainfo["classes"]
            out = io.BytesIO()
            picture = draw_boxes(image, boxes, labels, known, classes, 384, 800)
            Image.fromarray(picture).save(out, "webp", quality=88)
            slide.panels[title] = out.getvalue()
        slides.append(slide)
    return slides
