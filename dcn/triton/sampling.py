"""Where deformable convolutions sample: positions of kernel points, and the pixels around them."""

import triton
import triton.language as tl


@triton.jit
def unravel(position, out_h, out_w):
    """(image, row, column) of positions numbered through [N, H_out, W_out]."""
    row = position // out_w
    return row // out_h, row % out_h, position % out_w


@triton.jit
def at(place, channel, strides):
    """Element offset in a tensor of strides (n, c, y, x)."""
    n, y, x = place
    return n * strides[0] + channel * strides[1] + y * strides[2] + x * strides[3]


@triton.jit
def corners(
    offset, strides, place, valid, point, kernel_y, kernel_x, geometry, h, w,
    ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The four pixels around p + p_k + Δp_k, in a map that is zero outside.

    point: number of the kernel point among those of all deform groups. geometry: stride, padding
    and dilation, each (vertical, horizontal).

    Returns the index of the upper left pixel in [N, H, W]; which of (upper left, upper right,
    lower left, lower right) are inside the map; and how far the position is below and right of the
    upper left one, 0 to 1. A position that is not a number is outside.
    """
    n, out_y, out_x = place
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = geometry
    delta = offset + at(place, 2 * point, strides)
    y = (out_y * stride_h - pad_h + kernel_y * dilation_h).to(ACC)
    x = (out_x * stride_w - pad_w + kernel_x * dilation_w).to(ACC)
    y += tl.load(delta, mask=valid, other=0.0).to(ACC)
    x += tl.load(delta + strides[1], mask=valid, other=0.0).to(ACC)
    y = tl.minimum(tl.maximum(tl.where(y == y, y, -2.0), -2.0), h)
    x = tl.minimum(tl.maximum(tl.where(x == x, x, -2.0), -2.0), w)
    low_y, low_x = tl.floor(y), tl.floor(x)
    row, column = low_y.to(INDEX), low_x.to(INDEX)
    top, bottom = valid & (row >= 0) & (row < h), valid & (row >= -1) & (row + 1 < h)
    left, right = (column >= 0) & (column < w), (column >= -1) & (column + 1 < w)
    inside = (top & left, top & right, bottom & left, bottom & right)
    return (n.to(INDEX) * h + row) * w + column, inside, (y - low_y, x - low_x)


@triton.jit
def modulation(mask, strides, place, valid, point, ACC: tl.constexpr, MODULATED: tl.constexpr):
    """Δm_k; ones where there is no mask."""
    if MODULATED:
        result = tl.load(mask + at(place, point, strides), mask=valid, other=0.0).to(ACC)
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
