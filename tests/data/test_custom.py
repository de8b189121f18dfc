import json
import re
import subprocess
from pathlib import Path

import pytest
from dcndet.data.check import check_set, sets_of, sets_of_config
from dcndet.data.custom import find_splits, use_data
from dcndet.data.errors import DataError
from dcndet.data.split import split_coco, stratify
from mmengine.config import Config
from PIL import Image

from tests.command import run_tool

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


def write(root, ann_file, folder, count=2, classes=("cat", "dog"), **category):
    """A COCO file in ``root`` of ``count`` images in ``folder``, one object each."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / ann_file).parent.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(1, count + 1):
        Image.new("RGB", (40, 30)).save(root / folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 40, "height": 30})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9]})
    categories = [{"id": i, "name": name, **category} for i, name in enumerate(classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / ann_file).write_text(json.dumps(content))
    return content


LAYOUTS = [
    [("annotations/train.json", "images"), ("annotations/val.json", "images")],
    [("annotations/train.json", "train"), ("annotations/val.json", "val")],
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_val2017.json", "val2017"),
    ],
    [("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid")],
    [
        ("annotations/instances_train.json", "images/train"),
        ("annotations/instances_val.json", "images/val"),
    ],
    [("train.json", "train/images"), ("val.json", "valid/images")],
    [("annotations/train.json", "."), ("annotations/val.json", ".")],
    [("annotations/trainval.json", "JPEGImages"), ("annotations/test.json", "JPEGImages")],
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    for ann_file, folder in layout:
        write(tmp_path, ann_file, folder)
    splits = find_splits(tmp_path)
    for split, (ann_file, folder) in zip(("train", "val"), layout, strict=True):
        assert splits[split].ann_file == tmp_path / ann_file
        assert splits[split].images == tmp_path / folder
    assert splits["test"] is splits["val"]


def test_all_four_lists(tmp_path):
    for split in ("train", "val", "trainval", "test"):
        write(tmp_path, f"annotations/{split}.json", "JPEGImages")
    assert {key: split.ann_file.stem for key, split in find_splits(tmp_path).items()} == {
        "train": "train",
        "val": "val",
        "test": "test",
    }
    (tmp_path / "annotations" / "train.json").unlink()  # val is a part of trainval
    assert [split.ann_file.stem for split in find_splits(tmp_path).values()] == [
        "trainval",
        "test",
        "test",
    ]


def refusal(root, **settings):
    with pytest.raises(DataError) as error:
        find_splits(root, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_absent_is_said(tmp_path):
    assert refusal(tmp_path / "none") == f"no such folder: {tmp_path / 'none'}"
    assert "looked for annotations/train.json" in refusal(tmp_path)
    write(tmp_path, "all.json", "images")
    assert f"run python tools/split_coco.py {tmp_path / 'all.json'}" in refusal(tmp_path)
    write(tmp_path, "annotations/train.json", "images")
    assert "nothing to evaluate on (looked for annotations/val.json" in refusal(tmp_path)
    write(tmp_path, "annotations/val.json", "images")
    (tmp_path / "images" / "1.png").unlink()
    find_splits(tmp_path)  # a missing image is not a missing folder
    (tmp_path / "images").rename(tmp_path / "a")
    (tmp_path / "a" / "2.png").unlink()
    assert "images of" in refusal(tmp_path)
    assert "looked for 1.png in" in refusal(tmp_path)


def test_a_missing_image_is_not_looked_for_among_another_splits(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, f"annotations/{split}.json", split)
    (tmp_path / "val" / "1.png").unlink()
    assert find_splits(tmp_path)["val"].images == tmp_path / "val"


def test_xml_is_to_be_converted(tmp_path):
    (tmp_path / "annots").mkdir()
    (tmp_path / "annots" / "a.xml").touch()
    assert f"run python tools/convert_voc.py {tmp_path}" in refusal(tmp_path)


def test_what_is_ambiguous_is_refused(tmp_path):
    write(tmp_path, "annotations/val.json", "a")
    write(tmp_path, "annotations/train.json", "a")
    write(tmp_path, "annotations/instances_train2014.json", "a")
    message = refusal(tmp_path)
    assert "which is the set to train on" in message
    assert "instances_train2014.json" in message
    (tmp_path / "annotations" / "instances_train2014.json").unlink()
    write(tmp_path, "unused.json", "b")
    assert f"could be in {tmp_path / 'a'} or {tmp_path / 'b'}" in refusal(tmp_path)


@pytest.fixture
def custom(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, f"annotations/{split}.json", split)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "quickstart/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_digits",
        "bccd/faster-rcnn_r18_fpn_6e_bccd",
        "dcnv2/faster-rcnn_r50-mdconv-c3-c5_dc5_mdpool_1x_coco",
    ],
)
def test_everything_in_a_config_follows(custom, name, tmp_path):
    cfg = Config.fromfile(CONFIGS / f"{name}.py")
    use_data(cfg, custom)
    cfg.dump(custom / "config.py")
    cfg = Config.fromfile(custom / "config.py")  # what is saved with the run
    for stage, split in (("train", "train"), ("val", "val"), ("test", "val")):
        dataset = cfg[f"{stage}_dataloader"].dataset
        assert dataset.data_root == f"{custom}/"
        assert dataset.ann_file == f"annotations/{split}.json"
        assert dataset.data_prefix.img == f"{split}/"
        assert tuple(dataset.metainfo.classes) == ("cat", "dog")
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file
    assert cfg.val_evaluator.ann_file == str(custom / "annotations" / "val.json")
    assert cfg.model.roi_head.bbox_head.num_classes == 2


def test_every_head(custom):
    cfg = Config.fromfile(CONFIGS / "bccd" / "faster-rcnn_r18_fpn_6e_bccd.py")
    cfg.model = {
        "backbone": {"num_classes": 1000},
        "rpn_head": {"num_classes": 1},
        "bbox_head": {"num_classes": 80},
        "roi_head": {"bbox_head": [{"num_classes": 80}] * 2, "mask_head": {"num_classes": 80}},
    }
    use_data(cfg, custom)
    model = cfg.model
    assert (model.backbone.num_classes, model.rpn_head.num_classes) == (1000, 1)
    heads = [model.bbox_head, *model.roi_head.bbox_head, model.roi_head.mask_head]
    assert [head.num_classes for head in heads] == [2, 2, 2, 2]


def test_a_supercategory_is_no_class(custom):
    for split in ("train", "val"):
        path = custom / "annotations" / f"{split}.json"
        content = json.loads(path.read_text())
        content["categories"] = [
            {"id": 0, "name": "animals", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "animals"},
            {"id": 2, "name": "dog", "supercategory": "animals"},
        ]
        path.write_text(json.dumps(content))
    cfg = Config.fromfile(CONFIGS / "bccd" / "faster-rcnn_r18_fpn_6e_bccd.py")
    use_data(cfg, custom)
    assert cfg.train_dataloader.dataset.metainfo.classes == ("cat", "dog")


def test_masks_are_not_trained_from_boxes(custom):
    cfg = Config.fromfile(CONFIGS / "bccd" / "faster-rcnn_r18_fpn_6e_bccd.py")
    cfg.train_dataloader.dataset.pipeline[1].with_mask = True
    with pytest.raises(DataError, match=r"2 of the 2 annotations in .*train\.json have no segment"):
        use_data(cfg, custom)


def test_stratify():
    labels = [{"common"}] * 80 + [{"rare"}] * 10 + [{"common", "rare"}] * 5 + [set()] * 5
    drawn = stratify(labels, 0.2, seed=1)
    assert 19 <= sum(drawn) <= 21
    for label, share in (("common", 17), ("rare", 3)):
        of_label = [d for d, present in zip(drawn, labels, strict=True) if label in present]
        assert abs(sum(of_label) - share) <= 1
    assert sum(drawn[-5:]) == 1
    assert drawn == stratify(labels, 0.2, seed=1) != stratify(labels, 0.2, seed=2)
    assert sorted(stratify([{"a"}, {"b"}], 0.2)) == [False, True]
    with pytest.raises(DataError, match="between 0 and 1"):
        stratify(labels, 20)


def test_split_coco(tmp_path):
    content = write(tmp_path, "all.json", "images", count=10)
    parts = split_coco(tmp_path / "all.json")
    assert [len(part["images"]) for part in parts.values()] == [8, 2]
    splits = find_splits(tmp_path)
    images = splits["train"].content["images"] + splits["val"].content["images"]
    assert sorted(images, key=lambda image: image["id"]) == content["images"]
    assert splits["val"].content["categories"] == content["categories"]
    for ann in splits["val"].content["annotations"]:
        assert ann["image_id"] in [image["id"] for image in splits["val"].content["images"]]
    with pytest.raises(DataError, match=r"train\.json exists: rename it"):
        split_coco(tmp_path / "all.json")


def test_outside_paths_are_refused_unless_asked_for(custom):
    path = custom / "annotations" / "train.json"
    content = write(custom, "annotations/train.json", "train", count=3)
    content["images"][1]["file_name"] = "../val/2.png"
    path.write_text(json.dumps(content))
    cfg = Config.fromfile(CONFIGS / "bccd" / "faster-rcnn_r18_fpn_6e_bccd.py")
    refused = rf"{path}: images\[1\] has the file_name '\.\./val/2\.png', which leaves the image"
    for read in (find_splits, lambda root: use_data(cfg, root), lambda root: list(sets_of(root))):
        with pytest.raises(DataError, match=refused):
            read(custom)
    with pytest.raises(DataError, match=refused):
        split_coco(path, custom / "parts")
    cfg.train_dataloader.dataset.outside_paths = True
    use_data(cfg, custom)
    assert find_splits(custom, outside_paths=True)["train"].images == custom / "train"
    parts = split_coco(path, custom / "parts", val=0.5, outside_paths=True)
    assert sum(len(part["images"]) for part in parts.values()) == 3

    checked = list(sets_of_config(cfg))
    assert [check_set(*each) for each in checked] == [[], [], []]
    (fault,) = check_set(*checked[0][:2])
    assert re.search(refused, fault)
    assert len(list(sets_of(custom, outside_paths=True))) == 3
    assert check(custom, "--outside-paths", "--workers", 1) == 0


def check(*arguments):
    return run_tool("check_data.py", *arguments)


def test_check_data_names_everything(custom, capfd):
    assert check(custom, "--workers", 1) == 0
    path = custom / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["images"][0]["width"] = 41
    content["annotations"][0]["bbox"] = [30, 20, 40, 9]
    content["annotations"][1]["bbox"] = [1, 1, 0, 9]
    path.write_text(json.dumps(content))
    picture = custom / "val" / "2.png"
    Image.effect_noise((40, 30), 64).save(picture)
    picture.write_bytes(picture.read_bytes()[:-500])  # its header is whole
    (custom / "val" / "1.png").unlink()
    config = CONFIGS / "bccd" / "faster-rcnn_r18_fpn_6e_bccd.py"
    capfd.readouterr()
    assert check(config, "--data", custom, "--workers", 2) == 1
    output = "".join(capfd.readouterr())
    assert f"{custom / 'train' / '1.png'}: 40x30 pixels, but its annotations say 41x30" in output
    assert "annotation 2, image 2.png: bbox [1, 1, 0, 9], area 0: no area" in output
    assert "annotation 1, image 1.png: bbox [30, 20, 40, 9], area 360: reaches beyond" in output
    assert f"cannot decode image {picture}" in output
    assert f"cannot read image {custom / 'val' / '1.png'}: No such file" in output
    assert output.count(" wrong\n") == 2
    assert check(custom / "all.json").startswith("error: cannot read annotation file")


def test_the_ignore_rules_hide_sets_and_no_code(tmp_path):
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    (tmp_path / "elsewhere").mkdir()
    for name in ("coco.py", "package/__init__.py", "mine/images/1.jpg", "mine/train.json", "a.zip"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "data" / "coco").symlink_to(tmp_path / "elsewhere")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "data"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert listed == ["data/coco.py", "data/package/__init__.py"]
