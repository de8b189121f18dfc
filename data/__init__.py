"""Datasets, DetectionMetric and transforms, registered with mmdet."""

from dcndet import quiet_import

with quiet_import():
    from . import coco, image_folder, loading, mnist

__all__ = ["coco", "image_folder", "loading", "mnist"]
