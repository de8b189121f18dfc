"""Detector parts, registered with mmdet: importing it makes their names known."""

from dcndet import quiet_import

from . import mmcv_ext

mmcv_ext.register()  # before anything imports mmdet

with quiet_import():
    from . import (
        backbones,
        classifiers,
        dense_heads,
        detectors,
        engine,
        necks,
        roi_heads,
        visualization,
    )
    from .inference import Detections, Detector

__all__ = [
    "Detections",
    "Detector",
    "backbones",
    "classifiers",
    "dense_heads",
    "detectors",
    "engine",
    "necks",
    "roi_heads",
    "visualization",
]
