"""Stands in for mmcv's compiled operators, ``mmcv._ext``, where mmcv is installed without them.

mmdet imports all of them at start; a detector here calls two, which torchvision has too: NMS, and
RoIAlign to crop the masks that Mask R-CNN learns from.
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


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign, by ``torchvision.ops.roi_align``, written to ``output``; it has no gradient.

    Args:
        input: [N, C, H, W].
        rois: [K, 5], (batch index, x1, y1, x2, y2) in pixels of the image.
        output: [K, C, aligned_height, aligned_width].
        argmax_y, argmax_x: not used, as only maxima need them.
        pool_mode: 1 for the mean of a bin's samples; 0, their maximum, is not supported.
        spatial_scale, sampling_ratio, aligned: as in torchvision.

    Raises:
        ValueError: another pool_mode.
    """
    if pool_mode != 1:
        raise ValueError("roi_align: pool_mode: expected 'avg'; compiled mmcv operators have 'max'")
    size = (aligned_height, aligned_width)
    output.copy_(
        torchvision.ops.roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned)
    )


def __getattr__(name: str):
    # What asks for a dunder is Python itself, looking at a module.
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise RuntimeError(
            f"mmcv's operator {name!r} is not compiled: mmcv is installed without its operators, "
            "of which the detectors of this repository need none. To compile them (about ten "
            "minutes; a C++ compiler, and for a GPU nvcc): ./scripts/setup.sh --mmcv-ops"
        )

    return missing


def register() -> None:
    """Make this module ``mmcv._ext`` if mmcv has none that loads."""
    try:
        importlib.import_module("mmcv._ext")
    except ImportError:
        sys.modules["mmcv._ext"] = sys.modules[__name__]
