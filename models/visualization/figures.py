"""What the figures of this folder have in common: images on axes, enlarged, and their look."""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

DPI = 200
STYLE = {"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "text.parse_math": False}


@contextmanager
def style() -> Iterator[None]:
    """Of all figures here; what is drawn in the block has it."""
    with matplotlib.rc_context(STYLE):
        yield


def panels(
    rows: int,
    columns: int,
    image: np.ndarray,
    width: float = 3.2,
    bars: int | None = None,
    lines: int = 1,
) -> tuple[Figure, list]:
    """A figure of rows × columns axes for pictures of the shape of `image`.

    Args:
        width: of one picture, in inches.
        bars: colour bars in a row; by default one for each picture.
        lines: of the longest title.

    Returns:
        The figure and its axes, row by row.
    """
    height = max(width * image.shape[0] / image.shape[1], 0.5)
    bars = columns if bars is None else bars
    size = (columns * (width + 0.1) + bars * 0.6, rows * (height + 0.1 + 0.15 * lines))
    figure = Figure(size, dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).ravel().tolist()


def show(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """An image, uint8 [H, W, 3] RGB, in whose pixels the axes then count; see `View`."""
    height, width = image.shape[:2]
    scale = max(1.0, 640 / max(height, width))
    size = (round(width * scale), round(height * scale))
    enlarged = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    axes.imshow(enlarged, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()
    axes.set_title(title)


def grey(image: np.ndarray) -> np.ndarray:
    """An image, uint8 [H, W, 3] RGB, without its colours, for others to lie on."""
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def rendered(figure: Figure) -> np.ndarray:
    """The figure as uint8 [H, W, 3], RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
