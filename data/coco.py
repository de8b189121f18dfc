"""Detection datasets in COCO format: one JSON file of annotations beside a folder of images.

The format: https://cocodataset.org/#format-data. Boxes are [x, y, width, height] in pixels, with
the origin at the upper left corner of the upper left pixel.
"""

import json
import logging
import os
import re
import reprlib
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import patch

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO, COCOeval, COCOevalMP
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from torch.utils.data import Dataset

from .errors import DataError, first, listed
from .images import check_headers

MAX_ID = 2**63 - 1  # of pycocotools' arrays
MAX_SIDE = 2**31 - 1  # of an image [pixels]
MAX_FLOAT = sys.float_info.max
ROUNDING = 1  # how far a box may reach beyond its image [pixels]; COCO's own do by fractions
STATS = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l", "AR@100", "AR@300", "AR@1000"]
STATS += ["AR_s@1000", "AR_m@1000", "AR_l@1000"]  # CocoMetric's names of COCOeval.stats
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control codes, lone surrogates


def _is_id(value):
    return type(value) is int and abs(value) <= MAX_ID  # a bool is an int too


def _is_side(value):
    return _is_finite(value) and value == int(value) and 1 <= value <= MAX_SIDE


def _is_text(value):
    return isinstance(value, str) and not UNPRINTABLE.search(value)


def _is_finite(value):
    # An int may be too large for a float, in which case math.isfinite raises.
    return type(value) in (int, float) and abs(value) <= MAX_FLOAT


ID = _is_id, "an integer of 64 bits"
SIDE = _is_side, f"a whole number of pixels from 1 to {MAX_SIDE}"
TEXT = _is_text, "a string without control characters and lone surrogates"
FLAG = lambda value: value in (0, 1), "0 or 1"
ANYTHING = lambda value: True, "anything"
REQUIRED = {
    "images": {"id": ID, "file_name": TEXT, "width": SIDE, "height": SIDE},
    "categories": {"id": ID, "name": TEXT},
    # bbox and area may hold anything here: a bad box costs one object, not the file.
    "annotations": {
        "id": ID,
        "image_id": ID,
        "category_id": ID,
        "iscrowd": FLAG,
        "bbox": ANYTHING,
        "area": ANYTHING,
    },
}


@DATASETS.register_module()
class DetectionDataset(CocoDataset):
    """mmdet's CocoDataset that checks a dataset when it opens it, before any training.

    Takes CocoDataset's arguments, and ``outside_paths``. In training a box that is not four finite
    numbers, has no area or lies outside of its image is dropped with a warning. One that reaches
    beyond its image is clipped with a warning, and what then is smaller than a pixel is dropped.
    In evaluation (``test_mode=True``) all of these but small boxes are errors, because the metric
    reads ``ann_file`` itself and counts such a box as an object never found, or hardly, which
    lowers AP and says nothing. Up to a pixel beyond the image is taken as rounding, which COCO's
    own boxes have: training clips it without a warning, and evaluation leaves it as it is.

    An image with no object is fine: ``filter_cfg=dict(filter_empty_gt=True)`` leaves it out of
    training, evaluation keeps it. A missing ``iscrowd`` is taken as 0 and a missing ``area`` as
    width x height of the box, with one warning per file; :class:`DetectionMetric` reads the file in
    the same way.

    A ``file_name`` that is absolute or leads out of the image folder by ``..`` is refused, unless
    ``outside_paths=True``. Links are not resolved: the folder and what is in it may be links.

    Images on local disks (so not with ``backend_args``) are looked up and their headers are read
    by :func:`.images.check_headers`, once per state of the file and the folder. No pixel is
    decoded: a picture that is damaged further on is refused by ``LoadImageFromFile`` when training
    reaches it, or before by ``tools/check_data.py``.

    Raises:
        DataError: ``ann_file`` is missing, empty, not JSON or not in COCO format, repeats an id, or
            refers to an image or category that it does not define, or to images outside of their
            folder; the classes in ``metainfo`` are
            not among its categories, in their order; images are missing, empty, not images
            or of another size than annotated; training would see no object at all.
    """

    def __init__(self, *args, outside_paths: bool = False, **settings):
        self.outside_paths = outside_paths
        super().__init__(*args, **settings)

    def COCOAPI(self, path):
        # load_data_list calls self.COCOAPI(path) for an index of the file. As a method it also
        # knows the classes and the image folder, and the file is parsed only once.
        content, filled = read_annotations(path, self.ann_file, self.test_mode, self.outside_paths)
        if filled:
            self._warn(filled)
        self.check_classes(content)
        if self.backend_args is None:
            check_headers(self.ann_file, self.data_prefix["img"], content["images"])
        self._drop_bad_boxes(content)
        coco = _index(content)
        classes = self.metainfo["classes"]
        print_log(
            f"{self.ann_file}: {len(coco.imgs)} images, {len(coco.anns)} objects; "
            f"{len(classes)} classes: {first(list(classes), ', ', limit=10)}",
            logger="current",
        )
        return coco

    def full_init(self):
        try:
            super().full_init()
        except RecursionError as error:  # the JSON reader goes deeper than pickle
            raise DataError(f"annotation file {self.ann_file} is nested too deeply") from error

    def filter_data(self):
        data_list = super().filter_data()
        objects = (o for info in data_list for o in info["instances"] if not o["ignore_flag"])
        if not self.test_mode and not any(True for _ in objects):
            raise DataError(
                f"{self.ann_file}: no object to train on in {len(data_list)} images that pass "
                f"filter_cfg={self.filter_cfg}"
            )
        return data_list

    def check_classes(self, dataset: dict, name: str | None = None):
        """Refuse a COCO file's content if its categories are not the classes of ``metainfo``.

        Args:
            dataset: the content.
            name: what messages call the file; default ``ann_file``.
        """
        name = name or self.ann_file
        names = [category["name"] for category in dataset["categories"]]
        classes = list(self.metainfo["classes"])
        unused = [name for name in names if name not in classes]
        # mmdet labels the classes in the order of the file, so any other order would swap names.
        if [name for name in names if name in classes] != classes:
            missing = [name for name in classes if name not in names]
            raise DataError(
                f"the classes of the config do not match the categories of {name}\n"
                f"  only in the config: {', '.join(missing) or 'none'}\n"
                f"  only in the file: {', '.join(unused) or 'none'}\n"
                "  set them in the dataset's config, in the order of the file, and num_classes in "
                f"the model's: metainfo=dict(classes={tuple(names)!r})"
            )
        if unused:
            self._warn(
                f"left out, because the config's classes do not name them: {', '.join(unused)}",
                name,
            )

    def _drop_bad_boxes(self, dataset, name=None):
        name = name or self.ann_file
        good, bad, clipped = sort_boxes(dataset, self.test_mode)
        if bad and self.test_mode:
            raise DataError(
                f"{name}: evaluation would count {len(bad)} bad boxes as objects. Correct or "
                f"remove them:{listed(bad)}"
            )
        if bad:
            self._warn(f"dropped {len(bad)} bad boxes:{listed(bad)}")
        if clipped:
            self._warn(
                f"clipped {len(clipped)} boxes that reach beyond their image:{listed(clipped)}"
            )
        if self.test_mode and any(ann["id"] == 0 for ann in good):
            self._warn(
                "annotation id 0: pycocotools reads it as 'no match', so that evaluation counts "
                "this object as never found. Number annotations from 1",
                name,
            )
        dataset["annotations"] = good

    def _warn(self, message, name=None):
        print_log(f"{name or self.ann_file}: {message}", logger="current", level=logging.WARNING)


@METRICS.register_module()
class DetectionMetric(CocoMetric):
    """mmdet's CocoMetric without its rounding, for an ``ann_file`` as DetectionDataset takes it.

    Takes CocoMetric's arguments, and fills in what DetectionDataset does. CocoMetric rounds to
    three digits, but runs that differ in their seed only may differ by less; the tables that are
    printed, and each class's AP, still have three.

    Raises:
        DataError: see :func:`read_annotations`.
    """

    def __init__(self, ann_file: str | None = None, sort_categories: bool = False, **settings):
        super().__init__(**settings)
        self.ann_file = ann_file
        if ann_file is not None:
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                # it opens no image
                content, _ = read_annotations(path, ann_file, test_mode=True, outside_paths=True)
            if sort_categories:
                content["categories"].sort(key=lambda category: category["id"])
            self._coco_api = _index(content)

    def compute_metrics(self, results: list) -> dict[str, float]:
        evaluations = []
        kind = COCOevalMP if self.use_mp_eval else COCOeval
        summarize = kind.summarize

        def keep(evaluation):
            summarize(evaluation)
            evaluations.append(evaluation)

        with patch.object(kind, "summarize", keep):  # CocoMetric keeps what it made to itself
            metrics = super().compute_metrics(results)
        for evaluation in evaluations:
            params = evaluation.params
            prefix = f"{params.iouType}_" if params.useCats else ""  # proposals have no classes
            names = [prefix + name for name in STATS]
            exact = dict(zip(names, map(float, evaluation.stats), strict=True))
            metrics |= {key: exact[key] for key in exact.keys() & metrics.keys()}
        return metrics

    def check_dataset(self, dataset: Dataset):
        """Refuse a dataset whose images are not those of ``ann_file``.

        pycocotools notices other images only when all of them went through the model, and does not
        where their ids happen to be the same. A file of the same images is checked as the dataset's
        own is. A dataset of another type than :class:`DetectionDataset` is left alone.

        Raises:
            DataError: names both files.
        """
        if not isinstance(dataset, DetectionDataset) or self.ann_file in (None, dataset.ann_file):
            return
        content = self._coco_api.dataset
        infos = map(dataset.get_data_info, range(len(dataset)))
        paths = {info["img_id"]: info["img_path"] for info in infos}
        counted = {
            image["id"]: os.path.join(dataset.data_prefix["img"], image["file_name"])
            for image in content["images"]
        }
        other = [f"{path} (id {i})" for i, path in paths.items() if counted.get(i) != path]
        if dataset._indices is None:  # else some of its images are left out on purpose
            other += [f"{path} (id {i})" for i, path in counted.items() if i not in paths]
        if other:
            raise DataError(
                f"the evaluator's ann_file {self.ann_file} is not of the images in "
                f"{dataset.ann_file}, which it is to evaluate: {first(other, ', ')} "
                f"{'is' if len(other) == 1 else 'are'} not in both"
            )
        dataset.check_classes(content, self.ann_file)
        dataset._drop_bad_boxes(content, self.ann_file)


def _index(content):
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    # The wrapper's aliases still hold the empty index.
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco


def read_annotations(
    path: str | Path,
    name: str | Path | None = None,
    test_mode: bool = False,
    outside_paths: bool = False,
) -> tuple[dict, str]:
    """The content of a COCO file, checked, with missing ``iscrowd`` and ``area`` filled in.

    Args:
        path: the file.
        name: what errors call it; default ``path``.
        test_mode: the file may have no list of annotations, as COCO's own test files.
        outside_paths: a ``file_name`` may be absolute or lead out of the image folder.

    Returns:
        The content, and a line that says what was filled in, empty if nothing was.

    Raises:
        DataError: it is missing, empty, not JSON or not in COCO format, or has an outside path.
    """
    name = path if name is None else name
    try:
        content = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read annotation file {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"annotation file {name} is not text in UTF-8: {error}") from error
    if not content.strip():
        raise DataError(f"annotation file {name} is empty")
    try:
        dataset = json.loads(content)
    except (ValueError, RecursionError) as error:  # also integers of more than 4300 digits
        raise DataError(f"annotation file {name} is broken JSON: {error}") from error
    if test_mode and isinstance(dataset, dict):
        dataset.setdefault("annotations", [])
    filled = ""
    if isinstance(dataset, dict) and isinstance(dataset.get("annotations"), list):
        filled = _fill_in(dataset["annotations"])
    _check_format(dataset, name)
    if not outside_paths:
        _check_paths(dataset["images"], name)
    return dataset, filled


def _fill_in(annotations):
    counts = Counter()
    for ann in annotations:
        if isinstance(ann, dict) and "iscrowd" not in ann:
            ann["iscrowd"] = 0
            counts["iscrowd (as 0)"] += 1
        if isinstance(ann, dict) and "area" not in ann:
            box = ann.get("bbox")
            ann["area"] = box[2] * box[3] if _is_box(box) else None
            counts["area (as width x height)"] += 1
    if not counts:
        return ""
    return "filled in where missing: " + ", ".join(
        f"{what} in {count} of {len(annotations)} annotations" for what, count in counts.items()
    )


def _check_format(dataset, name):
    refusal = f"annotation file {name} is not in COCO format: "
    if not isinstance(dataset, dict):
        raise DataError(f"{refusal}it holds a {type(dataset).__name__}, not an object")
    for key, fields in REQUIRED.items():
        entries = dataset.get(key)
        if not isinstance(entries, list):
            raise DataError(f"{refusal}it has no list {key!r}")
        for i, entry in enumerate(entries):
            for field, (is_valid, expected) in fields.items():
                if not isinstance(entry, dict) or field not in entry:
                    raise DataError(f"{refusal}{key}[{i}] has no {field!r}")
                if not is_valid(entry[field]):
                    raise DataError(
                        f"{refusal}{key}[{i}] has the {field} {reprlib.repr(entry[field])}, "
                        f"expected {expected}"
                    )
        counts = Counter(entry["id"] for entry in entries)
        if repeated := [str(i) for i, count in counts.items() if count > 1]:
            raise DataError(
                f"annotation file {name} has ids more than once in {key!r}: "
                + first(repeated, ", ")
            )
    if not dataset["images"]:
        raise DataError(f"annotation file {name} has no image")
    for key, plural in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in dataset[plural]}
        if unknown := [
            f"annotation {ann['id']} ({key} {ann[key]})"
            for ann in dataset["annotations"]
            if ann[key] not in known
        ]:
            raise DataError(
                f"annotation file {name} has annotations whose {key} is not in "
                f"{plural!r}: {first(unknown, ', ')}"
            )


def _check_paths(images, name):
    for i, image in enumerate(images):
        path = os.path.normpath(image["file_name"])
        if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
            raise DataError(
                f"annotation file {name}: images[{i}] has the file_name {image['file_name']!r}, "
                "which leaves the image folder. If that is meant, set outside_paths=True in the "
                "dataset's config, or --outside-paths for check_data.py and split_coco.py"
            )


def sort_boxes(dataset: dict, test_mode: bool) -> tuple[list[dict], list[str], list[str]]:
    """The annotations whose boxes are good, a line for each of the others, and for each clipped.

    Args:
        dataset: a COCO file's content, checked.
        test_mode: a box that reaches more than ``ROUNDING`` pixels beyond its image is bad. Without
            it boxes are clipped to their images, with ``area`` at most the box's, and those that
            reach farther than that are listed.
    """
    images = {image["id"]: image for image in dataset["images"]}
    good, bad, clipped = [], [], []
    for ann in dataset["annotations"]:
        image = images[ann["image_id"]]
        kept, fault = ann, _box_fault(ann, image, test_mode)
        beyond = 0 if fault else _pixels_beyond(ann["bbox"], image)
        reaches = f"reaches beyond the image ({_size(image)})" if beyond > ROUNDING else ""
        if test_mode:
            fault = fault or reaches
        elif not fault:
            if beyond > 0:
                kept = _clip(ann, image)
            # CocoDataset drops these without a word; the metric counts them as the objects they are
            if min(kept["bbox"][2:]) < 1:
                fault = "less than one pixel wide or high in the image"
        if not fault:
            good.append(kept)
        if fault or reaches:
            (bad if fault else clipped).append(
                f"annotation {ann['id']}, image {image['file_name']}: "
                f"bbox {reprlib.repr(ann['bbox'])}, area {reprlib.repr(ann['area'])}: "
                f"{fault or reaches}"
            )
    return good, bad, clipped


def write_annotations(path, classes, images, annotations, info):
    """Write a COCO-format file. It appears at ``path`` whole or not at all.

    Args:
        path (pathlib.Path): the file; its folder is made.
        classes (Sequence[str]): the categories, with the ids 1, 2, ... in this order.
        images (list[dict]): COCO images.
        annotations (list[dict]): ``image_id``, ``category_id`` and ``bbox``, maybe ``iscrowd``,
            ``area`` and ``segmentation``; they get the ids 1, 2, ... and, without an area, their
            box's.
        info (dict): what the file says about itself.
    """
    content = {
        "info": info,
        "images": images,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
        "annotations": [
            {"id": i, "iscrowd": 0, "area": ann["bbox"][2] * ann["bbox"][3], **ann}
            for i, ann in enumerate(annotations, 1)
        ],
    }
    write_json(path, content)


def write_json(path: Path, content: dict):
    """Write ``content`` at ``path``, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def _box_fault(ann, image, test_mode):
    """What is wrong with an annotation's box wherever it ends, or an empty string."""
    box = ann["bbox"]
    if not _is_box(box) or not _is_finite(ann["area"]):
        return "not finite numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0 or (ann["area"] <= 0 and not test_mode):
        return "no area"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return f"outside of the image ({_size(image)})"
    return ""


def _size(image):
    return f"{image['width']}x{image['height']} pixels"


def _pixels_beyond(box, image):
    """How far a box reaches beyond its image, not above 0 if it does not."""
    x, y, width, height = box
    return max(-x, -y, x + width - image["width"], y + height - image["height"])


def _clip(ann, image):
    x, y, width, height = ann["bbox"]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, image["width"]), min(y + height, image["height"])
    box = [left, top, right - left, bottom - top]
    return {**ann, "bbox": box, "area": min(ann["area"], box[2] * box[3])}


def _is_box(box):
    return isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))
