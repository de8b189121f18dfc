"""Where the samples of a convolution-like operator lie, and the pixels around them."""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ..grid import Deltas, Grid

# What changes from image to image: no kernel is compiled anew for a value of it.
SIZES = (
    *("positions", "pixels", "h", "w", "out_h", "out_w"),
    *("delta_n", "delta_g", "delta_k", "delta_h", "delta_w"),
    *("mask_n", "mask_g", "mask_k", "mask_h", "mask_w"),
)


@dataclass(frozen=True)
class Where:
    """A grid and the offsets of its samples, as the arguments of kernels.

    `delta_y`, `delta_x` and `mask` are [N, G, K, H_out, W_out] of the strides that are named after
    the axes. `kernel` is (rows, columns, pixels from one output position to the next along y, x).
    """

    delta_y: Tensor
    delta_x: Tensor
    mask: Tensor | None
    delta_n: int
    delta_g: int
    delta_k: int
    delta_h: int
    delta_w: int
    mask_n: int
    mask_g: int
    mask_k: int
    mask_h: int
    mask_w: int
    positions: int
    pixels: int
    h: int
    w: int
    out_h: int
    out_w: int
    points: int
    kernel: tuple[int, int, int, int]
    start_y: float
    start_x: float
    step_y: float
    step_x: float
    scale: float
    BY_COLUMN: bool
    WITHOUT_CENTRE: bool
    MODULATED: bool

    @classmethod
    def of(cls, deltas: Deltas, grid: Grid, input: Tensor) -> "Where":
        n, _, h, w = input.shape
        out_h, out_w = deltas.y.shape[3:]
        return cls(
            deltas.y,
            deltas.x,
            deltas.mask,
            *deltas.y.stride(),
            *((0,) * 5 if deltas.mask is None else deltas.mask.stride()),
            positions=n * out_h * out_w,
            pixels=n * h * w,
            h=h,
            w=w,
            out_h=out_h,
            out_w=out_w,
            points=grid.num_points,
            kernel=(*grid.kernel, *grid.stride),
            start_y=float(grid.start[0]),
            start_x=float(grid.start[1]),
            step_y=float(grid.step[0]),
            step_x=float(grid.step[1]),
            scale=float(grid.scale),
            BY_COLUMN=grid.by_column,
            WITHOUT_CENTRE=grid.without_centre,
            MODULATED=deltas.mask is not None,
        )


def strides(name: str, deltas: Tensor | None) -> dict[str, int]:
    """Of [N, G, K, H_out, W_out], as the arguments of kernels."""
    values = (0,) * 5 if deltas is None else deltas.stride()
    return {f"{name}_{axis}": s for axis, s in zip("ngkhw", values, strict=True)}


@triton.jit
def unravel(position, out_h, out_w):
    """(image, row, column) of positions numbered through [N, H_out, W_out]."""
    row = position // out_w
    return row // out_h, row % out_h, position % out_w


@triton.jit
def at(place, g, k, strides):
    """Element of [N, G, K, H_out, W_out] of those strides."""
    n, y, x = place
    own = tl.cast(g, n.dtype) * strides[1] + tl.cast(k, n.dtype) * strides[2]
    return n * strides[0] + own + y * strides[3] + x * strides[4]


@triton.jit
def kernel_point(k, kernel, start, step, BY_COLUMN: tl.constexpr, WITHOUT_CENTRE: tl.constexpr):
    """y and x of kernel point k at the first output position."""
    if WITHOUT_CENTRE:
        k = tl.where(k >= kernel[0] * kernel[1] // 2, k + 1, k)
    if BY_COLUMN:
        row, column = k % kernel[0], k // kernel[0]
    else:
        row, column = k // kernel[1], k % kernel[1]
    return start[0] + row * step[0], start[1] + column * step[1]


@triton.jit
def corners(
    where, place, valid, g, k,
    BY_COLUMN: tl.constexpr, WITHOUT_CENTRE: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The four pixels around the sample of point k of group g, in a map that is zero outside.

    where: (delta_y, delta_x, their strides, mask, its strides, kernel, start, step, scale, h, w),
    all as in `Where`.

    Returns the index of the upper left pixel in [N, H, W]; which of (upper left, upper right,
    lower left, lower right) are inside the map; and how far the position is below and right of the
    upper left one, 0 to 1. A position that is not a number is outside.
    """
    n, out_y, out_x = place
    delta_y, delta_x, strides, _mask, _mask_strides, kernel, start, step, scale, h, w = where
    element = at(place, g, k, strides)
    point = kernel_point(k, kernel, start, step, BY_COLUMN, WITHOUT_CENTRE)
    y = (out_y * kernel[2]).to(ACC) + tl.cast(point[0], ACC)
    x = (out_x * kernel[3]).to(ACC) + tl.cast(point[1], ACC)
    y += tl.load(delta_y + element, mask=valid, other=0.0).to(ACC) * tl.cast(scale, ACC)
    x += tl.load(delta_x + element, mask=valid, other=0.0).to(ACC) * tl.cast(scale, ACC)
    y = tl.minimum(tl.maximum(tl.where(y == y, y, -2.0), -2.0), h)
    x = tl.minimum(tl.maximum(tl.where(x == x, x, -2.0), -2.0), w)
    low_y, low_x = tl.floor(y), tl.floor(x)
    row, column = low_y.to(INDEX), low_x.to(INDEX)
    top, bottom = valid & (row >= 0) & (row < h), valid & (row >= -1) & (row + 1 < h)
    left, right = (column >= 0) & (column < w), (column >= -1) & (column + 1 < w)
    inside = (top & left, top & right, bottom & left, bottom & right)
    return (n.to(INDEX) * h + row) * w + column, inside, (y - low_y, x - low_x)


@triton.jit
def modulation(where, place, valid, g, k, ACC: tl.constexpr, MODULATED: tl.constexpr):
    """The mask's values; ones where there is no mask."""
    if MODULATED:
        result = tl.load(where[3] + at(place, g, k, where[4]), mask=valid, other=0.0).to(ACC)
    else:
        result = tl.full(valid.shape, 1.0, ACC)
    return result


@triton.jit
def corner_weights(part, scale):
    """Bilinear weights of the four corners, times `scale`."""
    y, x = part
    upper, lower = (1 - y) * scale, y * scale
    return upper * (1 - x), upper * x, lower * (1 - x), lower * x


@triton.jit
def load_corners(image, pixel, inside, w, stride, channels, channels_valid):
    """Channels of the four corners: [positions, channels] each, zero outside.

    stride: elements from pixel to pixel.
    """
    upper = image + (pixel * stride)[:, None] + channels[None, :]
    lower = image + ((pixel + w) * stride)[:, None] + channels[None, :]
    within = channels_valid[None, :]
    return (
        tl.load(upper, mask=inside[0][:, None] & within, other=0.0),
        tl.load(upper + stride, mask=inside[1][:, None] & within, other=0.0),
        tl.load(lower, mask=inside[2][:, None] & within, other=0.0),
        tl.load(lower + stride, mask=inside[3][:, None] & within, other=0.0),
    )


@triton.jit
def interpolate(
    image, pixel, inside, weights, w, stride, channels, channels_valid, ACC: tl.constexpr
):
    """Weighted sum of the four corners: [positions, channels], in ACC."""
    values = load_corners(image, pixel, inside, w, stride, channels, channels_valid)
    total = values[0].to(ACC) * weights[0][:, None]
    total += values[1].to(ACC) * weights[1][:, None]
    total += values[2].to(ACC) * weights[2][:, None]
    total += values[3].to(ACC) * weights[3][:, None]
    return total
