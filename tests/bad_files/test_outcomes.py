"""Opens every bad file as a user would, and compares what becomes of it with outcomes.csv.

A row's outcome is `accepted`, `accepted: ` and a part of what has to be said, or `refused: ` and a
part of the reason.
"""

import csv
import functools
import gc
import json
import re
import tempfile
from pathlib import Path

import pytest
from dcndet.data.coco import DetectionDataset, DetectionMetric
from dcndet.data.errors import DataError
from dcndet.data.loading import LoadImageFromFile
from dcndet.data.voc import convert_voc
from dcndet.models.engine import CheckpointError, EngineError, load_weights
from mmengine.runner import CheckpointLoader
from PIL import Image

from tests.engine import toy

from . import annotations
from .make import SECTIONS, write

TABLE = Path(__file__).with_name("outcomes.csv")


def open_set(path, test_mode):
    pictures = path.parent / "pictures"
    pictures.mkdir()
    annotations.write_pictures(pictures)
    dataset = DetectionDataset(
        ann_file=str(path),
        data_prefix={"img": str(pictures)},
        metainfo={"classes": annotations.CLASSES},
        test_mode=test_mode,
    )
    assert len(dataset) > 0
    if test_mode:
        DetectionMetric(ann_file=str(path)).check_dataset(dataset)


def open_image(path):
    size = re.search(r"(\d+)x(\d+)", path.name)
    width, height = map(int, size.groups()) if size else (40, 30)
    loaded = LoadImageFromFile()({"img_path": str(path), "width": width, "height": height})
    assert loaded["img"].shape == (height, width, 3)
    image = {"id": 1, "file_name": path.name, "width": width, "height": height}
    content = {"images": [image], "annotations": [], "categories": []}
    path.with_name("set.json").write_text(json.dumps(content))
    DetectionDataset(
        ann_file=str(path.with_name("set.json")),
        data_prefix={"img": str(path.parent)},
        metainfo={"classes": ()},
        test_mode=True,
    )


def open_voc(path):
    """An image that is skipped counts as refused."""
    pictures = path.parent / "pictures"
    pictures.mkdir()
    Image.new("RGB", (40, 30)).save(pictures / f"{path.stem}.jpg")
    lists = path.parent / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text(f"{path.stem}\n")
    # besides a good one, since a folder without files is another error
    (path.parent / "other.xml").touch()
    (train,) = convert_voc(path.parent, annotations=".", images=pictures, lists=lists)
    problems = "\n".join(train.problems)
    if train.skipped:
        raise DataError(problems)
    assert path.name in problems or not problems
    return problems


def open_list(path):
    for name in ("one", "two"):
        Image.new("RGB", (40, 30)).save(path.with_name(f"{name}.jpg"))
        size = "<size><width>40</width><height>30</height></size>"
        path.with_name(f"{name}.xml").write_text(f"<annotation>{size}</annotation>")
    (split,) = convert_voc(path.parent, splits=[path.stem], lists=path.parent)
    return "\n".join([f"{split.images} of 2 images", *split.problems])


def open_weights(path):
    checkpoint = CheckpointLoader.load_checkpoint(str(path), map_location="cpu")
    load_weights(toy.Toy(), checkpoint, str(path), strict=True)


def open_resumable(path):
    """One that is accepted with nothing to say leads to the losses of a whole run."""
    losses, runner = toy.train(path.parent / "work", epochs=2, resume=True, load_from=str(path))
    lines = Path(runner.logger._log_file).read_text().splitlines()
    usual = ("has no metainfo", "FileClient", "LinearLR ends after the run")
    warnings = [line for line in lines if "WARNING" in line and not any(u in line for u in usual)]
    if not warnings:
        assert losses == whole_losses()
    return "\n".join(warnings)


@functools.cache
def whole_losses():
    with tempfile.TemporaryDirectory() as folder:
        return toy.train(folder, epochs=2)[0]


# kind in the table: section of the made files, what opens one and returns what it says, its error
OPENERS = {
    "training": ("annotations", lambda path: open_set(path, test_mode=False), DataError),
    "evaluation": ("annotations", lambda path: open_set(path, test_mode=True), DataError),
    "image": ("images", open_image, DataError),
    "voc": ("voc", open_voc, DataError),
    "list": ("lists", open_list, DataError),
    "weights": ("checkpoints", open_weights, CheckpointError),
    "resuming": ("checkpoints", open_resumable, EngineError),
}

with TABLE.open(encoding="utf-8", newline="") as file:
    ROWS = [(row["kind"], row["file"], row["outcome"]) for row in csv.DictReader(file)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Datasets collect garbage when they are opened, which takes most of the time."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def test_the_table_has_each_file_once():
    made = [(kind, file) for kind, (section, *_) in OPENERS.items() for file in SECTIONS[section]]
    assert sorted((kind, file) for kind, file, _ in ROWS) == sorted(made)
    assert {section for section, *_ in OPENERS.values()} == set(SECTIONS)


@pytest.mark.parametrize(
    ("kind", "file", "outcome"), ROWS, ids=[f"{kind}-{file}" for kind, file, _ in ROWS]
)
def test_outcome(kind, file, outcome, tmp_path, warnings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section, opener, refusal = OPENERS[kind]
    path = tmp_path / file
    write(SECTIONS[section][file], path)
    expected, _, part = outcome.partition(": ")
    assert expected == "accepted" or part
    try:
        said = "\n".join(filter(None, [opener(path), *warnings]))
        verdict = "accepted"
    except refusal as error:
        said, verdict = str(error), "refused"
        assert str(path) in said.splitlines()[0]
        # What a terminal shows in a line; only the classes that do not match take several.
        assert len(said) < 500 + len(str(path))
        assert said.replace("\n  ", "").isprintable()
        assert "\n" not in said or "classes of the config" in said
    assert (verdict, part) == (expected, part if part in said else said)
    assert part or not said
    assert not Path("executed").exists()
