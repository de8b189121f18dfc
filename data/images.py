"""Checks of image files against their annotations: of headers before training, of every pixel."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from mmengine.dist import broadcast_object_list, get_rank
from PIL import ExifTags, Image, UnidentifiedImageError
from torch.utils.data import get_worker_info

from .errors import DataError, listed
from .loading import read_image


def check_headers(ann_file: str | Path, folder: str | Path, images: Sequence[dict]):
    """Refuse images that are missing, empty, not images, or of another size than annotated.

    Reads headers only; what is broken behind them is found by :func:`decoding_fault`. In a
    distributed run the first process checks and the others wait for what it found.

    That a set is good is remembered in ``.NAME.checked`` beside the annotation file, or in the
    user's cache directory where that cannot be written; where neither can, it is checked again. It
    holds until the annotation file or the folder itself changes (by time and size): an image that
    is overwritten in place later, or removed from a subfolder, is not noticed here.

    Args:
        ann_file: where ``images`` come from.
        folder: what ``file_name`` is relative to.
        images: COCO images: ``file_name``, ``width`` and ``height`` [pixels].

    Raises:
        DataError: in every process; names the first few images.
    """
    in_worker = get_worker_info() is not None  # a data worker is in no process group
    message = [""]
    if in_worker or get_rank() == 0:
        message = [_check_headers(ann_file, folder, images)]
    if not in_worker:
        broadcast_object_list(message)
    if message[0]:
        raise DataError(message[0])


def _check_headers(ann_file, folder, images):
    state = _state(ann_file, folder)
    if state and any(_read(note) == state for note in _notes(ann_file)):
        return ""
    with ThreadPoolExecutor(32) as pool:  # most of the time is the disk's, or the network's
        faults = pool.map(
            lambda image: header_fault(
                os.path.join(folder, image["file_name"]), image["width"], image["height"]
            ),
            images,
        )
        faults = [fault for fault in faults if fault]
    if faults:
        return (
            f"{len(faults)} of the {len(images)} images in {ann_file} cannot be used:"
            f"{listed(faults)}"
        )
    for note in _notes(ann_file):
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()  # first: a new file changes the state of a folder that has the images too
            note.write_text(_state(ann_file, folder))
            break
    return ""


def header_fault(path: str | Path, width: float, height: float) -> str | None:
    """What is wrong with an image as far as its header shows, or None."""
    try:
        if os.stat(path).st_size == 0:
            return f"{path}: zero bytes"
        with Image.open(path) as image:
            size = image.size
            # Pillow looks for the orientation of a PNG behind its pixels too, and decodes it all.
            known = image.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(ExifTags.Base.Orientation) if known else None
    except UnidentifiedImageError:
        return f"{path}: not an image that Pillow can read"
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    except Exception as error:  # Pillow's readers raise what they please on a broken header
        return f"{path}: {error}"
    return _size_fault(path, size[::-1] if orientation in (5, 6, 7, 8) else size, (width, height))


def decoding_fault(path: str | Path, width: float, height: float) -> str | None:
    """What is wrong with an image when all of it is decoded, as training does, or None."""
    try:
        size = read_image(path).shape[1::-1]
    except DataError as error:
        return str(error)
    return _size_fault(path, size, (width, height))


def _size_fault(path, size, annotated):
    if tuple(size) == tuple(annotated):
        return None
    return (
        f"{path}: {size[0]}x{size[1]} pixels, but its annotations say {annotated[0]}x{annotated[1]}"
    )


def _notes(ann_file):
    """Where it may be remembered that the images of ``ann_file`` are good."""
    path = Path(ann_file).resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    return path.with_name(f".{path.name}.checked"), Path(cache, "dcndet", "checked", name)


def _state(ann_file, folder):
    try:
        file, images = os.stat(ann_file), os.stat(folder or ".")
    except OSError:
        return ""
    return f"1 {file.st_size} {file.st_mtime_ns} {os.path.realpath(folder)} {images.st_mtime_ns}\n"


def _read(note):
    try:
        return note.read_text()
    except (OSError, UnicodeDecodeError):
        return None
