"""Detection data: registers DetectionDataset, DetectionMetric and LoadImage with mmdet."""

from . import coco, loading

__all__ = ["coco", "loading"]
