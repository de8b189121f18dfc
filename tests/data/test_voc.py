import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from dcndet.data.coco import DetectionDataset
from dcndet.data.custom import find_splits
from dcndet.data.errors import DataError
from dcndet.data.voc import convert_voc
from PIL import Image

from tests.command import run_tool

ROOT = Path(__file__).parents[2]
BCCD = ROOT.parent / "shared" / "data" / "bccd"
SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def box(label, *sides, difficult=0):
    sides = "".join(
        f"<{tag}>{side}</{tag}>"
        for tag, side in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=False)
    )
    return (
        f"<object><name>{label}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{sides}</bndbox></object>"
    )


class Voc:
    """A Pascal VOC dataset in a folder, to add images to."""

    def __init__(self, root):
        self.root = root
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)

    def add(self, name, *boxes, split="train", xml=None, picture=True):
        if picture:
            Image.new("RGB", (40, 30)).save(self.root / "JPEGImages" / f"{name}.jpg")
        xml = f"<annotation>{SIZE}{''.join(boxes)}</annotation>" if xml is None else xml
        (self.root / "Annotations" / f"{name}.xml").write_text(xml)
        with open(self.root / "ImageSets" / "Main" / f"{split}.txt", "a") as file:
            file.write(f"{name}\n")


@pytest.fixture
def voc(tmp_path):
    voc = Voc(tmp_path / "voc")
    voc.add("good", box("dog", 1, 1, 40, 30), box("cat", 11, 6, 20, 15))
    return voc


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def run(capsys):
    """Runs the tool; what it exits with, and its output."""

    def run(*arguments):
        return run_tool("convert_voc.py", *arguments), capsys.readouterr()

    return run


def test_one_file_a_split(voc, tmp_path):
    voc.add("empty", split="test")
    train, test = convert_voc(voc.root)
    assert (train.split, train.images, train.skipped) == ("train", 1, 0)
    assert train.boxes == {"cat": 1, "dog": 1}
    assert train.problems == test.problems == []
    content = read(voc.root / "annotations" / "train.json")
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert content["images"] == [{"id": 1, "file_name": "good.jpg", "width": 40, "height": 30}]
    content = read(voc.root / "annotations" / "test.json")
    assert len(content["images"]) == 1  # an image without an object stays
    assert content["annotations"] == []


def test_boxes_count_from_1_and_hold_their_last_pixel(voc):
    convert_voc(voc.root)
    dog, cat = read(voc.root / "annotations" / "train.json")["annotations"]
    assert dog == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "bbox": [0, 0, 40, 30],
        "area": 1200,
        "iscrowd": 0,
    }
    assert cat["bbox"] == [10, 5, 10, 10]


def test_difficult_is_a_crowd(voc):
    voc.add("hard", box("dog", 1, 1, 9, 9, difficult=1))
    convert_voc(voc.root)
    annotations = read(voc.root / "annotations" / "train.json")["annotations"]
    assert [ann["iscrowd"] for ann in annotations] == [0, 0, 1]


def test_parts_of_an_object_are_not_objects(voc):
    part = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part></object>"
    voc.add("person", box("person", 1, 1, 9, 9).replace("</object>", part))
    (train,) = convert_voc(voc.root)
    assert train.boxes == {"cat": 1, "dog": 1, "person": 1}


def test_opens_as_a_dataset(voc, tmp_path):
    convert_voc(voc.root, out=tmp_path / "out")
    assert not (voc.root / "annotations").exists()
    dataset = DetectionDataset(
        ann_file=str(tmp_path / "out" / "train.json"),
        data_prefix={"img": str(voc.root / "JPEGImages")},
        metainfo={"classes": ("cat", "dog")},
        pipeline=[{"type": "mmdet.LoadImageFromFile"}],
    )
    assert dataset[0]["img"].shape == (30, 40, 3)
    assert [i["bbox_label"] for i in dataset[0]["instances"]] == [1, 0]


def test_given_classes_and_splits(voc):
    voc.add("other", split="val")
    (train,) = convert_voc(voc.root, splits=["train"], classes=["dog", "bird"])
    assert train.boxes == {"dog": 1, "bird": 0}
    assert not (voc.root / "annotations" / "val.json").exists()
    names = [category["name"] for category in read(train.path)["categories"]]
    assert names == ["dog", "bird"]
    (problem,) = train.problems
    assert "good.xml: cat" in problem
    assert "unknown class" in problem


def test_same_bytes_again(voc):
    (train,) = convert_voc(voc.root)
    before = train.path.read_bytes()
    convert_voc(voc.root)
    assert train.path.read_bytes() == before


@pytest.mark.parametrize(
    ("sides", "problem"),
    [
        ((5, 5, 5, 9), "no area"),
        ((5, 9, 9, 5), "no area"),
        (("nan", 5, 9, 9), "not four finite numbers"),
        (("inf", 5, 9, 9), "not four finite numbers"),
        (("five", 5, 9, 9), "not four finite numbers"),
        (("", 5, 9, 9), "not four finite numbers"),
        ((5, 5, 9), "not four finite numbers"),
        ((41, 5, 50, 9), "outside of the image (40x30 pixels)"),
        ((5, -9, 9, 0), "outside of the image"),
    ],
)
def test_bad_box(voc, sides, problem):
    voc.add("bad", box("dog", *sides), box("dog", 2, 2, 9, 9))
    (train,) = convert_voc(voc.root)
    assert (train.images, train.skipped) == (2, 0)
    assert train.boxes == {"cat": 1, "dog": 2}
    (message,) = train.problems
    assert str(voc.root / "Annotations" / "bad.xml") in message
    assert problem in message


def test_box_that_sticks_out_is_clipped(voc):
    voc.add("out", box("dog", 0, 5, 50, 9))
    (train,) = convert_voc(voc.root)
    assert read(train.path)["annotations"][-1]["bbox"] == [0, 4, 40, 5]
    assert "out.xml: dog [0.0, 5.0, 50.0, 9.0]: sticks out" in train.problems[0]


def test_object_without_a_name(voc):
    voc.add("bad", box("", 2, 2, 9, 9))
    (train,) = convert_voc(voc.root)
    assert set(train.boxes) == {"cat", "dog"}
    assert "unknown class" in train.problems[0]


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        ("", "bad.xml: empty, image skipped"),
        ("<annotation><size>", "broken XML"),
        ("<annotation></annotation>", "states the size nowhere"),
        (
            f"<annotation>{SIZE.replace('40', '41')}</annotation>",
            "states the size 41x30, but bad.jpg is 40x30",
        ),
        (
            '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
            f"<annotation>{SIZE}<object><name>&e;</name></object></annotation>",
            "broken XML (undefined entity",
        ),
    ],
)
def test_bad_xml(voc, xml, problem):
    voc.add("bad", xml=xml)
    voc.add("last", box("dog", 2, 2, 9, 9))
    (train,) = convert_voc(voc.root)
    assert (train.images, train.skipped) == (2, 1)
    (message,) = train.problems
    assert str(voc.root / "Annotations" / "bad.xml") in message
    assert problem in message
    assert [image["id"] for image in read(train.path)["images"]] == [1, 2]


def test_missing_xml(voc):
    voc.add("bad")
    (voc.root / "Annotations" / "bad.xml").unlink()
    (train,) = convert_voc(voc.root)
    assert "bad.xml: No such file" in train.problems[0]
    assert (train.images, train.skipped) == (1, 1)


def test_missing_image(voc):
    voc.add("bad", picture=False)
    (train,) = convert_voc(voc.root)
    assert f"bad.xml: no such image in {voc.root / 'JPEGImages'}" in train.problems[0]


def test_truncated_image(voc):
    voc.add("bad")
    path = voc.root / "JPEGImages" / "bad.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    (train,) = convert_voc(voc.root)
    assert f"cannot decode image {path}" in train.problems[0]


def test_image_listed_twice(voc):
    voc.add("good", box("dog", 1, 1, 40, 30))
    (train,) = convert_voc(voc.root)
    assert train.images == 1
    assert "train.txt lists good 2 times" in train.problems[0]


@pytest.mark.parametrize("folder", ["Annotations", "JPEGImages", "ImageSets"])
def test_missing_folder(voc, folder):
    shutil.rmtree(voc.root / folder)
    with pytest.raises(DataError, match=f"lacks a folder of .*{folder}"):
        convert_voc(voc.root, splits=["train"])


def test_everything_that_is_missing_is_named_at_once(voc):
    for folder in ("Annotations", "JPEGImages", "ImageSets"):
        shutil.rmtree(voc.root / folder)
    with pytest.raises(DataError) as error:
        convert_voc(voc.root, lists="lists")
    message = str(error.value)
    assert "a folder of XML files (Annotations, " in message
    assert "a folder of pictures (JPEGImages, " in message
    assert "--lists lists: no such folder" in message


def test_missing_list(voc):
    with pytest.raises(DataError, match=r"lacks a list of images .*mine\.txt"):
        convert_voc(voc.root, splits=["mine"])
    lists = voc.root / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "cat_train.txt")
    with pytest.raises(DataError, match=r"lacks a list of images \(train\.txt, val\.txt"):
        convert_voc(voc.root)


def test_tool_names_the_bad_and_keeps_the_good(voc, run):
    voc.add("bad", xml="")
    status, output = run(voc.root)
    assert status is None
    assert f"{voc.root / 'Annotations' / 'bad.xml'}: empty, image skipped" in output.err
    summary = output.out.splitlines()[-2]
    assert summary == (
        f"{voc.root / 'annotations' / 'train.json'}: 1 images, 1 skipped; "
        "2 boxes (cat 1, dog 1); problems: 1"
    )


def test_tool_fails_when_nothing_is_good(voc, run):
    voc.add("bad", xml="", split="val")
    message, output = run(voc.root)
    assert message == "error: not one image could be converted of val"
    assert "val: not written: 0 images, 1 skipped" in output.out
    assert not (voc.root / "annotations" / "val.json").exists()


def test_tool_names_a_folder_that_is_none(tmp_path, run):
    message, _ = run(tmp_path)
    assert message.startswith(f"error: {tmp_path} is not a Pascal VOC dataset: it lacks")


def test_tool_says_where_it_cannot_write(voc, run):
    (voc.root / "annotations").write_text("a file")
    message, _ = run(voc.root)
    assert message.startswith("error: ")
    assert str(voc.root / "annotations") in message


@pytest.mark.parametrize(
    ("annotations", "images"),
    [("annots", "images"), ("labels", "labels"), ("mine", "photos"), (".", ".")],
)
def test_other_folders_without_lists(tmp_path, annotations, images):
    for i in range(10):
        for folder in (annotations, images):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / images / f"{i}.jpg")
        label = box("cat" if i < 5 else "dog", 2, 2, 9, 9)
        xml = f"<annotation>{SIZE}{label}</annotation>"
        (tmp_path / annotations / f"{i}.xml").write_text(xml)
    train, val = convert_voc(tmp_path)
    assert (train.split, train.boxes) == ("train", {"cat": 4, "dog": 4})
    assert (val.split, val.boxes) == ("val", {"cat": 1, "dog": 1})
    assert convert_voc(tmp_path, val=0.4)[1].boxes == {"cat": 2, "dog": 2}
    splits = find_splits(tmp_path)
    assert splits["val"].ann_file == tmp_path / "annotations" / "val.json"
    assert splits["val"].images.samefile(tmp_path / images)


def test_given_folders(voc, tmp_path):
    shutil.move(voc.root / "Annotations", tmp_path / "here")
    shutil.move(voc.root / "ImageSets" / "Main", voc.root / "a" / "b")
    shutil.rmtree(voc.root / "ImageSets")
    (train,) = convert_voc(voc.root, annotations=tmp_path / "here", lists="a/b")
    assert train.images == 1


def test_no_split_beside_lists(voc):
    with pytest.raises(DataError, match=r"--val would make a split, but .* has lists"):
        convert_voc(voc.root, val=0.2)


def test_json_is_not_put_among_the_xml(voc):
    (voc.root / "Annotations").rename(voc.root / "annotations")
    (train,) = convert_voc(voc.root)
    assert train.path == voc.root / "train.json"


def test_lines_of_lists(voc):
    for name in ("photo 1", "other", "absent", "dotted.v2"):
        voc.add(name, split="unused")
    lines = ["good  1", "photo 1", "other.jpg", "absent -1", "dotted.v2", ""]
    (voc.root / "ImageSets" / "Main" / "cat_train.txt").write_text("\n".join(lines))
    (split,) = convert_voc(voc.root, splits=["cat_train"])
    names = [image["file_name"] for image in read(split.path)["images"]]
    assert names == ["good.jpg", "photo 1.jpg", "other.jpg", "dotted.v2.jpg"]
    assert split.problems == []


def test_a_list_with_control_characters(voc):
    path = voc.root / "ImageSets" / "Main" / "train.txt"
    path.write_bytes(b"good\t1\nbad\0 1\n")
    with pytest.raises(DataError) as error:
        convert_voc(voc.root)
    message = f"the list of images {path}: line 2 has control characters: 'bad\\x00'"
    assert str(error.value) == message


def test_a_list_with_a_byte_order_mark(voc):
    (voc.root / "ImageSets" / "Main" / "train.txt").write_text("good\n", "utf-8-sig")
    (train,) = convert_voc(voc.root)
    assert (train.images, train.problems) == (1, [])


def test_a_name_that_is_wrapped(voc):
    voc.add("other", box("fire\n      engine", 2, 2, 9, 9))
    (train,) = convert_voc(voc.root)
    assert train.boxes == {"cat": 1, "dog": 1, "fire engine": 1}


def test_classes_that_differ_in_case(voc):
    voc.add("other", box("Dog", 2, 2, 9, 9))
    (train,) = convert_voc(voc.root)
    assert train.problems[0].startswith("classes 'Dog' and 'dog' differ in nothing but case")
    assert train.boxes == {"Dog": 1, "cat": 1, "dog": 1}


def test_tool_says_how_to_train(voc, run):
    voc.add("other", split="test")
    _, output = run(voc.root)
    last = output.out.splitlines()[-1]
    assert last == f"train on it: python tools/train.py CONFIG --data {voc.root}"


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"no BCCD at {BCCD}")
def test_bccd(tmp_path):
    splits = convert_voc(BCCD, tmp_path, classes=["RBC", "WBC", "Platelets"])
    assert {split.split: (split.images, split.skipped) for split in splits} == {
        "train": (205, 0),
        "val": (87, 0),
        "trainval": (292, 0),
        "test": (72, 0),
    }
    trainval, test = splits[2:]
    assert trainval.boxes + test.boxes == Counter(RBC=4153, WBC=372, Platelets=361)
    # Two clicks without a box, one in train and one in val.
    names = [problem.split(":")[0].rsplit("/")[-1] for problem in trainval.problems]
    assert names == ["BloodImage_00338.xml", "BloodImage_00343.xml"]
    assert all("RBC" in problem and "no area" in problem for problem in trainval.problems)
    for split in splits:
        dataset = DetectionDataset(
            ann_file=str(split.path),
            data_prefix={"img": str(BCCD / "JPEGImages")},
            metainfo={"classes": ("RBC", "WBC", "Platelets")},
            test_mode=True,
        )
        assert len(dataset) == split.images
