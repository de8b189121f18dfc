"""Detector parts, registered with mmdet: importing this package makes their names known to configs."""

from . import backbones, engine, roi_heads

__all__ = ["backbones", "engine", "roi_heads"]
