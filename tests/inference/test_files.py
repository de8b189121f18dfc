"""tools/detect.py from the command line."""

import csv
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.command import run_tool
from tests.inference.conftest import QUICKSTART, TINY


@pytest.fixture
def detect(checkpoint, tmp_path, monkeypatch, capfd):
    """Runs the tool in an empty folder; what it exits with, and stdout and stderr."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*args, config=TINY, weights=checkpoint):
        status = run_tool("detect.py", config, weights, *args, "--device", "cpu")
        return status, *capfd.readouterr()

    return run


def picture(path, size=(64, 48), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    return path


def results(folder):
    items = json.loads((folder / "detections.json").read_text())
    with open(folder / "detections.csv", newline="", encoding="utf-8") as file:
        return items, list(csv.DictReader(file))


def test_files_folders_and_patterns(detect, tmp_path):
    one = picture(tmp_path / "one.png")
    picture(tmp_path / "a" / "1.jpg", seed=1)
    picture(tmp_path / "b" / "1.jpg", seed=2)
    picture(tmp_path / "b" / "deep" / "2.bmp", (40, 80), seed=3)
    (tmp_path / "a" / "notes.txt").write_text("not looked at")
    inputs = [one, tmp_path / "a", tmp_path / "b" / "**" / "*.*"]
    status, out, err = detect(
        *inputs, "--amp", "--score-thr", 0, "--batch-size", 3, "--out-dir", "out"
    )
    assert status is None, err
    assert "skipped" not in err + out
    out = tmp_path / "work" / "out"
    drawn = sorted(p.relative_to(out).as_posix() for p in (out / "pictures").rglob("*.*"))
    assert drawn == [
        "pictures/a/1.jpg",
        "pictures/b/1.jpg",
        "pictures/b/deep/2.bmp.png",
        "pictures/one.png",
    ]
    assert Image.open(out / "pictures" / "b" / "deep" / "2.bmp.png").size == (320, 640)
    items, rows = results(out)
    files = [str(one), *(str(tmp_path / p) for p in ("a/1.jpg", "b/1.jpg", "b/deep/2.bmp"))]
    assert list(dict.fromkeys(item["file_name"] for item in items)) == files
    assert [item["image_id"] for item in items] == [
        files.index(item["file_name"]) + 1 for item in items
    ]
    assert len(rows) == len(items) > 4
    for item, row in zip(items, rows, strict=True):
        assert (row["file"], row["frame"], row["class"]) == (item["file_name"], "", "thing")
        assert item["category_id"] == 1
        assert float(row["score"]) == pytest.approx(item["score"], abs=1e-4)
        x, y, width, height = item["bbox"]
        corners = [float(row[key]) for key in ("x1", "y1", "x2", "y2")]
        assert corners == pytest.approx([x, y, x + width, y + height], abs=0.01)


def test_only_what_is_asked_for(detect, tmp_path, quickstart_checkpoint):
    photo = picture(tmp_path / "a.png")
    digits = dict(config=QUICKSTART, weights=quickstart_checkpoint)
    options = ["--no-pictures", "--score-thr"]
    detect(photo, *options, 0, **digits)
    out = tmp_path / "work" / "work_dirs" / "detect"
    every = results(out)[0]
    wanted = every[0]["category_name"]
    threshold = sorted(item["score"] for item in every)[len(every) // 2]
    detect(photo, *options, threshold, "--classes", wanted, **digits)
    assert results(out)[0] == [
        item for item in every if item["score"] >= threshold and item["category_name"] == wanted
    ]
    assert not (out / "pictures").exists()


def write_video(path, frames=5):
    codec = cv2.VideoWriter_fourcc(*"mp4v" if path.suffix == ".mp4" else "MJPG")
    video = cv2.VideoWriter(str(path), codec, 10, (64, 48))
    for i in range(frames):
        video.write(np.full((48, 64, 3), 40 * i, np.uint8))
    video.release()
    return path


def test_videos(detect, tmp_path):
    videos = [write_video(tmp_path / "a.avi"), write_video(tmp_path / "b.mp4", 3)]
    photo = picture(tmp_path / "c.png")
    status, _, err = detect(*videos, photo, "--batch-size", 4, "--score-thr", 0)
    assert status is None, err
    out = tmp_path / "work" / "work_dirs" / "detect"
    items, rows = results(out)
    frames = {(item["file_name"], item.get("frame")) for item in items}
    assert frames <= {(str(videos[0]), i) for i in range(5)} | {
        *((str(videos[1]), i) for i in range(3)),
        (str(photo), None),
    }
    assert {row["frame"] for row in rows} >= {"0", "4", ""}
    for name, count in (("a.avi.mp4", 5), ("b.mp4", 3)):
        video = cv2.VideoCapture(str(out / "pictures" / name))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == count
        assert video.get(cv2.CAP_PROP_FPS) == 10
        ok, image = video.read()
        assert ok
        assert image.shape == (480, 640, 3)


def bad_files(folder):
    """Each with a part of the message that names it."""
    cut = picture(folder / "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:1500])
    (folder / "text.jpg").write_text("words")
    (folder / "words.txt").write_text("words")
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "empty").mkdir()
    return {
        cut: "cannot decode",
        folder / "text.jpg": "not an image",
        folder / "words.txt": "not an image",
        folder / "zero.mp4": "not a video",
        folder / "empty": "no image or video",
        folder / "none.png": "no such file",
        folder / "*.gif": "no file matches",
    }


def test_what_cannot_be_read_is_named_and_the_rest_is_done(detect, tmp_path):
    bad = bad_files(tmp_path)
    status, out, err = detect(*bad, picture(tmp_path / "good.png"))
    assert status is None
    lines = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(lines) == len(bad)
    for path, message in bad.items():
        assert any(str(path) in line and message in line for line in lines), path
    assert "1 images" in out
    assert "7 inputs skipped" in out


def test_exits_with_an_error_if_nothing_could_be_read(detect, tmp_path):
    status, _, err = detect(*bad_files(tmp_path))
    assert status == "error: nothing could be read (7 skipped)"
    assert err.count("skipped: ") == 7


def test_unusual_images(detect, tmp_path):
    grey = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21
    cv2.imwrite(str(tmp_path / "grey16.png"), grey)
    cv2.imwrite(str(tmp_path / "grey.jpg"), (grey >> 8).astype(np.uint8))
    Image.new("RGBA", (64, 48), (255, 0, 0, 40)).save(tmp_path / "rgba.webp")
    Image.new("P", (1, 1)).save(tmp_path / "one.png")
    status, out, err = detect(tmp_path)
    assert status is None
    assert "4 images" in out
    assert "skipped" not in err


def test_refusals(detect, tmp_path, quickstart_checkpoint):
    photo = picture(tmp_path / "a.png")
    for arguments, files, message in (
        ([photo, "--classes", "thing", "cat"], {}, "unknown class cat; the detector knows thing"),
        ([photo], {"config": "none.py"}, "config not found: none.py"),
        ([photo], {"weights": "none.pth"}, "checkpoint not found: none.pth"),
        ([photo], {"weights": quickstart_checkpoint}, "does not fit the model"),
    ):
        status, _, _ = detect(*arguments, **files)
        assert status.startswith("error: ")
        assert message in status
        assert "\n" not in status


def test_inputs_are_never_overwritten(detect, tmp_path):
    photo = picture(tmp_path / "pictures" / "a.png")
    before = photo.read_bytes()
    status, _, _ = detect(photo, "--out-dir", tmp_path)
    assert "would be overwritten" in status
    assert photo.read_bytes() == before
