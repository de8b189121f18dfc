"""Pascal VOC annotations (one XML an image, lists of images in ImageSets/Main) to COCO format.

VOC counts pixels from 1 and a box holds its last ones: xmin = 1, xmax = W is the whole width. COCO
measures from the image's left edge, so x = xmin - 1 and width = xmax - xmin + 1. An object that VOC
calls ``difficult`` becomes ``iscrowd`` = 1, which is how COCO leaves an object out of recall and of
false positives; training ignores it too.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from .coco import write_annotations
from .errors import DataError
from .loading import read_image

SPLITS = ("train", "val", "trainval", "test")


@dataclass
class Converted:
    """What became of a split: the file written (None if no image was good) and what it counts."""

    split: str
    path: Path | None
    images: int
    skipped: int
    boxes: Counter
    problems: list[str] = field(repr=False)


@dataclass
class _Image:
    file_name: str
    width: int
    height: int
    objects: list[tuple[str, list[float], int]]  # name, VOC box, difficult


def convert_voc(root, out=None, splits=None, classes=None):
    """Convert a Pascal VOC dataset to COCO format: one JSON file a split.

    What is bad is left out and listed, the rest is kept. A bad image is one whose XML or picture is
    missing, empty or broken, or whose size is absent or differs between the two; a bad box has no
    area (xmax not above xmin, say), is outside of the image, not made of finite numbers, or of an
    unknown class. A box that sticks out of the image is listed and clipped. Images have the ids
    1, 2, ... in the order of the split's list, and a ``file_name`` relative to ``root/JPEGImages``.

    Args:
        root (str | Path): the folder of Annotations, ImageSets/Main and JPEGImages.
        out (str | Path, optional): folder of the JSON files; default ``root/annotations``.
        splits (Sequence[str], optional): lists in ImageSets/Main; default those of train, val,
            trainval and test which exist.
        classes (Sequence[str], optional): the categories, in the order of their ids; default every
            name that occurs in the splits, sorted.

    Returns:
        list[Converted]: one a split.

    Raises:
        DataError: a folder or a list of images is missing.
    """
    root = Path(root)
    lists, annotations, pictures = (
        root / name for name in ("ImageSets/Main", "Annotations", "JPEGImages")
    )
    for folder in (lists, annotations, pictures):
        if not folder.is_dir():
            raise DataError(f"{root} is not a Pascal VOC dataset: it has no folder {folder}")
    splits = splits or [split for split in SPLITS if (lists / f"{split}.txt").is_file()]
    if not splits:
        raise DataError(f"{lists} has none of {', '.join(f'{split}.txt' for split in SPLITS)}")
    names = {split: _read_list(lists / f"{split}.txt") for split in splits}

    # A picture is found by the name of its XML: <filename> often is that of some other machine.
    picture_of = {path.stem: path for path in sorted(pictures.iterdir(), reverse=True)}
    images, faults = {}, {}
    for name in dict.fromkeys(name for split in splits for name in names[split]):
        try:
            images[name] = _read_image(annotations / f"{name}.xml", picture_of.get(name))
        except DataError as error:
            faults[name] = str(error)
    if not classes:
        classes = sorted(
            {label for image in images.values() for label, _, _ in image.objects} - {""}
        )

    out = root / "annotations" if out is None else Path(out)
    return [
        _convert_split(split, names[split], images, faults, annotations, classes, out)
        for split in splits
    ]


def _convert_split(split, names, images, faults, annotations, classes, out):
    problems, coco_images, coco_annotations = [], [], []
    boxes = Counter(dict.fromkeys(classes, 0))
    for name, count in Counter(names).items():
        if count > 1:
            problems.append(f"{split}.txt lists {name} {count} times: kept once")
        if name in faults:
            problems.append(faults[name])
            continue
        image = images[name]
        image_id = len(coco_images) + 1
        coco_images.append(
            {
                "id": image_id,
                "file_name": image.file_name,
                "width": image.width,
                "height": image.height,
            }
        )
        for label, voc_box, difficult in image.objects:
            where = f"{annotations / name}.xml: {label} {voc_box}"
            if label not in classes:
                problems.append(f"{where}: unknown class, box skipped")
                continue
            box, fault = _coco_box(voc_box, image.width, image.height)
            if fault:
                problems.append(f"{where}: {fault}")
            if box:
                boxes[label] += 1
                coco_annotations.append(
                    {
                        "image_id": image_id,
                        "category_id": classes.index(label) + 1,
                        "bbox": box,
                        "iscrowd": difficult,
                    }
                )
    path = None
    if coco_images:
        path = out / f"{split}.json"
        info = {"description": f"{split} of a Pascal VOC dataset"}
        write_annotations(path, classes, coco_images, coco_annotations, info)
    skipped = len(set(names)) - len(coco_images)
    return Converted(split, path, len(coco_images), skipped, boxes, problems)


def _read_list(path):
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list of images {path}: {error}") from error


def _read_image(path, picture):
    try:
        xml = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}, image skipped") from error
    if not xml.strip():
        raise DataError(f"{path}: empty, image skipped")
    try:
        # expat fetches no external entities: one that occurs in the text is a ParseError.
        tree = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path}: broken XML ({error}), image skipped") from error
    if picture is None:
        raise DataError(f"{path}: no such image in JPEGImages, image skipped")
    try:
        height, width = read_image(picture).shape[:2]
    except DataError as error:
        raise DataError(f"{path}: {error}, image skipped") from error
    stated = [tree.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    if [_number(side) for side in stated] != [width, height]:
        raise DataError(
            f"{path}: states the size {'x'.join(stated) if any(stated) else 'nowhere'}, but "
            f"{picture.name} is {width}x{height} pixels, image skipped"
        )
    objects = [
        (
            item.findtext("name", "").strip(),
            [_number(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")],
            int(item.findtext("difficult", "0").strip() == "1"),
        )
        for item in tree.findall("object")
    ]
    return _Image(picture.name, width, height, objects)


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _coco_box(voc_box, width, height):
    """A VOC box as COCO's [x, y, width, height], or None, and what is wrong with it, or None."""
    if not all(map(math.isfinite, voc_box)):
        return None, "not four finite numbers, box skipped"
    xmin, ymin, xmax, ymax = voc_box
    # By the letter xmax = xmin is a box of one pixel; in practice it is a slip of the mouse.
    if xmax <= xmin or ymax <= ymin:
        return None, "no area, box skipped"
    x, y, right, bottom = max(xmin - 1, 0), max(ymin - 1, 0), min(xmax, width), min(ymax, height)
    if right <= x or bottom <= y:
        return None, f"outside of the image ({width}x{height} pixels), box skipped"
    clipped = [x + 1, y + 1, right, bottom] != voc_box
    return [x, y, right - x, bottom - y], "sticks out of the image, clipped" if clipped else None
