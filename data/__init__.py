"""Detection data: registers DetectionDataset and LoadImage with mmdet's registry."""

from . import coco, loading

__all__ = ["coco", "loading"]
