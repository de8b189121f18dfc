"""An exported detector as one call, and how far it is from the one that it was made of."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dcndet.data.errors import DataError
from mmengine.registry import init_default_scope
from scipy.optimize import linear_sum_assignment

from ..engine.errors import EngineError
from ..inference import Detections, Detector
from .exported_model import ExportedModel


class ExportedDetector(Detector):
    """A file of `export`, used like a `Detector`: pictures in, `Detections` out.

    Attributes:
        classes: the names of all classes, by label.
        model: the `ExportedModel`.

    Args:
        file: as in `ExportedModel`.

    Raises:
        EngineError: as `ExportedModel`; and in a call, a picture that the config's test pipeline
            does not bring to the size of the export.
    """

    def __init__(self, file: str | Path) -> None:
        init_default_scope("mmdet")
        self.model = ExportedModel(file)
        self.classes = tuple(self.model.metadata["classes"])
        self._amp = None
        self._use_pipeline(_with_tuples(self.model.metadata["pipeline"]))

    def read(self, path: str | Path) -> np.ndarray:
        """As `Detector.read`.

        Raises:
            DataError: also where the picture is of another size.
        """
        picture = super().read(path)
        try:
            self.model.check_size(self.prepare([picture])[1]["inputs"][0])
        except EngineError as error:
            raise DataError(f"{path}: {error}") from error
        return picture


def _with_tuples(value):
    """As a config has it: JSON knows only lists, and mmcv takes only tuples for a size."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        items = map(_with_tuples, value)
        return list(items) if any(isinstance(item, dict) for item in value) else tuple(items)
    return value


@dataclass(frozen=True)
class Difference:
    """Between two detectors' results on one picture.

    Attributes:
        found: how many detections each has.
        matched: pairs of the same class whose corners are less than a pixel apart, and their
            scores less than 0.01.
        boxes: the largest distance of a corner along an axis among the pairs, in pixels.
        scores: the largest difference of scores among the pairs.
    """

    found: tuple[int, int]
    matched: int
    boxes: float
    scores: float

    @property
    def complete(self) -> bool:
        """Whether all detections match one to one."""
        return self.found == (self.matched, self.matched)

    def __str__(self) -> str:
        return (
            f"{self.matched} of {self.found[0]} and {self.found[1]} detections match; boxes "
            f"differ by at most {self.boxes:.1e} pixels, scores by {self.scores:.1e}"
        )


def compare(one: Detections, other: Detections) -> Difference:
    """Match detections of the same picture."""
    corners = one.boxes[:, None] - other.boxes
    apart = corners.abs().amax(-1) if len(one) and len(other) else corners.sum(-1)
    other_class = one.labels[:, None] != other.labels
    other_score = (one.scores[:, None] - other.scores).abs() >= 0.01
    apart = apart.masked_fill(other_class | other_score, np.inf)
    rows, columns = linear_sum_assignment(apart.clamp(max=1e6))
    pairs = [(i, j) for i, j in zip(rows, columns, strict=True) if apart[i, j] < 1]
    return Difference(
        (len(one), len(other)),
        len(pairs),
        max((apart[i, j].item() for i, j in pairs), default=0.0),
        max((abs(one.scores[i] - other.scores[j]).item() for i, j in pairs), default=0.0),
    )
