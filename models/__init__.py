"""Detector parts, registered with mmdet: importing it makes their names known."""

from . import backbones, detectors, engine, roi_heads

__all__ = ["backbones", "detectors", "engine", "roi_heads"]
