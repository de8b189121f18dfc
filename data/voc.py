"""Pascal VOC annotations (one XML per image, maybe lists of images) to COCO format.

VOC counts pixels from 1 and a box holds its last ones: xmin = 1, xmax = W is the whole width. COCO
measures from the image's left edge, so x = xmin - 1 and width = xmax - xmin + 1. An object that VOC
calls ``difficult`` becomes ``iscrowd`` = 1, which is how COCO leaves an object out of recall and of
false positives; training ignores it too.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from .coco import UNPRINTABLE, write_annotations
from .errors import DataError
from .loading import read_image
from .split import stratify

SPLITS = ("train", "val", "trainval", "test")
# Where VOC, LabelImg, Roboflow and others put them; the first that has such files is taken.
ANNOTATIONS = ("Annotations", "annotations", "annots", "Annots", "labels", "xmls", "xml")
PICTURES = ("JPEGImages", "images", "Images", "imgs", "img")
LISTS = ("ImageSets/Main", "ImageSets")
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}


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


def convert_voc(
    root: str | Path,
    out: str | Path | None = None,
    splits: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    lists: str | Path | None = None,
    val: float | None = None,
    seed: int = 0,
) -> list[Converted]:
    """Convert a Pascal VOC dataset to COCO format: one JSON file per split.

    What is bad is left out and listed, the rest is kept. A bad image is one whose XML or picture is
    missing, empty or broken, or whose size is absent or differs between the two; a bad box has no
    area (xmax not above xmin, say), is outside of the image, not made of finite numbers, or of an
    unknown class. A box that sticks out of the image is listed and clipped. Images have the ids
    1, 2, ... in the order of the split's list, and a ``file_name`` relative to ``images``.

    Args:
        root: the folder of all of it.
        out: folder of the JSON files; default ``root/annotations``, or ``root`` itself if that is
            the folder of the XML files (as ``Annotations`` is on some file systems).
        splits: names of lists; default those of train, val, trainval and test which exist.
        classes: the categories, in the order of their ids; default every name that occurs in the
            splits, sorted.
        annotations: folder of the XML files, below ``root`` or anywhere; default the first of
            ``Annotations``, ``annotations``, ``annots``, ``labels``, ... that has some, ``root``
            or its only subfolder that does.
        images: folder of the pictures; default ``JPEGImages``, ``images``, ..., in the same way.
        lists: folder of the lists of images, text files of a name per line, with or without an
            extension, or followed by 1, 0 or -1 as in VOC's lists for a class, where -1 leaves the
            image out; default ``ImageSets/Main`` or ``ImageSets``, if there is one.
        val: without lists, the share of the images that become the split val, the others being
            train, each class as evenly as possible (see :func:`.split.stratify`); default 0.2.
        seed: of that draw.

    Returns:
        One per split.

    Raises:
        DataError: folders or lists are missing: all are named; or ``val`` is given and there are
            lists.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no such folder: {root}")
    missing = []
    annotations = _find(root, annotations, ANNOTATIONS, {".xml"}, "--annotations", missing)
    images = _find(root, images, PICTURES, SUFFIXES, "--images", missing)
    lists = _find_lists(root, lists, missing)
    if lists is not None:
        splits = splits or [split for split in SPLITS if (lists / f"{split}.txt").is_file()]
        missing += [
            f"a list of images {lists / split}.txt"
            for split in splits
            if not (lists / f"{split}.txt").is_file()
        ]
        if not splits:
            missing.append(f"a list of images ({', '.join(f'{s}.txt' for s in SPLITS)}) in {lists}")
    elif splits:
        missing.append(f"a folder of lists of images for --splits ({', '.join(LISTS)}, or --lists)")
    if missing:
        raise DataError(f"{root} is not a Pascal VOC dataset: it lacks " + "; ".join(missing))
    if lists is not None and val is not None:
        raise DataError(f"--val would make a split, but {lists} has lists ({', '.join(splits)})")

    if lists is None:
        names = {None: sorted(path.stem for path in _files(annotations, {".xml"}))}
    else:
        names = {split: _read_list(lists / f"{split}.txt", annotations) for split in splits}
    # A picture is found by the name of its XML: <filename> often is that of some other machine.
    picture_of = {path.stem: path for path in reversed(_files(images, SUFFIXES))}
    good, faults = {}, {}
    for name in dict.fromkeys(name for listed in names.values() for name in listed):
        try:
            good[name] = _read_image(annotations / f"{name}.xml", picture_of.get(name), images)
        except DataError as error:
            faults[name] = str(error)
    if not classes:
        found = {label for image in good.values() for label, _, _ in image.objects}
        classes = sorted(found - {""})
    if lists is None:
        names = _split(names[None], good, 0.2 if val is None else val, seed)

    if out is None:
        out = root / "annotations"
        if out.exists() and out.samefile(annotations):
            out = root
    warnings = _differ_in_case(classes)
    converted = [
        _convert_split(split, listed, good, faults, annotations, classes, Path(out))
        for split, listed in names.items()
    ]
    for split in converted:
        split.problems[:0] = warnings
    return converted


def _find(root, given, names, suffixes, option, missing):
    """The folder with files of these ``suffixes``; what is missing is added to ``missing``."""
    if given is not None:
        for folder in (root / given, Path(given)):
            if _files(folder, suffixes):
                return folder
        missing.append(f"{option} {given}: no such folder, or it has no {'/'.join(suffixes)} file")
        return None
    subfolders = sorted(path for path in root.iterdir() if path.is_dir())
    known = [root / name for name in names if (root / name) in subfolders]
    if found := next((folder for folder in [*known, root] if _files(folder, suffixes)), None):
        return found
    others = [folder for folder in subfolders if _files(folder, suffixes)]
    if len(others) == 1:
        return others[0]
    what = "XML files" if ".xml" in suffixes else "pictures"
    several = f": it could be {' or '.join(map(str, others))}" if others else ""
    missing.append(f"a folder of {what} ({', '.join(names)}, or {option} FOLDER){several}")
    return None


def _find_lists(root, given, missing):
    if given is None:
        folders = [root / name for name in LISTS]
        return next((folder for folder in folders if any(folder.glob("*.txt"))), None)
    for folder in (root / given, Path(given)):
        if folder.is_dir():
            return folder
    missing.append(f"--lists {given}: no such folder")
    return None


def _files(folder, suffixes):
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)


def _split(names, good, share, seed):
    drawn = stratify(
        [{obj[0] for obj in good[name].objects} for name in names if name in good], share, seed
    )
    in_val = dict(zip((name for name in names if name in good), drawn, strict=True))
    # bad images are listed with the training images
    return {
        "train": [name for name in names if not in_val.get(name)],
        "val": [name for name in names if in_val.get(name)],
    }


def _differ_in_case(classes):
    alike = {}
    for name in classes:
        alike.setdefault(name.casefold(), []).append(name)
    return [
        f"classes {' and '.join(map(repr, names))} differ in nothing but case, and are kept apart: "
        "rename one in the XML if they are the same"
        for names in alike.values()
        if len(names) > 1
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


def _read_list(path, annotations):
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"cannot read the list of images {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the list of images {path} is not text in UTF-8: {error}") from error
    names = [_name(line.strip(), annotations) for line in lines]
    for i, name in enumerate(names, 1):
        if UNPRINTABLE.search(name):
            raise DataError(f"the list of images {path}: line {i} has control characters: {name!r}")
    return [name for name in names if name]


def _name(line, annotations):
    """The name of an image in a line of a list, empty if the line leaves it out."""
    if os.path.exists(annotations / f"{line}.xml"):  # Path.exists raises on a name too long
        return line
    flag = re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
    name = flag[1] if flag else line
    if flag and flag[2] == "-1":
        return ""
    path = Path(name)
    return path.stem if path.suffix.lower() in {*SUFFIXES, ".xml"} else name


def _read_image(path, picture, pictures):
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
        raise DataError(f"{path}: no such image in {pictures}, image skipped")
    try:
        height, width = read_image(picture).shape[:2]
    except DataError as error:
        raise DataError(f"{path}: {error}, image skipped") from error
    # cut, as a broken file may state anything
    stated = [tree.findtext(f"size/{side}", "").strip()[:20] for side in ("width", "height")]
    if [_number(side) for side in stated] != [width, height]:
        raise DataError(
            f"{path}: states the size {'x'.join(stated) if any(stated) else 'nowhere'}, but "
            f"{picture.name} is {width}x{height} pixels, image skipped"
        )
    objects = [
        (
            " ".join(item.findtext("name", "").split()),  # it may be wrapped
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
