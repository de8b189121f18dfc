"""Splitting a set at random, with every class in both parts as evenly as possible."""

import random
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from .coco import read_annotations, write_json
from .errors import DataError


def stratify(labels: Sequence[Iterable[Hashable]], share: float, seed: int = 0) -> list[bool]:
    """Draw about ``share`` of the images such that each class has this share of its images there.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of
    multi-label data", 2011): the class with the fewest images left is dealt out first, each image
    to the part that lacks most of that class. Images without a class are stratified as a class of
    their own. A class of a single image stays undrawn, unless nothing else could be drawn.

    Args:
        labels: the classes of each image.
        share: between 0 and 1, exclusive.
        seed: the same gives the same draw.

    Returns:
        For each image whether it was drawn.

    Raises:
        DataError: ``share`` is out of range, or there are fewer than two images.
    """
    if not 0 < share < 1:
        raise DataError(f"the share to evaluate on is {share}, expected one between 0 and 1")
    if len(labels) < 2:
        raise DataError(f"{len(labels)} images cannot be split in two")
    shares = (1 - share, share)
    left = {
        i: set(labels[i]) or {None}
        for i in random.Random(seed).sample(range(len(labels)), len(labels))
    }
    totals = Counter(label for present in left.values() for label in present)
    lacking = [{label: part * total for label, total in totals.items()} for part in shares]
    room = [part * len(labels) for part in shares]
    drawn = [False] * len(labels)
    while left:
        counts = Counter(label for present in left.values() for label in present)
        rarest = min(counts, key=lambda label: (counts[label], str(label)))
        for i in [i for i, present in left.items() if rarest in present]:
            part = max((0, 1), key=lambda part: (lacking[part][rarest], room[part]))
            drawn[i] = part == 1
            room[part] -= 1
            for label in left.pop(i):
                lacking[part][label] -= 1
    if len(set(drawn)) == 1:  # so few images that the larger part lacked most each time, or both
        drawn[0] = not drawn[0]
    return drawn


def split_coco(
    path: str | Path,
    out: str | Path | None = None,
    val: float = 0.2,
    seed: int = 0,
    outside_paths: bool = False,
) -> dict[Path, dict]:
    """Split a COCO file into ``train.json`` and ``val.json``, see :func:`stratify`.

    Entries are copied as they are, with missing ``iscrowd`` and ``area`` filled in. Images stay.

    Args:
        path: the file.
        out: the folder of the new files; default that of ``path``.
        val: share of the images to evaluate on.
        seed: of the draw.
        outside_paths: file names may leave the image folder, see :class:`.coco.DetectionDataset`.

    Returns:
        The paths of the new files and what they hold.

    Raises:
        DataError: the file is bad, one of the new files exists, or see :func:`stratify`.
    """
    path = Path(path)
    out = path.parent if out is None else Path(out)
    files = [out / f"{split}.json" for split in ("train", "val")]
    for file in files:
        if file.exists():
            raise DataError(f"{file} exists: rename it, or name another folder by --out")
    content, _ = read_annotations(path, outside_paths=outside_paths)
    labels = {image["id"]: set() for image in content["images"]}
    for ann in content["annotations"]:
        labels[ann["image_id"]].add(ann["category_id"])
    drawn = dict(zip(labels, stratify(list(labels.values()), val, seed), strict=True))
    parts = {}
    for file, wanted in zip(files, (False, True), strict=True):
        parts[file] = {
            **content,
            "images": [image for image in content["images"] if drawn[image["id"]] == wanted],
            "annotations": [
                ann for ann in content["annotations"] if drawn[ann["image_id"]] == wanted
            ],
        }
        write_json(file, parts[file])
    return parts
