"""The whole check of a set: every annotation, every image decoded."""

import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from tqdm.contrib.concurrent import process_map

from .coco import DetectionDataset, read_annotations, sort_boxes
from .custom import datasets, find_splits, image_folder
from .errors import DataError
from .images import decoding_fault


def check_set(
    ann_file: str | Path,
    images: str | Path,
    dataset: DetectionDataset | None = None,
    workers: int | None = None,
    outside_paths: bool = False,
) -> list[str]:
    """Everything that is wrong with a COCO file and its images, one line per fault.

    The file's format; boxes that are not finite, have no area, lie outside their image, reach more
    than a pixel beyond it or are smaller than a pixel; and each image decoded as in training:
    missing, empty, truncated, not an image, or of another size than annotated. Shows a progress
    bar.

    Args:
        ann_file: the file.
        images: the folder of its images.
        dataset: whose classes the file's categories are to be; need not be opened.
        workers: processes that decode; default one per core.
        outside_paths: file names may leave the folder, as ``dataset`` may allow too.
    """
    try:
        outside_paths = outside_paths or (dataset is not None and dataset.outside_paths)
        content, _ = read_annotations(ann_file, test_mode=True, outside_paths=outside_paths)
        if dataset is not None:
            dataset.check_classes(content)
    except DataError as error:
        return [str(error)]
    _, bad, beyond = sort_boxes(content, test_mode=False)
    jobs = [
        (os.path.join(images, image["file_name"]), image["width"], image["height"])
        for image in content["images"]
    ]
    faults = (
        process_map(
            decoding_fault,
            *zip(*jobs, strict=True),
            max_workers=workers,
            chunksize=8,
            desc=str(ann_file),
        )
        if jobs
        else []
    )
    return [*filter(None, faults), *(f"{ann_file}: {line}" for line in bad + beyond)]


def sets_of(target: str | Path, outside_paths: bool = False) -> Iterator[tuple[str, str, None]]:
    """Annotation file and image folder of what a folder or a COCO file holds.

    Args:
        target: the folder or file.
        outside_paths: file names may leave the image folder.

    Raises:
        DataError: see :func:`.custom.find_splits` and :func:`.custom.image_folder`.
    """
    target = Path(target)
    if target.is_dir():
        for split in find_splits(target, outside_paths=outside_paths).values():
            yield str(split.ann_file), str(split.images), None
    else:
        content, _ = read_annotations(target, test_mode=True, outside_paths=outside_paths)
        below = target.parent.name.lower() == "annotations"
        root = target.parent.parent if below else target.parent
        yield str(target), str(image_folder(root, target, content)), None


def sets_of_config(cfg: Config) -> Iterator[tuple[str, str, DetectionDataset]]:
    """Annotation file, image folder and unopened dataset of each set that ``cfg`` reads."""
    for stage in ("train", "val", "test"):
        for settings in datasets((cfg.get(f"{stage}_dataloader") or {}).get("dataset", {})):
            kept = {"data_root", "ann_file", "data_prefix", "metainfo", "outside_paths"}
            kept &= settings.keys()
            if "ann_file" in kept:
                dataset = DetectionDataset(**{key: settings[key] for key in kept}, lazy_init=True)
                yield dataset.ann_file, dataset.data_prefix["img"], dataset
