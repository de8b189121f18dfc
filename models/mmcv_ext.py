"""Stands in for mmcv's compiled operators, ``mmcv._ext``, where mmcv is installed without them.

mmdet imports all of them at start; a detector here calls one, NMS, which torchvision has too.
``scripts/setup.sh`` copies this file to ``mmcv/_ext.py``, where compiled operators would take
precedence; importing ``dcndet.models`` registers it where neither is there or the compiled ones do
not load.
"""

import importlib
import sys

import torchvision
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Non-maximum suppression, by ``torchvision.ops.nms``.

    Args:
        boxes: [N, 4], (x1, y1, x2, y2) in pixels.
        scores: [N].
        iou_threshold: boxes that overlap a better one by more than this are removed.
        offset: what is added to a box's width and height; only 0 is supported.

    Returns:
        Indices of the boxes that are kept, by falling score, int64.

    Raises:
        ValueError: another offset.
    """
    if offset != 0:
        raise ValueError(f"nms: offset: expected 0, got {offset}; compiled mmcv operators have 1")
    return torchvision.ops.nms(boxes, scores, iou_threshold)


def __getattr__(name: str):
    # What asks for a dunder is Python itself, looking at a module.
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise RuntimeError(
            f"mmcv's operator {name!r} is not compiled: mmcv is installed without its operators, "
            "of which the detectors of this repository use none. To compile them (about ten "
            "minutes; a C++ compiler, and for a GPU nvcc): ./scripts/setup.sh --mmcv-ops"
        )

    return missing


def register() -> None:
    """Make this module ``mmcv._ext`` if mmcv has none that loads."""
    try:
        importlib.import_module("mmcv._ext")
    except ImportError:
        sys.modules["mmcv._ext"] = sys.modules[__name__]
