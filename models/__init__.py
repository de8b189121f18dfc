"""Detector parts, registered with mmdet: importing it makes their names known."""

from . import mmcv_ext

mmcv_ext.register()  # before anything imports mmdet

from . import backbones, detectors, engine, roi_heads, visualization  # noqa: E402
from .inference import Detections, Detector  # noqa: E402

__all__ = [
    "Detections",
    "Detector",
    "backbones",
    "detectors",
    "engine",
    "roi_heads",
    "visualization",
]
