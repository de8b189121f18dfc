"""Detector parts, registered with mmdet: importing it makes their names known."""

from dcndet import quiet_import

from . import mmcv_ext

mmcv_ext.register()  # before anything imports mmdet

with quiet_import():
    from . import backbones, detectors, engine, roi_heads

__all__ = ["backbones", "detectors", "engine", "roi_heads"]
