"""Detection data: registers DetectionDataset, DetectionMetric and two transforms with mmdet."""

from dcndet import quiet_import

with quiet_import():
    from . import coco, loading

__all__ = ["coco", "loading"]
