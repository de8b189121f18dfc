"""Detections of a study's cells, drawn side by side."""

import colorsys
import io
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcndet.data.errors import DataError
from dcndet.data.loading import read_image
from matplotlib.font_manager import findfont
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image, ImageDraw, ImageFont

from .study import Run, Study
from .table import Row

TEST = Path(__file__).resolve().parents[1] / "test.py"
SCORE = 0.5  # what is drawn has at least this
SIDES = (384, 800)  # pixels: of the longer side at least and at most
TRUTH = "annotated"

Box = tuple[list[float], int, float | None]  # [x, y, width, height], category id, score


@dataclass
class Slide:
    """One image: a panel as annotated and one for each cell, as WebP by the panel's title."""

    name: str
    panels: dict[str, bytes]
    counts: dict[str, int]  # boxes


@dataclass
class Pictures:
    cells: list[str] = field(default_factory=list)  # that have detections
    slides: list[Slide] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # why others have none


def make_pictures(study: Study, rows: list[Row]) -> Pictures:
    """Draw the first images of the evaluation set with what the study's `pictures['cells']` found.

    Of a cell it is the run with the lowest seed; without names it is the baseline and the cell with
    the highest mean AP. Where tools/test.py fails, `problems` says so.
    """
    by_name = {row.cell.name: row for row in rows}
    best = max((row for row in rows if row.finished), key=lambda row: row.mean["AP"])
    names = study.pictures["cells"] or [study.baseline.name, best.cell.name]
    made = Pictures()
    runs: dict[str, Run] = {}
    found: dict[str, dict[int, list[Box]]] = {}
    for name in dict.fromkeys(names):
        finished = [run for run, _ in by_name[name].finished]
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
    """What a run's last checkpoint finds on the evaluation set, by image id, best last.

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
    lines = process.stdout.strip().splitlines()
    if process.returncode:
        last = lines[-1] if lines else f"exit status {process.returncode}"
        raise PictureError(f"tools/test.py failed on {path}: {last}")
    try:
        return _read(out)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PictureError(f"tools/test.py left no detections in {out}: {error}") from error


def _read(path: Path) -> dict[int, list[Box]]:
    boxes: dict[int, list[Box]] = {}
    for item in json.loads(path.read_text(encoding="utf-8")):
        if item["score"] >= SCORE:
            box = (item["bbox"], item["category_id"], item["score"])
            boxes.setdefault(item["image_id"], []).append(box)
    for found in boxes.values():
        found.sort(key=lambda box: box[2])
    return boxes


def _slides(run: Run, count: int, found: dict[str, dict[int, list[Box]]]) -> list[Slide]:
    init_default_scope("mmdet")
    dataset = DATASETS.build(Config.fromfile(run.config).val_dataloader.dataset)
    names = dict(zip(dataset.cat_ids, dataset.metainfo["classes"], strict=True))
    slides = []
    for i in range(min(count, len(dataset))):
        info: dict[str, Any] = dataset.get_data_info(i)
        image = Image.fromarray(read_image(info["img_path"])[..., ::-1])
        truth: list[Box] = []
        for instance in info["instances"]:
            x1, y1, x2, y2 = instance["bbox"]
            category = dataset.cat_ids[instance["bbox_label"]]
            truth.append(([x1, y1, x2 - x1, y2 - y1], category, None))
        panels = {TRUTH: truth} | {cell: by.get(info["img_id"], []) for cell, by in found.items()}
        slides.append(
            Slide(
                Path(info["img_path"]).name,
                {title: _draw(image, boxes, names) for title, boxes in panels.items()},
                {title: len(boxes) for title, boxes in panels.items()},
            )
        )
    return slides


def _draw(image: Image.Image, boxes: list[Box], names: dict[int, str]) -> bytes:
    scale = min(max(max(image.size), SIDES[0]), SIDES[1]) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    unit = max(size) / 128  # lines and text grow with the image: a page shows all at one size
    font = ImageFont.truetype(findfont("DejaVu Sans"), round(5.2 * unit))
    ids = list(names)
    labels = []
    for (x, y, width, height), category, score in boxes:
        colour = _colour(ids.index(category), len(ids))
        x1, y1, x2, y2 = (round(v * scale) for v in (x, y, x + width, y + height))
        x2, y2 = max(x1, x2), max(y1, y2)
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black")
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=round(unit))
        text = names[category] + ("" if score is None else f" {score:.2f}")
        labels.append((x1, y1, text, colour))
    line = sum(font.getmetrics())
    placed: list[tuple[float, float, float]] = []  # x1, x2, y
    for x, y, text, colour in reversed(labels):  # over all boxes, the best where it belongs
        width = draw.textlength(text, font=font) + unit
        x, y = max(0, min(x, image.width - width)), max(0, y - line)
        while any(x < x2 and x1 < x + width and abs(y - other) < line for x1, x2, other in placed):
            y += 1
        placed.append((x, x + width, y))
        draw.rectangle((x, y, x + width, y + line - 1), fill=colour)
        draw.text((x + unit / 2, y), text, fill="black", font=font)
    out = io.BytesIO()
    image.save(out, "webp", quality=88)
    return out.getvalue()


def _colour(index: int, count: int) -> tuple[int, int, int]:
    """Bright ones that black text can be read on, neighbours apart."""
    hue = index / count if count <= 12 else index * 0.618034 % 1
    red, green, blue = colorsys.hls_to_rgb(hue, 0.68, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
