"""Detection data: registers DetectionDataset and LoadImageFromFile with mmdet's registry."""

from . import coco, loading

__all__ = ["coco", "loading"]
