import json
import logging
import math
import pickle
import re
import sys

import pytest
import torch
from dcndet.data.coco import (
    DetectionDataset,
    DetectionMetric,
    sort_boxes,
    write_annotations,
)
from dcndet.data.errors import DataError
from dcndet.models.engine.options import merge_options
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.logging import MMLogger
from PIL import Image


@pytest.fixture
def coco(tmp_path):
    """A COCO-format set of two images and three objects, as a dict to spoil."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    ann = {"image_id": 1, "iscrowd": 0, "area": 100}
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 2, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], **ann},
            {"id": 2, "category_id": 7, "bbox": [5, 5, 10, 10], **ann},
            {"id": 3, "category_id": 7, "bbox": [30, 20, 10, 10], **ann},
        ],
    }


def open_dataset(folder, content, classes=("cat", "dog"), **settings):
    path = folder / "annotations.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return DetectionDataset(
        ann_file=path.name,
        data_root=str(folder),
        data_prefix={"img": ""},
        metainfo={"classes": classes},
        **settings,
    )


def refusal(folder, content, **settings):
    with pytest.raises(DataError) as error:
        open_dataset(folder, content, **settings)
    return str(error.value)


def bboxes(dataset, i=0):
    return [instance["bbox"] for instance in dataset.get_data_info(i)["instances"]]


def test_good_set(coco, tmp_path, warnings):
    dataset = open_dataset(tmp_path, coco)
    assert DATASETS.get("DetectionDataset") is DetectionDataset
    assert len(dataset) == 2
    assert bboxes(dataset) == [[0, 0, 10, 10], [5, 5, 15, 15], [30, 20, 40, 30]]
    labels = [instance["bbox_label"] for instance in dataset.get_data_info(0)["instances"]]
    assert labels == [0, 1, 1]
    assert warnings == []
    assert len(pickle.loads(pickle.dumps(dataset))) == 2  # as a spawned DataLoader worker gets it


def test_data_error_survives_a_worker():
    assert str(DataError("file a is bad")) == "file a is bad"
    assert str(pickle.loads(pickle.dumps(DataError("file a is bad")))) == "file a is bad"


def test_missing_file(tmp_path):
    message = refusal(tmp_path, None)
    assert str(tmp_path / "annotations.json") in message
    assert "No such file" in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"images": [', "is broken JSON"),
        ("[]", "not in COCO format: it holds a list"),
        ("{}", "not in COCO format: it has no list 'images'"),
    ],
)
@pytest.mark.parametrize("test_mode", [False, True])
def test_no_coco_file(tmp_path, content, part, test_mode):
    message = refusal(tmp_path, content, test_mode=test_mode)
    assert str(tmp_path / "annotations.json") in message
    assert part in message


def test_no_text(tmp_path):
    (tmp_path / "annotations.json").write_bytes(b"\xff\xd8\xff\xe0")
    assert "annotations.json is not text in UTF-8" in refusal(tmp_path, None)


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("images", "file_name"),
        ("images", "width"),
        ("categories", "name"),
        ("annotations", "id"),
        ("annotations", "bbox"),
    ],
)
def test_missing_field(coco, tmp_path, key, field):
    del coco[key][1][field]
    assert f"annotations.json is not in COCO format: {key}[1] has no '{field}'" in refusal(
        tmp_path, coco
    )


def test_field_of_another_type(coco, tmp_path):
    coco["images"][0]["id"] = "one"
    message = "images[0] has the id 'one', expected an integer of 64 bits"
    assert message in refusal(tmp_path, coco)


@pytest.mark.parametrize("test_mode", [False, True])
@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize("value", [math.nan, 1e30, 10**400, -40, 0, True, 39.5, "40", None])
def test_a_side_that_is_no_number_of_pixels(coco, tmp_path, side, value, test_mode):
    coco["images"][1][side] = value
    message = refusal(tmp_path, coco, test_mode=test_mode)
    assert f"annotations.json is not in COCO format: images[1] has the {side} " in message
    assert "expected a whole number of pixels from 1 to 2147483647" in message
    assert len(message) < 300


def test_a_side_may_be_written_as_a_float(coco, tmp_path):
    coco["images"][0]["width"] = 40.0
    assert len(open_dataset(tmp_path, coco)) == 2


@pytest.mark.parametrize("value", [True, 1.0, 2**63, 10**400, None])
@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("images", "id"),
        ("categories", "id"),
        ("annotations", "id"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
    ],
)
def test_an_id_is_an_integer_and_no_bool(coco, tmp_path, key, field, value):
    coco[key][1][field] = value
    assert f"{key}[1] has the {field} " in refusal(tmp_path, coco)


@pytest.mark.parametrize("name", ["a\0.png", "a\ud800.png", "a\x1b[2J.png", "a\n.png"])
def test_a_name_that_cannot_be_printed(coco, tmp_path, name):
    coco["images"][1]["file_name"] = name
    message = refusal(tmp_path, coco)
    assert f"images[1] has the file_name {name!r}, expected a string without control" in message
    coco["images"][1]["file_name"] = "b.png"
    coco["categories"][1]["name"] = name
    assert f"categories[1] has the name {name!r}" in refusal(tmp_path, coco)


OUTSIDE = ["../../etc/passwd", "..", "a/../../b.png", "/etc/passwd", "./../b.png"]


@pytest.mark.parametrize("test_mode", [False, True])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leaves_the_image_folder(coco, tmp_path, name, test_mode):
    coco["images"][1]["file_name"] = name
    message = refusal(tmp_path, coco, test_mode=test_mode)
    path = tmp_path / "annotations.json"
    assert message.startswith(f"annotation file {path}: images[1] has the file_name {name!r}, ")
    assert "leaves the image folder. If that is meant, set outside_paths=True" in message
    if name == "/etc/passwd":
        message = refusal(tmp_path, coco, test_mode=test_mode, outside_paths=True)
        assert "/etc/passwd: not an image" in message
    average_precision({**coco, "images": coco["images"][:1]}, path)  # which opens no image


def test_outside_paths_when_asked_for(coco, tmp_path):
    folder = tmp_path / "annotations"
    folder.mkdir()
    coco["images"][0]["file_name"] = "../a.png"
    coco["images"][1]["file_name"] = str(tmp_path / "b.png")
    assert len(open_dataset(folder, coco, outside_paths=True)) == 2
    cfg = Config({"train_dataloader": {"dataset": {"type": "DetectionDataset"}}})
    merge_options(cfg, {"train_dataloader.dataset.outside_paths": True})


def test_paths_that_stay_in_the_image_folder(coco, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "b.png").rename(tmp_path / "set" / "..b.png")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    coco["images"][0]["file_name"] = "./link/a.png"
    coco["images"][1]["file_name"] = "..b.png"
    assert len(open_dataset(tmp_path / "set", coco)) == 2


@pytest.mark.parametrize(
    ("content", "part"),
    [("[" * 100_000, "recursion"), ('{"images": [{"id": 1%s}]}' % ("0" * 6000), "6000|limit")],
)
def test_json_that_python_does_not_read(coco, tmp_path, content, part):
    message = refusal(tmp_path, content)
    assert f"{tmp_path / 'annotations.json'} is broken JSON: " in message
    assert re.search(part, message)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pickle goes as deep as the JSON reader")
def test_json_that_pickle_does_not_write(coco, tmp_path):
    deep = []
    for _ in range(900):
        deep = [deep]
    coco["annotations"][0]["segmentation"] = deep
    message = refusal(tmp_path, coco)
    assert message == f"annotation file {tmp_path / 'annotations.json'} is nested too deeply"


@pytest.mark.parametrize("test_mode", [False, True])
def test_no_image(coco, tmp_path, test_mode):
    coco["images"], coco["annotations"] = [], []
    message = refusal(tmp_path, coco, test_mode=test_mode)
    assert message == f"annotation file {tmp_path / 'annotations.json'} has no image"


@pytest.mark.parametrize("test_mode", [False, True])
def test_missing_iscrowd_and_area_are_filled_in(coco, tmp_path, warnings, test_mode):
    del coco["annotations"][0]["area"], coco["annotations"][0]["iscrowd"]
    del coco["annotations"][1]["area"]
    dataset = open_dataset(tmp_path, coco, test_mode=test_mode)
    assert len(bboxes(dataset)) == 3
    assert dataset.get_data_info(0)["instances"][0]["ignore_flag"] == 0
    (warning,) = warnings
    assert "annotations.json: filled in where missing" in warning
    assert "iscrowd (as 0) in 1 of 3 annotations" in warning
    assert "area (as width x height) in 2 of 3" in warning


def test_a_bad_box_without_area_is_a_bad_box(coco, tmp_path, warnings):
    del coco["annotations"][1]["area"]
    coco["annotations"][1]["bbox"] = [1, 2, 3]
    assert len(bboxes(open_dataset(tmp_path, coco))) == 2
    assert "not finite numbers" in warnings[1]


def average_precision(coco, path):
    """AP of perfect detections in the first image of ``coco``, whose file is at ``path``."""
    metric = DetectionMetric(ann_file=str(path))
    metric.dataset_meta = {"classes": ("cat", "dog")}
    good = [ann for ann in coco["annotations"] if ann["image_id"] == 1]
    pred = {
        "bboxes": [[x, y, x + w, y + h] for x, y, w, h in (ann["bbox"] for ann in good)],
        "scores": [0.9] * len(good),
        "labels": [0, 1, 1],
    }
    pred = {key: torch.tensor(value) for key, value in pred.items()}
    samples = [
        {"img_id": 1, "ori_shape": (30, 40), "pred_instances": pred},
        {
            "img_id": 2,
            "ori_shape": (30, 40),
            "pred_instances": {key: value[:0] for key, value in pred.items()},
        },
    ]
    metric.process({}, samples)
    return metric.evaluate(2)["coco/bbox_mAP"]


def test_the_metric_fills_in_too(coco, tmp_path):
    for ann in coco["annotations"]:
        del ann["area"], ann["iscrowd"]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco))
    assert average_precision(coco, path) == 1


def test_the_metric_does_not_round(coco, tmp_path, monkeypatch, capfd):
    """One of the two dogs is found, after a false one: the precision is 1/2 up to recall 1/2."""
    for ann in coco["annotations"]:
        x, y, w, h = ann["bbox"]
        ann["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco))
    kinds = ["bbox", "segm", "proposal"]
    metric = DetectionMetric(ann_file=str(path), metric=kinds, classwise=True)
    metric.dataset_meta = {"classes": ("cat", "dog")}
    masks = torch.zeros(2, 30, 40, dtype=torch.bool)
    masks[0, 20:30, :10] = masks[1, 5:15, 5:15] = True
    pred = {
        "bboxes": torch.tensor([[0, 20, 10, 30], [5, 5, 15, 15]]),
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([1, 1]),
        "masks": masks,
    }
    empty = {key: value[:0] for key, value in pred.items()}
    samples = zip((1, 2), (pred, empty), strict=True)
    said = []
    monkeypatch.setattr(MMLogger, "info", lambda self, text: said.append(text))
    metric.process({}, [dict(img_id=i, ori_shape=(30, 40), pred_instances=p) for i, p in samples])
    found = metric.evaluate(2)
    exact = 51 / 101 / 2 / 2  # of 101 recalls 51 are reached, and there is the class without any
    for kind in ("bbox", "segm"):
        for name in ("mAP", "mAP_50", "mAP_75", "mAP_s"):
            assert found[f"coco/{kind}_{name}"] == pytest.approx(exact, abs=1e-12)
        assert found[f"coco/{kind}_mAP_l"] == -1
    assert found["coco/AR@100"] == pytest.approx(1 / 3, abs=1e-12)
    # What is printed is short.
    assert found["coco/dog_precision"] == 0.252
    assert any("| dog      | 0.252 | 0.252  |" in text for text in said)
    assert "bbox_mAP_copypaste: 0.126 0.126 0.126 0.126 -1.000 -1.000" in said
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all" in capfd.readouterr().out


def test_the_metric_names_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"cannot read annotation file .*none\.json: No such file"):
        DetectionMetric(ann_file=str(tmp_path / "none.json"))


def test_the_metric_checks_the_format_too(coco, tmp_path):
    del coco["categories"][1]["name"]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco))
    with pytest.raises(DataError, match=r"annotations\.json is not in COCO .*: categories\[1\]"):
        DetectionMetric(ann_file=str(path))


def test_the_metric_sorts_categories_when_asked(coco, tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({**coco, "categories": coco["categories"][::-1]}))
    for asked, ids in ((False, [7, 3]), (True, [3, 7])):
        metric = DetectionMetric(ann_file=str(path), sort_categories=asked)
        assert metric._coco_api.get_cat_ids(cat_names=["cat", "dog"]) == ids


@pytest.fixture
def evaluated(coco, tmp_path):
    """Checks an evaluator whose file holds ``changes`` to the set that is evaluated."""
    (tmp_path / "annotations.json").write_text(json.dumps(coco))

    def check(name="other.json", indices=None, **changes):
        (tmp_path / name).write_text(json.dumps({**coco, **changes}))
        dataset = open_dataset(tmp_path, None, test_mode=True, indices=indices)
        DetectionMetric(ann_file=str(tmp_path / name)).check_dataset(dataset)

    return check


def test_an_evaluator_of_the_same_images(coco, evaluated):
    evaluated("annotations.json")
    evaluated(info={"corrected": True})
    evaluated(indices=1)


def test_an_evaluator_of_other_images(coco, evaluated, tmp_path):
    renamed = [coco["images"][0], {**coco["images"][1], "file_name": "c.png"}]
    renumbered = [coco["images"][0], {**coco["images"][1], "id": 4}]
    more = [*coco["images"], {**coco["images"][1], "id": 3, "file_name": "c.png"}]
    cases = (renamed, "b.png"), (renumbered, "b.png"), (more, "c.png"), (more[:1], "b.png")
    for images, name in cases:
        with pytest.raises(DataError) as error:
            evaluated(images=images)
        message = str(error.value)
        assert f"the evaluator's ann_file {tmp_path / 'other.json'} is not of the" in message
        assert f"images in {tmp_path / 'annotations.json'}, which" in message
        assert f"{tmp_path / name} (id " in message
        assert "\n" not in message
    with pytest.raises(DataError, match=r"c\.png \(id 2\)|b\.png \(id 2\)"):
        evaluated(images=renamed, indices=2)


def test_an_evaluator_of_other_objects(coco, evaluated):
    with pytest.raises(DataError, match=r"do not match the categories of .*other\.json"):
        evaluated(categories=coco["categories"][::-1])
    beyond = [{**coco["annotations"][0], "bbox": [30, 20, 99, 9]}]
    with pytest.raises(DataError, match=r"other\.json: evaluation would count 1 bad boxes"):
        evaluated(annotations=beyond)


def test_what_is_in_the_set_is_logged(coco, tmp_path, request):
    lines = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_instance(request.node.name)
    logger.addHandler(handler)
    open_dataset(tmp_path, coco)
    logger.removeHandler(handler)
    path = tmp_path / "annotations.json"
    assert f"{path}: 2 images, 3 objects; 2 classes: cat, dog" in lines


def test_missing_annotations(coco, tmp_path):
    del coco["annotations"]
    assert "no list 'annotations'" in refusal(tmp_path, coco)
    assert len(open_dataset(tmp_path, coco, test_mode=True)) == 2  # as COCO's own test files


@pytest.mark.parametrize("key", ["images", "categories", "annotations"])
def test_repeated_id(coco, tmp_path, key):
    coco[key][1]["id"] = coco[key][0]["id"]
    message = refusal(tmp_path, coco)
    assert f"annotations.json has ids more than once in '{key}': {coco[key][0]['id']}" in message


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_unknown_reference(coco, tmp_path, key):
    coco["annotations"][1][key] = 99
    message = refusal(tmp_path, coco)
    assert "annotations.json" in message
    assert f"annotation 2 ({key} 99)" in message


def test_classes_that_do_not_match(coco, tmp_path):
    message = refusal(tmp_path, coco, classes=("Cat", "dog"))
    assert str(tmp_path / "annotations.json") in message
    assert "only in the config: Cat\n" in message
    assert "only in the file: cat\n" in message
    assert "metainfo=dict(classes=('cat', 'dog'))" in message


def test_classes_in_another_order(coco, tmp_path):
    assert "in the order of the file" in refusal(tmp_path, coco, classes=("dog", "cat"))


def test_two_categories_of_one_name(coco, tmp_path):
    coco["categories"][1]["name"] = "cat"
    assert "do not match" in refusal(tmp_path, coco, classes=("cat",))


def test_some_of_the_classes(coco, tmp_path, warnings):
    dataset = open_dataset(tmp_path, coco, classes=("dog",))
    assert bboxes(dataset) == [[5, 5, 15, 15], [30, 20, 40, 30]]
    assert "annotations.json: left out, because the config's classes" in warnings[0]
    assert warnings[0].endswith("name them: cat")


def test_images_that_cannot_be_read(coco, tmp_path):
    (tmp_path / "b.png").write_bytes(b"")
    coco["images"] += [
        {"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(3, 9)
    ]
    message = refusal(tmp_path, coco)
    assert f"7 of the 8 images in {tmp_path / 'annotations.json'} cannot be used" in message
    assert f"{tmp_path / 'b.png'}: zero bytes" in message
    assert f"{tmp_path / '3.png'}: No such file" in message
    assert "and 2 more" in message
    assert "8.png" not in message


BAD_BOXES = [
    ([5, 5, 0, 10], "no area"),
    ([5, 5, 10, -1], "no area"),
    ([40, 5, 10, 10], "outside of the image (40x30 pixels)"),
    ([5, -10, 10, 10], "outside of the image"),
    ([5, math.nan, 10, 10], "not finite numbers"),
    ([5, 5, math.inf, 10], "not finite numbers"),
    ([5, 5, 10], "not finite numbers"),
    (["5", 5, 10, 10], "not finite numbers"),
    ([True, 5, 10, 10], "not finite numbers"),
    ([5, 5, 10**400, 10], "not finite numbers"),
    (None, "not finite numbers"),
]


@pytest.mark.parametrize(("bbox", "fault"), BAD_BOXES)
def test_bad_box(coco, tmp_path, warnings, bbox, fault):
    coco["annotations"][1]["bbox"] = bbox
    dataset = open_dataset(tmp_path, coco)
    assert bboxes(dataset) == [[0, 0, 10, 10], [30, 20, 40, 30]]
    assert f"{tmp_path / 'annotations.json'}: dropped 1 bad boxes" in warnings[0]
    assert "annotation 2, image a.png" in warnings[0]
    assert fault in warnings[0]

    message = refusal(tmp_path, coco, test_mode=True)
    assert str(tmp_path / "annotations.json") in message
    assert "annotation 2, image a.png" in message
    assert fault in message


BEYOND = [
    ([30, 20, 300, 300], [30, 20, 40, 30]),
    ([-7, -5, 17, 10], [0, 0, 10, 5]),
    ([5, 5, 1e308, 10], [5, 5, 40, 15]),
    ([-(10**300), 5, 2 * 10**300, 10.5], [0, 5, 40, 15.5]),
]


@pytest.mark.parametrize(("bbox", "inside"), BEYOND)
def test_a_box_beyond_the_image(coco, tmp_path, warnings, bbox, inside):
    coco["annotations"][1]["bbox"] = bbox
    dataset = open_dataset(tmp_path, coco)
    assert bboxes(dataset) == [[0, 0, 10, 10], inside, [30, 20, 40, 30]]
    (warning,) = warnings
    path = tmp_path / "annotations.json"
    start = f"{path}: clipped 1 boxes that reach beyond their image: annotation 2, image a.png: "
    assert warning.startswith(start)
    assert warning.endswith("reaches beyond the image (40x30 pixels)")

    message = refusal(tmp_path, coco, test_mode=True)
    assert f"{path}: evaluation would count 1 bad boxes" in message
    assert "annotation 2, image a.png" in message
    assert "reaches beyond the image (40x30 pixels)" in message
    assert "\n" not in message


def test_up_to_a_pixel_beyond_the_image_is_rounding(coco, tmp_path, warnings):
    coco["annotations"][1]["bbox"] = [-1, 5, 10, 10]
    coco["annotations"][2]["bbox"] = [30, 20, 10.25, 11]
    boxes = bboxes(open_dataset(tmp_path, coco))
    assert boxes == [[0, 0, 10, 10], [0, 5, 9, 15], [30, 20, 40, 30]]
    boxes = bboxes(open_dataset(tmp_path, coco, test_mode=True))
    assert boxes == [[0, 0, 10, 10], [-1, 5, 9, 15], [30, 20, 40.25, 31]]
    assert warnings == []
    coco["annotations"][1]["bbox"] = [-1.01, 5, 10, 10]
    assert "reaches beyond" in refusal(tmp_path, coco, test_mode=True)


def test_a_box_of_which_less_than_a_pixel_is_inside(coco, tmp_path, warnings):
    coco["annotations"][1]["bbox"] = [39.5, 5, 20, 10]
    assert len(bboxes(open_dataset(tmp_path, coco))) == 2
    (warning,) = warnings
    assert "dropped 1 bad boxes: annotation 2" in warning
    assert "less than one pixel wide or high in the image" in warning


@pytest.mark.parametrize(("area", "expected"), [(100, 100), (4000, 250)])
def test_the_area_of_a_clipped_box(coco, area, expected):
    coco["annotations"] = [{**coco["annotations"][0], "bbox": [15, 20, 80, 50], "area": area}]
    polygon = [[15, 20, 95, 20, 95, 70]]
    coco["annotations"][0]["segmentation"] = polygon
    ((ann,), bad, (line,)) = sort_boxes(coco, test_mode=False)
    assert (ann["bbox"], ann["area"], ann["segmentation"]) == ([15, 20, 25, 10], expected, polygon)
    assert bad == []
    assert f"bbox [15, 20, 80, 50], area {area}" in line
    assert coco["annotations"][0]["bbox"] == [15, 20, 80, 50]


@pytest.mark.parametrize("area", [math.nan, None, "large", 10**400])
def test_bad_area(coco, tmp_path, warnings, area):
    coco["annotations"][1]["area"] = area
    assert len(bboxes(open_dataset(tmp_path, coco))) == 2
    assert "annotation 2" in warnings[0]
    assert "not finite numbers" in refusal(tmp_path, coco, test_mode=True)


def test_box_below_a_pixel(coco, tmp_path, warnings):
    coco["annotations"][1]["bbox"] = [0.1, 0.2, 0.5, 0.5]
    assert len(bboxes(open_dataset(tmp_path, coco))) == 2
    assert "less than one pixel" in warnings[0]
    open_dataset(tmp_path, coco, test_mode=True)


def test_many_bad_boxes(coco, tmp_path, warnings):
    bad = [{**coco["annotations"][0], "id": i, "bbox": [0, 0, 0, 0]} for i in range(10, 22)]
    coco["annotations"] += bad
    assert len(bboxes(open_dataset(tmp_path, coco))) == 3
    assert "dropped 12 bad boxes" in warnings[0]
    assert "annotation 14," in warnings[0]
    assert "annotation 15," not in warnings[0]
    assert warnings[0].endswith("and 7 more")


def test_metric_misreads_what_evaluation_refuses(coco, tmp_path, warnings):
    # Why bad boxes and the id 0 are not let through: perfect detections score below 1.
    def score(annotations):
        path = tmp_path / "metric.json"
        path.write_text(json.dumps({**coco, "annotations": annotations}))
        return average_precision(coco, path)

    good = coco["annotations"]
    nan = {**good[0], "id": 9, "bbox": [math.nan] * 4}
    assert score(good) == 1
    assert score([*good, nan]) < 1
    assert score([{**good[0], "id": 0}, *good[1:]]) < 1

    coco["annotations"][0]["id"] = 0
    open_dataset(tmp_path, coco, test_mode=True)
    assert "annotation id 0" in warnings[-1]


def test_image_without_object(coco, tmp_path):
    train = open_dataset(tmp_path, coco, filter_cfg={"filter_empty_gt": True})
    assert [train.get_data_info(i)["img_id"] for i in range(len(train))] == [1]
    assert len(open_dataset(tmp_path, coco, test_mode=True)) == 2


def test_set_without_object(coco, tmp_path):
    coco["annotations"] = []
    message = refusal(tmp_path, coco)
    assert f"{tmp_path / 'annotations.json'}: no object to train on" in message
    assert len(open_dataset(tmp_path, coco, test_mode=True)) == 2


def test_set_of_crowds_only(coco, tmp_path):
    for ann in coco["annotations"]:
        ann["iscrowd"] = 1
    assert "no object to train on" in refusal(tmp_path, coco)


def test_filter_that_leaves_nothing(coco, tmp_path):
    assert "no object to train on in 0 images" in refusal(
        tmp_path, coco, filter_cfg={"min_size": 32}
    )


def test_write_annotations_is_read_back(coco, tmp_path, warnings):
    path = tmp_path / "new" / "annotations.json"
    boxes = [{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": i} for i in (0, 1)]
    boxes[0]["area"] = 7
    write_annotations(path, ["cat", "dog"], coco["images"], boxes, {"description": "test"})
    dataset = open_dataset(tmp_path, path.read_text())
    flags = [instance["ignore_flag"] for instance in dataset.get_data_info(0)["instances"]]
    assert flags == [0, 1]
    assert bboxes(dataset) == [[1, 2, 4, 6]] * 2
    assert [ann["area"] for ann in json.loads(path.read_text())["annotations"]] == [7, 12]
    assert [file.name for file in path.parent.iterdir()] == ["annotations.json"]


def test_write_annotations_keeps_the_old_file_on_failure(coco, tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text("old")
    bad = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, math.nan, 1]}]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_annotations(path, ["cat"], coco["images"], bad, {})
    assert path.read_text() == "old"
