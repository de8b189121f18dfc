"""A detector on image files, folders, patterns and videos."""

import csv
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from tqdm import tqdm

from ..engine.errors import EngineError
from .detector import Detections, Detector

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
COLUMNS = ("file", "frame", "class", "score", "x1", "y1", "x2", "y2")


@dataclass
class Summary:
    """What a run of `detect_files` did."""

    images: int = 0  # frames of videos included
    detections: int = 0
    unreadable: list[str] = field(default_factory=list)  # one message for each input or file


@dataclass
class _Frame:
    file: Path
    index: int | None  # of a video's frame, from 0
    image: np.ndarray


def detect_files(
    detector: Detector,
    inputs: Sequence[str],
    out_dir: str | Path,
    score_thr: float = 0.3,
    classes: Sequence[str] | None = None,
    batch_size: int = 1,
    pictures: bool = True,
) -> Summary:
    """Run a detector over files; what cannot be read is named on stderr and left out.

    Writes into `out_dir`:

    - `detections.json`: a list in COCO's result format, of dicts with `image_id` (counted from 1
      over all pictures and frames), `category_id` (the class's position among the detector's,
      counted from 1), `bbox` (x, y, width, height in pixels) and `score`, and beside these
      `file_name`, `category_name` and, of a video, `frame` (counted from 0);
    - `detections.csv`: the same, one row each: file, frame, class, score, x1, y1, x2, y2;
    - the pictures and videos with the boxes drawn, in `pictures/`, in the folders they were in.

    Args:
        inputs: files, folders (the images and videos right in them) and patterns, in which `**`
            stands for folders of any depth.
        score_thr, classes, batch_size: as `Detector` has them.
        pictures: whether to draw.

    Raises:
        EngineError: a name in `classes` is unknown, or nothing could be read.
    """
    if classes is not None:
        detector.check_classes(classes)
    summary = Summary()

    def skip(message: str) -> None:
        summary.unreadable.append(message)
        tqdm.write(f"skipped: {message}", file=sys.stderr)

    files = list(_files(inputs, skip))
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn = _Pictures(out_dir / "pictures", files) if pictures else None
    items = []
    with (
        open(out_dir / "detections.csv", "w", newline="", encoding="utf-8") as file,
        tqdm(total=sum(map(_length, files)), unit="image", disable=None) as bar,
    ):
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        frames = _frames(detector, files, skip)
        try:
            while batch := list(islice(frames, batch_size)):
                try:
                    images = [frame.image for frame in batch]
                    results = detector(images, score_thr, classes, batch_size)
                except EngineError as error:
                    names = ", ".join(dict.fromkeys(str(frame.file) for frame in batch))
                    raise EngineError(f"{names}: {error}") from error
                for frame, result in zip(batch, results, strict=True):
                    summary.images += 1
                    summary.detections += len(result)
                    for item in _items(frame, result, summary.images):
                        items.append(item)
                        x, y, width, height = item["bbox"]
                        corners = (round(v, 2) for v in (x, y, x + width, y + height))
                        index = "" if frame.index is None else frame.index
                        name, score = item["category_name"], round(item["score"], 4)
                        rows.writerow([frame.file, index, name, score, *corners])
                    if drawn is not None:
                        drawn.add(frame, result)
                bar.update(len(batch))
        finally:
            if drawn is not None:
                drawn.close()
    (out_dir / "detections.json").write_text(json.dumps(items), encoding="utf-8")
    if not summary.images:
        raise EngineError(f"nothing could be read ({len(summary.unreadable)} skipped)")
    return summary


def _files(inputs: Sequence[str], skip) -> Iterator[Path]:
    found: dict[Path, None] = {}
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if _is_media(p))
            if not inside:
                skip(f"{given}: the folder has no image or video in it")
        elif path.exists():
            inside = [path]
        elif glob.has_magic(given):
            matches = map(Path, glob.glob(str(path), recursive=True))
            inside = sorted(p for p in matches if p.is_file())
            if not inside:
                skip(f"{given}: no file matches")
        else:
            inside = []
            skip(f"{given}: no such file or folder")
        found.update(dict.fromkeys(inside))
    yield from found


def _is_media(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (*IMG_EXTENSIONS, *VIDEOS)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def _length(path: Path) -> int:
    if not _is_video(path):
        return 1
    return max(0, int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)))


def _frames(detector: Detector, files: Iterable[Path], skip) -> Iterator[_Frame]:
    for path in files:
        if _is_video(path):
            video = cv2.VideoCapture(str(path))
            count = 0
            while (image := video.read()[1]) is not None:
                yield _Frame(path, count, image)
                count += 1
            if not count:
                skip(f"{path} is not a video that OpenCV can read")
            continue
        try:
            yield _Frame(path, None, detector.read(path))
        except (OSError, ValueError) as error:  # a DataError is a ValueError
            skip(str(error))


def _items(frame: _Frame, result: Detections, image_id: int) -> Iterator[dict]:
    for box, score, label in zip(
        result.boxes.tolist(), result.scores.tolist(), result.labels.tolist(), strict=True
    ):
        x1, y1, x2, y2 = box
        yield {
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
            "file_name": str(frame.file),
            "category_name": result.classes[label],
        } | ({} if frame.index is None else {"frame": frame.index})


class _Pictures:
    """Writes pictures and videos below `folder`, in the folders that `files` have in common."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.folder = folder
        parents = [path.absolute().parent for path in files]
        self.root = os.path.commonpath(parents) if parents else ""
        taken = {path.resolve() for path in files}
        for path in files:
            if self.path(path).resolve() in taken:
                raise EngineError(f"{folder}: {self.path(path)} would be overwritten")
        self.video: tuple[Path, cv2.VideoWriter] | None = None

    def path(self, file: Path) -> Path:
        path = self.folder / file.absolute().relative_to(self.root)
        suffixes = (".mp4",) if _is_video(file) else (".jpg", ".jpeg", ".png")
        if file.suffix.lower() not in suffixes:
            path = path.with_name(path.name + suffixes[-1])
        return path

    def add(self, frame: _Frame, result: Detections) -> None:
        path = self.path(frame.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if frame.index is None:
            result.save(path)
            return
        image = np.asarray(result.draw())[..., ::-1]
        if self.video is None or self.video[0] != path:
            self.close()
            rate = cv2.VideoCapture(str(frame.file)).get(cv2.CAP_PROP_FPS) or 25.0
            size = image.shape[1], image.shape[0]
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            self.video = path, cv2.VideoWriter(str(path), codec, rate, size)
            if not self.video[1].isOpened():
                raise EngineError(f"cannot write the video {path}")
        self.video[1].write(image)

    def close(self) -> None:
        if self.video is not None:
            self.video[1].release()
            self.video = None
