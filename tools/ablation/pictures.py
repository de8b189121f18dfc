"""Detections of a study's cells, drawn side by side."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from dcndet.data.errors import DataError
from dcndet.data.loading import read_image
from dcndet.models.engine import CheckpointError, EngineError
from dcndet.models.inference import Detector
from dcndet.models.visualization import draw_boxes
from mmdet.registry import DATASETS
from mmengine.registry import init_default_scope
from PIL import Image

from .results import Results
from .study import Run, is_classification

SCORE = 0.5  # what is drawn has at least this


@dataclass
class Slide:
    """One image: a panel as annotated and one for each cell, by title."""

    path: Path
    image: np.ndarray  # RGB
    panels: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # caption, WebP

    def add(self, title: str, boxes, labels, scores, classes) -> None:
        out = io.BytesIO()
        picture = draw_boxes(self.image, boxes, labels, scores, classes, max_side=800)
        Image.fromarray(picture).save(out, "webp", quality=88)
        caption = f"{title}: {len(boxes)} box{'es' * (len(boxes) != 1)}"
        self.panels[title] = caption, out.getvalue()


def make_pictures(results: Results) -> tuple[list[Slide], list[str]]:
    """Draw the first images of the evaluation set with what the study's `pictures['cells']` find.

    Of a cell it is the run with the lowest seed; without names it is the baseline and the cell with
    the highest mean AP. Returns the pictures, and why a cell has none. A classifier has none.
    """
    study, problems = results.study, []
    if is_classification(study.config):
        return [], []
    init_default_scope("mmdet")
    try:
        slides = _annotated(study.config.val_dataloader.dataset, study.pictures["images"])
    except DataError as error:
        return [], [f"the evaluation set cannot be shown: {error}"]
    shown = study.pictures["cells"] or [study.baseline.name, results.best.name]
    for name in dict.fromkeys(shown) if slides else ():
        try:
            found = _detector(results.finished(name))([slide.path for slide in slides], SCORE)
        except (EngineError, DataError, OSError, RuntimeError) as error:
            problems.append(f"{name}: {error}")
            continue
        for slide, one in zip(slides, found, strict=True):
            slide.add(name, one.boxes, one.labels.tolist(), one.scores.tolist(), one.classes)
    return slides, problems


def _annotated(config: dict, count: int) -> list[Slide]:
    dataset = DATASETS.build(config)
    slides = []
    for i in range(min(count, len(dataset))):
        info = dataset.get_data_info(i)
        slide = Slide(Path(info["img_path"]), read_image(info["img_path"])[..., ::-1])
        boxes = [each["bbox"] for each in info["instances"]]
        labels = [each["bbox_label"] for each in info["instances"]]
        slide.add("annotated", boxes, labels, None, dataset.metainfo["classes"])
        slides.append(slide)
    return slides


def _detector(runs: list[Run]) -> Detector:
    """With the last weights of the run that has the lowest seed."""
    if not runs:
        raise CheckpointError("no run has finished")
    run = min(runs, key=lambda run: run.seed)
    try:
        checkpoint = (run.folder / "last_checkpoint").read_text(encoding="utf-8").strip()
    except OSError:
        raise CheckpointError(f"no checkpoint in {run.folder}") from None
    return Detector(run.config, run.folder / Path(checkpoint).name)  # it may have moved since
