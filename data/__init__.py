"""Detection data: registers DetectionDataset and LoadImageFromFile with mmdet's registry."""

from dcndet import quiet_import

with quiet_import():
    from . import coco, loading

__all__ = ["coco", "loading"]
