"""Detector parts, registered with mmdet: importing it makes their names known."""

from . import backbones, engine, roi_heads

__all__ = ["backbones", "engine", "roi_heads"]
