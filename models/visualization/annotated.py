"""Annotated images of a config's validation set, in the pixels of their files."""

from dataclasses import dataclass

import numpy as np
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope
from pycocotools import mask as rle

from ..engine.errors import EngineError


@dataclass(frozen=True, eq=False)
class Annotation:
    """An annotated object.

    Attributes:
        box: (x1, y1, x2, y2) in pixels of the image, from its corner.
        label: index of its class.
        mask: bool [H, W], the object's; where no mask is annotated, the box's.
    """

    box: tuple[float, float, float, float]
    label: int
    mask: np.ndarray


def validation_set(cfg: Config) -> BaseDataset:
    """The dataset of `val_dataloader`, with all of its images.

    Raises:
        DataError, OSError: as the dataset does of what is wrong with its files.
        EngineError: the config has no `val_dataloader`.
    """
    if not cfg.get("val_dataloader"):
        raise EngineError(f"{cfg.filename}: has no val_dataloader to take images from")
    init_default_scope(cfg.get("default_scope", "mmdet"))
    dataset = cfg.val_dataloader.dataset
    together = (
        {} if "datasets" in dataset else {"test_mode": True}
    )  # ConcatDataset's have their own
    return DATASETS.build(dict(dataset, **together))


def annotations_of(info: dict) -> list[Annotation]:
    """The objects of an image, crowds left out.

    Args:
        info: what a dataset's `get_data_info` returns.
    """
    found = []
    for instance in info["instances"]:
        if instance.get("ignore_flag"):
            continue
        box = tuple(map(float, instance["bbox"]))
        size = (info["height"], info["width"])
        mask = _mask(instance["mask"], *size) if "mask" in instance else _inside(box, *size)
        found.append(Annotation(box, instance["bbox_label"], mask))
    return found


def _mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Of COCO's polygons or run lengths, compressed or not."""
    if isinstance(segmentation, list):
        segmentation = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, height, width)
    return rle.decode(segmentation).astype(bool)


def _inside(box: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """The pixels whose centres are in the box."""
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    x1, y1, x2, y2 = box
    return (x1 <= x) & (x < x2) & (y1 <= y) & (y < y2)
