import hashlib
import json
import math

import numpy as np
import pytest
from dcndet.data import digits
from dcndet.data.coco import DetectionDataset
from dcndet.data.digits import make_crops, make_digits
from dcndet.data.errors import DataError
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage

from tests.command import run_tool

SMALL = {"num_train": 6, "num_val": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    assert make_digits(root, num_train=40, num_val=10)
    return root


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def read(root, split):
    return json.loads((root / "annotations" / f"{split}.json").read_text())


def test_layout(made):
    names = [f"train/{i:05d}.png" for i in range(1, 41)] + [
        f"val/{i:05d}.png" for i in range(1, 11)
    ]
    assert set(contents(made)) == {*names, "annotations/train.json", "annotations/val.json"}
    for path in made.rglob("*.png"):
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((128, 128), "RGB")


def test_opens_as_a_dataset(made):
    dataset = DetectionDataset(
        ann_file="annotations/train.json",
        data_root=str(made),
        data_prefix={"img": "train/"},
        metainfo={"classes": digits.CLASSES},
        pipeline=[{"type": "mmdet.LoadImageFromFile"}],
    )
    assert len(dataset) == 40
    assert dataset[0]["img"].shape == (128, 128, 3)
    assert {label for i in range(40) for label in dataset.get_cat_ids(i)} == set(range(10))


def test_boxes(made):
    train = read(made, "train")
    by_image = {}
    for ann in train["annotations"]:
        x, y, w, h = ann["bbox"]
        assert min(x, y) >= 0
        assert max(x + w, y + h) <= 128
        by_image.setdefault(ann["image_id"], []).append(ann["bbox"])
    assert {len(boxes) for boxes in by_image.values()} == {3, 4, 5}
    assert all(
        digits._overlap(a, b) <= digits.MAX_OVERLAP
        for boxes in by_image.values()
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )
    longest = [max(ann["bbox"][2:]) for ann in train["annotations"]]
    assert np.percentile(longest, 95) > 2.2 * np.percentile(longest, 5)


def mask_of(ann):
    return rle.decode(ann["segmentation"]).astype(bool)


def pixels(root, split, image_id):
    with Image.open(root / split / f"{image_id:05d}.png") as image:
        return np.asarray(image).astype(float)


def test_masks(made):
    annotations = read(made, "train")["annotations"]
    for ann in annotations:
        mask = mask_of(ann)
        assert mask.shape == (128, 128)
        assert ann["area"] == mask.sum()
        assert ann["iscrowd"] == 0
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        width, height = columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
        assert ann["bbox"] == [columns[0], rows[0], width, height]
    # Both kinds: strokes leave most of a box free, and a 1 fills much of its own.
    shares = [ann["area"] / np.prod(ann["bbox"][2:]) for ann in annotations]
    assert 0.2 < np.mean(shares) < 0.6


def test_masks_are_the_ink(monkeypatch):
    # Against the same image without ink: what differs is ink.
    drawn, found = digits._draw_image([0, 0, 1], 128, digits._split_handwriting(0)[0])
    monkeypatch.setattr(digits, "_ink_colour", lambda rng, patch, ink: _no_colour(rng, patch))
    blank, _ = digits._draw_image([0, 0, 1], 128, digits._split_handwriting(0)[0])
    ink = np.abs(drawn.astype(float) - blank).mean(-1) > 30
    masks = sum(mask_of(digits._annotation(digit, 128)) for digit in found) > 0
    assert (ink & masks).sum() / (ink | masks).sum() > 0.9


def _no_colour(rng, patch):
    rng.uniform(90, 140), rng.uniform(-30, 30, 3)  # the stream goes on as with ink
    return patch.copy()


def test_masks_load_for_training(made):
    dataset = DetectionDataset(
        ann_file="annotations/train.json",
        data_root=str(made),
        data_prefix={"img": "train/"},
        metainfo={"classes": digits.CLASSES},
        pipeline=[
            {"type": "mmdet.LoadImageFromFile"},
            {"type": "mmdet.LoadAnnotations", "with_bbox": True, "with_mask": True},
        ],
    )
    annotations = [ann for ann in read(made, "train")["annotations"] if ann["image_id"] == 1]
    masks = dataset[0]["gt_masks"].masks
    assert np.array_equal(masks, [mask_of(ann) for ann in annotations])
    assert not dataset[0]["gt_ignore_flags"].any()


# The clean images of seed 0, as they have been since the first results on them.
@pytest.mark.parametrize(
    ("split", "image_id", "digest"),
    [
        ("train", 1, "1874ad20bd015328"),
        ("train", 2, "99cde7a79d730a87"),
        ("val", 1, "60b6f35d756c51e9"),
    ],
)
def test_clean_images_stay_as_they_are(made, split, image_id, digest):
    image = pixels(made, split, image_id).astype(np.uint8)
    assert hashlib.sha256(image.tobytes()).hexdigest().startswith(digest)


@pytest.fixture(scope="module")
def cluttered(tmp_path_factory):
    root = tmp_path_factory.mktemp("cluttered")
    assert make_digits(root, num_train=40, num_val=10, clutter=2)
    return root


def test_clutter_leaves_the_digits_alone(made, cluttered):
    for split in ("train", "val"):
        clean, other = read(made, split), read(cluttered, split)
        assert clean.pop("info") | {"clutter": 2} == other.pop("info")
        assert clean == other  # no fragment is annotated, no digit is moved
        for image in clean["images"]:
            annotations = [a for a in clean["annotations"] if a["image_id"] == image["id"]]
            ink = sum(map(mask_of, annotations)) > 0
            before, after = (pixels(root, split, image["id"]) for root in (made, cluttered))
            changed = (before != after).any(-1)
            assert not (changed & ink).any()
            assert changed.mean() > 0.02
            # beside the digits, within their boxes too
            boxes = [ann["bbox"] for ann in annotations]
            assert any(changed[y : y + h, x : x + w].any() for x, y, w, h in boxes)


def test_clutter_counts_fragments_per_digit(monkeypatch):
    placed = []
    monkeypatch.setattr(
        digits, "_beside", lambda rng, digit: placed.append(digit) or (digit.x, digit.y)
    )
    pool = digits._split_handwriting(0)[0]
    count = sum(len(digits._draw_image([0, 0, i], 64, pool, 1.5)[1]) for i in range(60))
    assert len(placed) / digits.TRIES / count == pytest.approx(1.5, abs=0.12)


def test_fragments_are_parts_of_other_digits(monkeypatch):
    pool = digits._split_handwriting(0)[0]
    labels = {ink.tobytes(): label for label, inks in enumerate(pool) for ink in inks}
    draw, drawn = digits._draw_digit, []

    def watched(rng, handwriting, height):
        drawn.append((labels[handwriting.tobytes()], draw(rng, handwriting, height)))
        return drawn[-1][1]

    monkeypatch.setattr(digits, "_draw_digit", watched)
    rng = np.random.default_rng(0)
    for i in range(100):
        digit = digits._Digit(i % 10, 0, 0, np.ones((40, 30)), np.zeros(3), 40)
        fragment = next(digits._fragments(rng, pool, digit))
        label, whole = drawn[-1]
        assert label != i % 10
        assert 0.1 < fragment.sum() / whole.sum() < 0.7
        assert 20 < max(whole.shape) < 70
        mask = fragment > 0.5
        assert mask.sum() == ndimage.binary_fill_holes(mask).sum()
    assert len({label for label, _ in drawn}) == 10


def test_digits_stand_out(made):
    # The ink differs from the paper around it: within a box there are two populations of grey.
    train = read(made, "train")
    for ann in train["annotations"]:
        x, y, w, h = ann["bbox"]
        with Image.open(made / "train" / f"{ann['image_id']:05d}.png") as image:
            grey = np.asarray(image.convert("L"))[y : y + h, x : x + w]
        assert np.percentile(grey, 95) - np.percentile(grey, 5) > 50


def test_train_and_val_share_no_handwriting():
    train, val = digits._split_handwriting(0)
    assert sum(map(len, train)) + sum(map(len, val)) == 1797
    for a, b in zip(train, val, strict=True):
        assert not {ink.tobytes() for ink in a} & {ink.tobytes() for ink in b}


def test_same_arguments_same_bytes(tmp_path):
    make_digits(tmp_path / "a", **SMALL)
    make_digits(tmp_path / "b", **SMALL)
    make_digits(tmp_path / "c", **SMALL, seed=1)
    make_digits(tmp_path / "d", **SMALL, clutter=2)
    make_digits(tmp_path / "e", **SMALL, clutter=2)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert not set(a.values()) & set(c.values())
    assert contents(tmp_path / "d") == contents(tmp_path / "e")


def test_size(tmp_path):
    make_digits(tmp_path, **SMALL, size=64)
    with Image.open(tmp_path / "train" / "00001.png") as image:
        assert image.size == (64, 64)
    boxes = [ann["bbox"] for ann in read(tmp_path, "train")["annotations"]]
    assert all(max(x + w, y + h) <= 64 for x, y, w, h in boxes)


def test_finished_set_is_left_alone(tmp_path):
    assert make_digits(tmp_path, **SMALL)
    (tmp_path / "train" / "00001.png").write_bytes(b"mark")
    assert not make_digits(tmp_path, **SMALL)
    assert (tmp_path / "train" / "00001.png").read_bytes() == b"mark"


@pytest.mark.parametrize("older", [False, True])
def test_interrupted_set_is_made_again(tmp_path, monkeypatch, older):
    make_digits(tmp_path / "whole", **SMALL)

    def interrupt(*args):
        raise KeyboardInterrupt

    root = tmp_path / "set"
    if older:
        make_digits(root, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(digits, "write_annotations", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_digits(root, **SMALL, seed=1)
    (root / "train" / "00002.png").write_bytes(b"half")
    assert not list(root.rglob("*.json"))
    assert make_digits(root, **SMALL)
    assert contents(root) == contents(tmp_path / "whole")


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("clutter", 2)])
def test_other_arguments_make_it_again(tmp_path, name, value):
    make_digits(tmp_path, **SMALL)
    before = contents(tmp_path)
    assert make_digits(tmp_path, **SMALL, **{name: value})
    assert contents(tmp_path)["val/00001.png"] != before["val/00001.png"]
    assert read(tmp_path, "val")["info"][name] == value


@pytest.mark.parametrize("content", ['{"info": {"description": "mine"}}', "{", "[]", "{}"])
def test_keeps_a_set_of_something_else(tmp_path, content):
    path = tmp_path / "annotations" / "val.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(DataError, match=r"val\.json is not a set of digits"):
        make_digits(tmp_path, **SMALL)
    assert contents(tmp_path) == {"annotations/val.json": content.encode()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train", 0),
        ("num_val", -1),
        ("size", 63),
        ("seed", -1),
        ("clutter", -0.5),
        ("clutter", 1e9),
        ("clutter", math.inf),
        ("clutter", math.nan),
    ],
)
def test_arguments_out_of_range(tmp_path, name, value):
    with pytest.raises(DataError, match=f"{name} is {value}"):
        make_digits(tmp_path, **{**SMALL, name: value})
    assert not list(tmp_path.iterdir())


def test_tool(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for options, folder in (
        ([], "digits"),
        (["--clutter", "1.5"], "digits_clutter-1.5"),
        (["--crops"], "digit-crops"),
    ):
        assert run_tool("make_digits.py", "--num-train", 2, "--num-val", 1, *options) is None
        assert f"data/{folder}: made in" in capsys.readouterr().out
        assert len(list((tmp_path / "data" / folder).rglob("*.png"))) == 3


def test_tool_reports_an_error(tmp_path):
    status = run_tool("make_digits.py", "--root", tmp_path, "--size", 9)
    assert status == "error: size is 9, expected at least 64"


def test_crops(tmp_path):
    root = tmp_path / "crops"
    assert make_crops(root, num_train=30, num_val=10)
    files = contents(root)
    assert json.loads(files.pop("info.json"))["info"]["description"] == digits.CROPS
    for split, count in (("train", 30), ("val", 10)):
        assert sum(name.startswith(split) for name in files) == count
        assert sorted(path.name for path in (root / split).iterdir()) == list(digits.CLASSES)
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]

    make_crops(tmp_path / "again", num_train=30, num_val=10)
    assert contents(tmp_path / "again") == contents(root)
    assert not make_crops(root, num_train=30, num_val=10)
    assert make_crops(root, num_train=3, num_val=2)  # nothing is left of the larger set
    assert len(contents(root)) == 6


def test_crops_show_one_digit_of_their_class(tmp_path, monkeypatch):
    draw, drawn = digits._draw_image, []
    monkeypatch.setattr(
        digits, "_draw_image", lambda *args, **kw: drawn.append(draw(*args, **kw)) or drawn[-1]
    )
    make_crops(tmp_path / "crops", num_train=20, num_val=5)
    for i, (image, found) in enumerate(drawn):
        assert len(found) == 1
        split, name = ("train", i + 1) if i < 20 else ("val", i - 19)
        path = tmp_path / "crops" / split / str(found[0].label) / f"{name:05d}.png"
        with Image.open(path) as stored:
            assert np.array_equal(stored, image)


def test_crops_are_in_training_handwriting_only(tmp_path, monkeypatch):
    used = {2: set(), 3: set()}  # by the split's stream
    draw, stream = digits._draw_digit, []
    image = digits._draw_image

    def watched(seed, *args, **kwargs):
        stream.append(seed[1])
        return image(seed, *args, **kwargs)

    def watched_digit(rng, handwriting, height):
        used[stream[-1]].add(handwriting.tobytes())
        return draw(rng, handwriting, height)

    monkeypatch.setattr(digits, "_draw_image", watched)
    monkeypatch.setattr(digits, "_draw_digit", watched_digit)
    make_crops(tmp_path / "crops", num_train=200, num_val=100, seed=3)
    training = {ink.tobytes() for inks in digits._split_handwriting(3)[0] for ink in inks}
    assert used[2] | used[3] <= training
    assert not used[2] & used[3]
    assert min(len(used[2]), len(used[3])) > 50


def test_crops_take_a_folder_that_is_linked(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "crops").symlink_to("disk")
    (tmp_path / "crops.part").mkdir()  # somebody's
    assert make_crops(tmp_path / "crops", num_train=2, num_val=1)
    assert (tmp_path / "crops").is_symlink()
    assert (tmp_path / "disk" / "info.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", "crops.part", "disk"]
    with pytest.raises(DataError, match="holds another set"):
        make_digits(tmp_path / "crops", num_train=1, num_val=1)


def test_crops_do_not_replace_a_file(tmp_path):
    (tmp_path / "crops").write_text("mine")
    with pytest.raises(DataError, match="crops is not a set of digits"):
        make_crops(tmp_path / "crops", num_train=2, num_val=1)
    assert (tmp_path / "crops").read_text() == "mine"


@pytest.mark.parametrize("name", ["photo.png", "info.json"])
def test_crops_keep_what_is_not_theirs(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match="is not a set of digits"):
        make_crops(tmp_path, num_train=2, num_val=1)
    assert contents(tmp_path) == {name: b"{}"}


def test_crops_check_their_arguments(tmp_path):
    with pytest.raises(DataError, match="num_val is 0"):
        make_crops(tmp_path / "crops", num_val=0)
    assert not list(tmp_path.iterdir())


def test_interrupted_crops_leave_nothing_under_their_name(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(digits, "write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_crops(tmp_path / "crops", num_train=2, num_val=1)
    assert not list(tmp_path.iterdir())
    assert make_crops(tmp_path / "crops", num_train=2, num_val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]
