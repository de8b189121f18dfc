"""Boxes drawn on pictures."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")  # knows more than Latin


def draw_boxes(
    image: np.ndarray,
    boxes: ArrayLike,
    labels: Sequence[int],
    scores: Sequence[float] | None,
    classes: Sequence[str],
    min_side: int = 640,
    max_side: int | None = None,
) -> np.ndarray:
    """Draw labelled boxes, one colour per class.

    The picture is enlarged or reduced so that its longer side has between `min_side` and `max_side`
    pixels; lines and labels have a size relative to it. A label stands where it hides least.

    Args:
        image: uint8 [H, W, 3], RGB.
        boxes: [N, 4], (x1, y1, x2, y2) in pixels of `image`.
        labels: N indices into `classes`.
        scores: N scores in [0, 1], or None to write class names only.
        classes: their names.

    Returns:
        uint8 [H', W', 3], RGB.
    """
    height, width = image.shape[:2]
    longer = max(height, width)
    scale = max(longer, min_side) / longer
    if max_side is not None:
        scale = min(scale, max_side / longer)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4) * scale
    if scores is None:
        order = np.arange(len(boxes))
        texts = [classes[label] for label in labels]
    else:
        order = np.argsort(np.asarray(scores, dtype=float), kind="stable")  # the best on top
        texts = [f"{classes[i]} {score:.2f}" for i, score in zip(labels, scores, strict=True)]

    draw = ImageDraw.Draw(picture, "RGBA")
    line = max(1, round(max(size) / 240))
    font = _font(max(size))
    for i in order:
        x1, y1, x2, y2 = boxes[i].round().astype(int).tolist()
        x2, y2 = max(x1, x2), max(y1, y2)
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black", width=line + 2)
        draw.rectangle((x1, y1, x2, y2), outline=colour(labels[i], len(classes)), width=line)
    taken = np.empty((0, 4))
    for i in order[::-1]:  # the best has the first choice
        text_size = (round(font.getlength(texts[i])) + 2 * line, sum(font.getmetrics()))
        x, y = _label_corner(boxes[i], text_size, size, boxes, taken)
        place = (x, y, x + text_size[0], y + text_size[1])
        taken = np.vstack([taken, place])
        ground = colour(labels[i], len(classes))
        bright = np.dot(ground, (0.299, 0.587, 0.114)) > 110
        draw.rectangle(place, fill=(*ground, 216))
        draw.text((x + line, y), texts[i], fill="black" if bright else "white", font=font)
    return np.asarray(picture)


def side_by_side(panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pictures of one height in a row, each under its title.

    Args:
        panels: uint8 [H, W, 3] images, RGB, by their titles.

    Returns:
        uint8 [H', W', 3], RGB.
    """
    images = list(panels.values())
    height = max(image.shape[0] for image in images)
    font = _font(max(max(image.shape[:2]) for image in images), 1.4)
    gap = font.size // 2
    top = sum(font.getmetrics()) + gap
    width = sum(image.shape[1] for image in images) + gap * (len(images) - 1)
    row = Image.new("RGB", (width, top + height), "white")
    draw = ImageDraw.Draw(row)
    x = 0
    for title, image in panels.items():
        row.paste(Image.fromarray(image), (x, top))
        draw.text((x + image.shape[1] / 2, top / 2), title, fill="black", font=font, anchor="mm")
        x += image.shape[1] + gap
    return np.asarray(row)


def colour(index: int, count: int) -> tuple[int, int, int]:
    """RGB of one of `count` classes: bright, neighbours far apart."""
    hue = index / count if count <= 12 else index * 0.618034 % 1  # the golden ratio
    red, green, blue = colorsys.hls_to_rgb(hue, 0.65, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _font(longer_side: int, factor: float = 1.0) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT), max(8, round(factor * longer_side / 46)))


def _label_corner(box, text_size, size, boxes, taken) -> tuple[int, int]:
    """Where the label of `box` hides least: outside of it, at its upper edge if possible.

    All in pixels of the picture. `size` and `text_size` are (width, height), `boxes` [N, 4] are all
    that are drawn, `taken` [M, 4] the places of other labels.
    """
    x1, y1, x2, y2 = box
    width, height = text_size
    left, right, above, below = x1, x2 - width, y1 - height, y2
    corners = [(left, above), (right, above), (left, below), (right, below)]
    corners += [(x2, y1), (x1 - width, y1), (left, y1), (left, y2 - height)]
    limit = np.maximum(np.subtract(size, text_size), 0)
    corners = np.clip(np.round(corners), 0, limit)
    places = np.hstack([corners, corners + text_size])
    # Another label would be unreadable, an object merely covered in part.
    cost = 10 * _overlap(places, taken) + _overlap(places, boxes) + 2 * _overlap(places, box[None])
    cost += np.arange(len(cost)) * 0.05 * width * height  # above, unless another is clearly better
    x, y = corners[cost.argmin()].astype(int).tolist()
    return x, y


def _overlap(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[P]: the area in pixels that each of `places` [P, 4] shares with `boxes` [N, 4], summed."""
    low = np.maximum(places[:, None, :2], boxes[None, :, :2])
    high = np.minimum(places[:, None, 2:], boxes[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=-1).sum(axis=1)
