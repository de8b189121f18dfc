"""Sets made on the spot: warped handwritten digits on textured backgrounds.

The handwriting is scikit-learn's ``load_digits``: 1797 digits of 8x8 pixels. Each one is scaled,
rotated, sheared and bent as it is drawn, so that a class shows itself in strokes whose places and
directions vary: what deformable layers are made for.

:func:`make_digits` makes a detection set, :func:`make_crops` one of single digits to pre-train on.
"""

import json
import shutil
import tempfile
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage
from sklearn.datasets import load_digits

from .coco import write_annotations, write_json
from .errors import DataError

CLASSES = tuple("0123456789")
DESCRIPTION = "warped handwritten digits"
CROPS = "crops of warped handwritten digits"
MAX_CLUTTER = 20  # beyond it there is no place left
VERSION = 2  # of the drawing: a set of another version is made anew
GRID = 8  # side of an image of load_digits, in pixels
VAL_SHARE = 0.2  # of each class's handwriting
CROPS_VAL_SHARE = 0.1  # of the rest, for the crops
MAX_ROTATION = np.deg2rad(40)  # below the angle where a 6 becomes a 9
MAX_OVERLAP = 0.05  # of a digit's box by another's
CUT_ANGLE = np.deg2rad(25)  # of a fragment's edges, from upright
MAX_ELONGATION = 2.2  # of a fragment
TRIES = 10  # places for a fragment, of which the one is taken where least of it is hidden


class _Digit(NamedTuple):
    """A digit in an image, its box's upper left corner at (x, y); all in pixels."""

    label: int
    x: int
    y: int
    ink: np.ndarray  # 0..1 per pixel, [height, width] of the box
    colour: np.ndarray  # RGB, 0..255
    height: float  # before it was warped

    @property
    def box(self):
        return [self.x, self.y, self.ink.shape[1], self.ink.shape[0]]


def make_digits(root, num_train=1000, num_val=200, size=128, seed=0, clutter=0):
    """Make a COCO-format dataset of warped digits, unless ``root`` holds that very set already.

    Writes ``root/{train,val}/*.png`` and ``root/annotations/{train,val}.json``; an annotation file
    is written after its images, so an interrupted set is made again. Train and val share no
    handwriting. The same arguments give the same bytes (with the same numpy, scipy and Pillow).

    An annotation's ``segmentation`` (RLE) is the digit's ink, also where the edge of another digit
    lies over it; ``area`` is the ink's, in pixels, and ``bbox`` its tight box.

    Clutter is fragments of digits, as in cluttered MNIST, that argue for the wrong class. A
    fragment is about a quarter of a digit of another class than the digit that it is put beside,
    from the same handwriting, of about the same size and the same colour. It straddles the edge of
    that digit's box or lies just outside, and leaves all digits' ink and a gap around it alone.
    Fragments are not annotated. But for them the images and annotations of a cluttered set are
    those of the clean one.

    Args:
        root (str | Path): folder of the set.
        num_train (int): images to train on.
        num_val (int): images to evaluate on.
        size (int): side of the square images in pixels, at least 64. A digit is 3/16 to 9/16 of it
            high before it is warped.
        seed (int): not negative.
        clutter (float): fragments per digit on average, 0 to 20.

    Returns:
        bool: whether the set was made; False if it was there.

    Raises:
        DataError: an argument is out of range, or ``root`` holds something else.
    """
    _check(num_train, num_val, size, seed)
    if not 0 <= clutter <= MAX_CLUTTER:
        raise DataError(f"clutter is {clutter}, expected 0 to {MAX_CLUTTER}")
    root = Path(root)
    if (root / "info.json").exists():
        raise DataError(f"{root} holds another set: give another folder, or remove it")
    info = {
        "description": DESCRIPTION,
        "version": VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "size": size,
        "seed": seed,
        "clutter": clutter,
    }
    files = [root / "annotations" / f"{split}.json" for split in ("train", "val")]
    if [_read_info(file, DESCRIPTION) for file in files] == [info, info]:
        return False
    for file in files:
        file.unlink(missing_ok=True)

    pools = _split_handwriting(seed)
    for i, (file, count) in enumerate(zip(files, (num_train, num_val), strict=True)):
        folder = root / file.stem
        folder.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for image_id in range(1, count + 1):
            name = f"{image_id:05d}.png"
            image, digits = _draw_image([seed, i, image_id], size, pools[i], clutter)
            Image.fromarray(image).save(folder / name, compress_level=1)
            images.append({"id": image_id, "file_name": name, "width": size, "height": size})
            annotations += [{"image_id": image_id, **_annotation(digit, size)} for digit in digits]
        write_annotations(file, CLASSES, images, annotations, info)
    return True


def make_crops(root, num_train=8000, num_val=1000, size=64, seed=0):
    """Make a classification set of single warped digits, unless ``root`` holds that very set.

    Writes ``root/{train,val}/<class>/*.png``, as torchvision's ImageFolder reads it, and
    ``root/info.json``; the set appears whole or not at all. Its handwriting is the *training*
    handwriting of the detection sets of the same seed, a tenth of it for ``val``: a network that
    is trained and chosen on it has not seen what those sets are evaluated on. There is no clutter.

    Args:
        root (str | Path): folder of the set. An older set of crops in it is replaced.
        num_train (int): images to train on.
        num_val (int): images to evaluate on.
        size (int): side of the square images in pixels, at least 64. A digit is 3/4 of it to all of
            it high before it is warped, and lies within the image, as in the crops of R-CNN.
        seed (int): not negative.

    Returns:
        bool: whether the set was made; False if it was there.

    Raises:
        DataError: an argument is out of range, or ``root`` holds something else.
    """
    _check(num_train, num_val, size, seed)
    root = Path(root).resolve()  # a link to the folder stays
    info = {"description": CROPS, "version": VERSION, "num_train": num_train, "num_val": num_val}
    info |= {"size": size, "seed": seed}
    found = _read_info(root / "info.json", CROPS)
    if found == info:
        return False
    if found is None and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} is not a set of digits: give another folder, or remove it")

    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{root.name}.", dir=root.parent) as folder:
        made = Path(folder) / root.name
        _draw_crops(made, num_train, num_val, size, seed)
        write_json(made / "info.json", {"info": info})
        if root.exists():
            shutil.rmtree(root)
        made.rename(root)
    return True


def _draw_crops(root, num_train, num_val, size, seed):
    train, val = zip(
        *(_divide(ink, CROPS_VAL_SHARE) for ink in _split_handwriting(seed)[0]), strict=True
    )
    for i, (split, pool, count) in enumerate([("train", train, num_train), ("val", val, num_val)]):
        for label in CLASSES:
            (root / split / label).mkdir(parents=True)
        for image_id in range(1, count + 1):
            # 2 and 3: the detection sets draw from 0 and 1.
            image, digits = _draw_image(
                [seed, 2 + i, image_id], size, pool, counts=(1, 1), heights=(3 / 4, 1)
            )
            path = root / split / CLASSES[digits[0].label] / f"{image_id:05d}.png"
            Image.fromarray(image).save(path, compress_level=1)


def _check(num_train, num_val, size, seed):
    limits = {"num_train": (num_train, 1), "num_val": (num_val, 1), "size": (size, 64)}
    for name, (value, least) in {**limits, "seed": (seed, 0)}.items():
        if value < least:
            raise DataError(f"{name} is {value}, expected at least {least}")


def _read_info(file, description):
    """The info of a file that was written here, None where there is no file."""
    if not file.exists():
        return None
    try:
        info = json.loads(file.read_text(encoding="utf-8"))["info"]
        ours = info["description"] == description
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise DataError(f"{file} is not a set of digits: give another folder, or remove it")
    return info


def _split_handwriting(seed):
    """Two disjoint pools, for train and val: per class an array [n, 8, 8] of ink in 0..1."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    train, val = [], []
    for label in range(len(CLASSES)):
        ink = rng.permutation(digits.images[digits.target == label] / 16)
        for pool, part in zip((train, val), _divide(ink, VAL_SHARE), strict=True):
            pool.append(part)
    return train, val


def _divide(ink, share):
    """All of a class's handwriting but a share of it, and that share."""
    cut = round(len(ink) * share)
    return ink[cut:], ink[:cut]


def _annotation(digit, size):
    mask = np.zeros((size, size), np.uint8, order="F")
    mask[_window(digit)] = digit.ink > 0.5
    encoded = rle.encode(mask)
    return {
        "category_id": digit.label + 1,
        "bbox": digit.box,
        "area": int(mask.sum()),
        "segmentation": {"size": [size, size], "counts": encoded["counts"].decode()},
    }


def _window(digit):
    x, y, w, h = digit.box
    return np.s_[y : y + h, x : x + w]


def _draw_image(seed, size, pool, clutter=0, counts=(3, 5), heights=(3 / 16, 9 / 16)):
    """An image with some digits.

    Args:
        seed (Sequence[int]): what the image is drawn from.
        size (int): its side in pixels.
        pool (Sequence): handwriting by class.
        clutter (float): fragments per digit on average.
        counts (tuple[int, int]): the smallest and the largest number of digits.
        heights (tuple[float, float]): of the smallest and the largest digit before they are warped,
            as shares of ``size``.

    Returns:
        uint8 array [size, size, 3], RGB, and the digits.
    """
    rng = np.random.default_rng(seed)
    image = _background(rng, size)
    digits = []
    count = rng.integers(*counts, endpoint=True)
    # A large digit may leave no room for another one: draw again, and a smaller one will come.
    while len(digits) < count:
        label = int(rng.integers(len(CLASSES)))
        handwriting = pool[label][rng.integers(len(pool[label]))]
        height = size * heights[0] * (heights[1] / heights[0]) ** rng.random()
        ink = _draw_digit(rng, handwriting, height)
        h, w = ink.shape
        if max(h, w) > size:
            continue
        for _ in range(20):
            x, y = int(rng.integers(size - w + 1)), int(rng.integers(size - h + 1))
            if all(_overlap([x, y, w, h], digit.box) <= MAX_OVERLAP for digit in digits):
                patch = image[y : y + h, x : x + w]
                colour = _ink_colour(rng, patch, ink)
                patch += ink[..., None] * (colour - patch)
                digits.append(_Digit(label, x, y, ink, colour, height))
                break
    # A stream of its own: the digits are those of the clean image.
    _add_clutter(np.random.default_rng([*seed, 1]), image, digits, pool, clutter)
    image += rng.normal(0, 4, image.shape)  # grain of the sensor, over ink and paper alike
    return image.clip(0, 255).astype(np.uint8), digits


def _add_clutter(rng, image, digits, pool, level):
    """Draw ``level`` fragments per digit on average into ``image``, as `make_digits` says."""
    size = len(image)
    gap = max(1, round(size / 64))  # between strokes that do not belong together
    taken = np.zeros((size, size), bool)
    for digit in digits:
        taken[_window(digit)] |= digit.ink > 0
    for digit in digits:
        for fragment in islice(_fragments(rng, pool, digit), int(level + rng.random())):
            kept_off = ndimage.binary_dilation(taken, iterations=gap)
            places = [_centred(fragment, size, *_beside(rng, digit)) for _ in range(TRIES)]
            ink = max((place * ~kept_off for place in places), key=np.sum)
            image += ink[..., None] * (digit.colour - image)
            taken |= ink > 0


def _fragments(rng, pool, digit):
    """The corners of digits of other classes, cut at the centre of their ink, without an end."""
    while True:
        label = (digit.label + rng.integers(1, len(CLASSES))) % len(CLASSES)
        handwriting = pool[label][rng.integers(len(pool[label]))]
        ink = _draw_digit(rng, handwriting, digit.height * np.exp(rng.uniform(-0.2, 0.2)))
        y, x = np.indices(ink.shape) - np.reshape(ndimage.center_of_mass(ink), (2, 1, 1))
        angle = rng.uniform(-CUT_ANGLE, CUT_ANGLE)
        across, down = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        for right, below in rng.permutation([(-1, -1), (-1, 1), (1, -1), (1, 1)]):
            corner = ink * (right * across + 0.5).clip(0, 1) * (below * down + 0.5).clip(0, 1)
            mask = corner > 0.5
            if mask.sum() > 0.15 * (ink > 0.5).sum() and not _looks_whole(mask):
                yield _cropped(corner)


def _looks_whole(mask):
    """Whether a fragment could be taken for a 1, as it is long, or for a 0, as it is closed."""
    narrow, wide = np.linalg.eigvalsh(np.cov(np.argwhere(mask).T))  # second moments of the stroke
    return wide > MAX_ELONGATION**2 * narrow or ndimage.binary_fill_holes(mask).sum() > mask.sum()


def _beside(rng, digit):
    """A point (x, y) on the edge of a digit's box, or outside by up to a fifth of the box."""
    x, y, w, h = digit.box
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    to_edge = 1 / (np.abs(direction) / [w / 2, h / 2]).max()
    return [x + w / 2, y + h / 2] + direction * to_edge * rng.uniform(1, 1.4)


def _centred(patch, size, x, y):
    """A canvas [size, size] with the centre of ``patch`` at (x, y), cut off where it ends."""
    h, w = patch.shape
    left, top = round(x - w / 2), round(y - h / 2)
    canvas = np.zeros((size, size))
    inside = canvas[max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)]
    y, x = max(-top, 0), max(-left, 0)
    inside[:] = patch[y : y + inside.shape[0], x : x + inside.shape[1]]
    return canvas


def _draw_digit(rng, ink, height):
    """One digit's ink, 0..1 per pixel, warped and cropped to its own pixels."""
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    shear = rng.uniform(-0.25, 0.25)
    aspect = np.exp(rng.uniform(-0.2, 0.2))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # From the pixels of the image (y, x) back to those of the handwriting, about both centres.
    to_ink = np.linalg.inv(
        height / GRID * rotation @ np.array([[1, 0], [shear, 1]]) @ np.diag([1, aspect])
    )
    side = int(2.2 * height)
    where = np.indices((side, side)) - (side - 1) / 2
    where = np.tensordot(to_ink, where, 1) + _bend(rng, side) + (GRID - 1) / 2
    value = ndimage.map_coordinates(ink, where, order=3, mode="grid-constant")
    # The pen's edge: where less than about half of a pixel of the handwriting is covered.
    least = rng.uniform(0.45, 0.6)
    digit = ((value - least) * height / GRID / 2 + 0.5).clip(0, 1)
    return _cropped(digit)


def _cropped(ink):
    """``ink`` within the tight box of what is more than half covered."""
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _bend(rng, side):
    """A smooth random displacement [2, side, side] in pixels of the handwriting."""
    return np.stack([_noise(rng, side, 5) for _ in range(2)]) * 0.4


def _background(rng, size):
    """Paper: a colour, blotches, grain and stripes. float array [size, size, 3], 0..255."""
    colour = rng.uniform(50, 205)
    paper = colour + rng.uniform(-25, 25, 3)
    paper = paper + 14 * np.stack([_noise(rng, size, 4) for _ in range(3)], -1)
    paper += 8 * _noise(rng, size, 16)[..., None] + 6 * _noise(rng, size, 48)[..., None]
    angle, period = rng.uniform(0, np.pi), rng.uniform(size / 24, size / 6)
    y, x = np.indices((size, size))
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    return paper + rng.uniform(0, 10) * stripes[..., None]


def _ink_colour(rng, patch, digit):
    """A colour [3] that stands out against what it covers: 90 to 140 grey levels off."""
    paper = patch[digit > 0.5].mean()
    sign = 1 if paper < 128 else -1
    return (paper + sign * rng.uniform(90, 140) + rng.uniform(-30, 30, 3)).clip(0, 255)


def _noise(rng, side, cells):
    """Smooth noise [side, side] of unit variance at its ``cells`` x ``cells`` nodes."""
    nodes = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(nodes.resize((side, side), Image.Resampling.BICUBIC))


def _overlap(a, b):
    """The larger share of one of two boxes [x, y, width, height] that the other covers."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])
