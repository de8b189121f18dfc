"""One's own set for any config: what lies in a folder, and the settings that follow from it."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from .coco import read_annotations
from .errors import DataError

NAMES = {
    "train": ("train",),
    "trainval": ("trainval",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
LOOKED_FOR = (
    "annotations/{0}.json, annotations/instances_{0}*.json, {0}.json, instances_{0}*.json, "
)
LOOKED_FOR += "{0}/_annotations.coco.json"
IMAGE_FOLDERS = ("images", "jpegimages", "imgs", "img")


@dataclass
class Split:
    """A COCO file, the folder of its images (both below ``root``), and what the file holds."""

    ann_file: Path
    images: Path
    content: dict


def use_data(cfg: Config, root: str | Path, train: bool = True):
    """Have ``cfg`` train and evaluate on the set in the folder ``root``.

    Sets the annotation files, image folders and classes of the datasets, the annotation files of
    the evaluators, and ``num_classes`` of every head. The files are those of :func:`find_splits`.
    The classes are the training file's categories in its order, except one that only names the
    others' ``supercategory`` and has no object (as Roboflow exports it).

    Args:
        cfg: the config; it is changed.
        root: the folder.
        train: whether the set has to have a training split; without one the classes are those of
            the test split.

    Raises:
        DataError: nothing fits, or more than one file does; the file is bad; the config is not
            for a detector evaluated by COCO's metric, or trains masks that the set does not have.
    """
    root = Path(root)
    loaders = [cfg.get(f"{stage}_dataloader") or {} for stage in ("train", "val", "test")]
    outside_paths = any(
        dataset.get("outside_paths")
        for loader in loaders
        for dataset in datasets(loader.get("dataset", {}))
    )
    splits = find_splits(root, train, outside_paths)
    first = splits["train" if train else "test"]
    classes = _classes(first)
    for stage, split in splits.items():
        settings = {
            "type": "DetectionDataset",
            "data_root": f"{root}{os.sep}",
            "ann_file": str(split.ann_file.relative_to(root)),
            "data_prefix": {"img": os.path.join(split.images.relative_to(root), "")},
            "metainfo": {"classes": classes},
        }
        for dataset in datasets(cfg[f"{stage}_dataloader"]["dataset"]):
            dataset.update(settings)
            _check_masks(dataset, split, cfg.filename)
        if stage != "train":
            _set_evaluator(cfg, f"{stage}_evaluator", split)
    if "data_root" in cfg:
        cfg.data_root = settings["data_root"]
    if "metainfo" in cfg:
        cfg.metainfo = settings["metainfo"]
    if not _set_num_classes(cfg.model, len(classes)):
        raise DataError(f"--data: no head in the model of {cfg.filename} has num_classes")
    images = len(first.content["images"])
    if train and images < (batch := cfg.train_dataloader.get("batch_size", 1)):
        print_log(
            f"{first.ann_file}: its {images} images are fewer than a batch of {batch}, so that an "
            "epoch is a single step; train for more epochs, or set train_dataloader.batch_size",
            logger="current",
            level=logging.WARNING,
        )


def datasets(dataset: dict) -> Iterator[dict]:
    """The configs of the datasets that read files, inside of wrappers like RepeatDataset."""
    if "datasets" in dataset:
        for part in dataset["datasets"]:
            yield from datasets(part)
    elif "dataset" in dataset:
        yield from datasets(dataset["dataset"])
    else:
        yield dataset


def find_splits(
    root: str | Path, train: bool = True, outside_paths: bool = False
) -> dict[str, Split]:
    """What to train on, to evaluate in training and to test, in the folder ``root``.

    For each of train, val (or valid) and test, the file is ``annotations/train.json``,
    ``annotations/instances_train*.json``, one of these in ``root`` itself, or
    ``train/_annotations.coco.json``. Without val its place is taken by test, and the reverse. If
    there is no train but trainval, it is that, and evaluated is test.

    The images are in the folder in which the files of ``file_name`` exist: the annotations' own,
    one named like the split (``train``, ``train2017``, ``images/train``), ``images`` or
    ``JPEGImages``, ``root`` itself or any other below it.

    Args:
        root: the folder.
        train: whether there has to be something to train on.
        outside_paths: file names may leave the image folder, see :class:`.coco.DetectionDataset`.

    Returns:
        The splits ``train`` (if asked for), ``val`` and ``test``.

    Raises:
        DataError: one is missing or bad, or more than one file or folder fits.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no such folder: {root}")
    files = {split: _annotation_file(root, split) for split in NAMES}
    if files["train"] is None and files["trainval"] is not None:
        files["train"], files["val"] = files["trainval"], None
    chosen = {
        "train": files["train"],
        "val": files["val"] or files["test"],
        "test": files["test"] or files["val"],
    }
    if not train:
        del chosen["train"]
    if missing := [split for split, file in chosen.items() if file is None]:
        raise DataError(_nothing_found(root, missing[0], chosen.get("train")))
    read = {}
    for split, file in chosen.items():
        if file not in read:
            content, _ = read_annotations(
                file, test_mode=split != "train", outside_paths=outside_paths
            )
            read[file] = Split(file, image_folder(root, file, content, split), content)
    return {split: read[file] for split, file in chosen.items()}


def image_folder(
    root: str | Path, ann_file: str | Path, content: dict, split: str | None = None
) -> Path:
    """The likeliest folder below ``root`` in which at least half of a COCO file's images exist.

    Where there is none, the one in which most of them do.

    Raises:
        DataError: there is none, or there are two that nothing tells apart.
    """
    root, ann_file = Path(root), Path(ann_file)
    names = [image["file_name"] for image in content["images"]]
    sample = names[:: max(1, len(names) // 50)]
    best = 0, []
    for folders in _image_folders(root, ann_file, split):
        found = {}
        for folder in folders:
            if count := sum((folder / name).is_file() for name in sample):
                found[folder.resolve()] = folder, count
        most = max((count for _, count in found.values()), default=0)
        if most > best[0]:
            best = most, [folder for folder, count in found.values() if count == most]
        if 2 * most >= len(sample):  # a few that are missing here are not to be found elsewhere:
            break  # train/1.jpg is another picture than val/1.jpg
    count, folders = best
    if not folders:
        raise DataError(
            f"the images of {ann_file} are in no folder below {root}: looked for {names[0]} in "
            f"{root}, its subfolders and theirs"
        )
    if len(folders) > 1:
        raise DataError(
            f"the images of {ann_file} could be in {' or '.join(map(str, folders))}: remove or "
            "rename one"
        )
    return folders[0]


def _image_folders(root, ann_file, split):
    """Where images may be: lists of folders, the likeliest list first."""
    yield [ann_file.parent]
    named = NAMES.get(split or ann_file.stem, ())
    yield [
        folder
        for pattern in ("*", "*/*")
        for folder in _folders(root, pattern)
        if any(
            re.fullmatch(rf"{name}\d*", part.lower())
            for name in named
            for part in _parts(root, folder)
        )
    ]
    yield [folder for folder in _folders(root, "*") if folder.name.lower() in IMAGE_FOLDERS]
    yield [root]
    yield _folders(root, "*")
    yield _folders(root, "*/*")


def _parts(root, folder):
    return folder.relative_to(root).parts


def _folders(root, pattern):
    return [path for path in sorted(root.glob(pattern)) if path.is_dir()]


def _annotation_file(root, split):
    """The COCO file of a split, or None."""
    folders = [root, *(path for path in _folders(root, "*") if path.name.lower() == "annotations")]
    found = {}
    for name in NAMES[split]:
        pattern = re.compile(
            rf"{name}\.json|instances_{name}(?!val|idation).*\.json", re.IGNORECASE
        )
        paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
        paths = [path for path in paths if pattern.fullmatch(path.name)]
        for path in [*paths, root / name / "_annotations.coco.json"]:
            if path.is_file():
                found[path.resolve()] = path
    if len(found) > 1:
        raise DataError(
            f"{root}: which is the set to {'test on' if split == 'test' else split + ' on'}: "
            f"{' or '.join(map(str, found.values()))}? Remove or rename the others"
        )
    return next(iter(found.values()), None)


def _nothing_found(root, split, train_file):
    name = f"{root}: found nothing to {'train on' if split == 'train' else 'evaluate on'} "
    names = ("train", "trainval") if split == "train" else ("val", "valid", "test")
    looked = f"(looked for {LOOKED_FOR.format(names[0])}, and for {', '.join(names[1:])} likewise)"
    if train_file is not None:
        hint = f"; tools/split_coco.py takes a part of {train_file} for it"
    elif next(root.glob("*/*.xml"), None) or next(root.glob("*.xml"), None):
        hint = f"; it holds XML: if it is Pascal VOC, run python tools/convert_voc.py {root}"
    elif next(root.glob("*.y*ml"), None):
        hint = "; if these are YOLO labels, README's section on own data has the command for them"
    elif files := [*root.glob("*.json"), *root.glob("annotations/*.json")]:
        hint = f"; to split one file in two, run python tools/split_coco.py {files[0]}"
    else:
        hint = ""
    return name + looked + hint


def _classes(split):
    categories = split.content["categories"]
    used = {ann["category_id"] for ann in split.content["annotations"]}
    classes = tuple(
        category["name"]
        for category in categories
        if category["id"] in used
        or not any(
            other.get("supercategory") == category["name"]
            for other in categories
            if other is not category
        )
    )
    if not classes:
        raise DataError(f"annotation file {split.ann_file} has no category")
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise DataError(f"annotation file {split.ann_file} has two categories named {twice!r}")
    return classes


def _check_masks(dataset, split, config):
    wants = any(step.get("with_mask") for step in dataset.get("pipeline", ()))
    annotations = split.content["annotations"]
    if wants and (bare := [ann["id"] for ann in annotations if not ann.get("segmentation")]):
        raise DataError(
            f"{config} is for masks, but {len(bare)} of the {len(annotations)} annotations in "
            f"{split.ann_file} have no segmentation (annotation {bare[0]} is the first)"
        )


def _set_evaluator(cfg, key, split):
    evaluators = cfg[key] if isinstance(cfg[key], Sequence) else [cfg[key]]
    coco = [each for each in evaluators if each["type"] in ("CocoMetric", "DetectionMetric")]
    if not coco:
        raise DataError(f"--data: {key} of {cfg.filename} has no DetectionMetric or CocoMetric")
    for each in coco:
        each.update(type="DetectionMetric", ann_file=str(split.ann_file))


def _set_num_classes(model, count):
    """Set ``num_classes`` of every head (the RPN tells objects only), and return how many."""
    if isinstance(model, dict):
        done = 0
        for key, value in model.items():
            if key == "num_classes":
                model[key] = count
                done += 1
            elif key not in ("backbone", "rpn_head"):
                done += _set_num_classes(value, count)
        return done
    if isinstance(model, (list, tuple)):
        return sum(_set_num_classes(value, count) for value in model)
    return 0


def print_command(root: str | Path):
    """Print how to train on the set in ``root``, or what is still missing for it."""
    try:
        find_splits(root)
    except DataError as error:
        print(f"not ready to train on: {error}")
    else:
        print(f"train on it: python tools/train.py CONFIG --data {root}")
