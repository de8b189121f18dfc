"""(Modulated) deformable RoI pooling (arXiv 1811.11168, equation 2).

y(k) = sum_j x(p_kj + Δp_k) · Δm_k / n_k

The samples of a bin form a grid, so the weight of a pixel in their sum is a product of one for its
row and one for its column. A program goes through the cells that its bins touch along each axis, or
through two for each sample where those are fewer, and reads each pixel once.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu.launch import call_kind, index_dtype, launch, tile, tuned
from ..layout import compute_dtype, like
from . import definition
from .definition import check_shapes

_KIND = ("call_kind", "c", "bins", "sampling_ratio", "SHIFTED", "MODULATED")
_jit = triton.jit(do_not_specialize=["call_kind", "images", "h", "w", "sampling_ratio"])


@triton.jit
def _divide(a, b):
    """As IEEE rounds. Triton's own division of float32 is not exact: 21 / 7 has a ceiling of 4."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, tl.cast(b, tl.float32))
    else:
        return a / b


@triton.jit
def _position(i, samples, start, bins, extent, shift):
    """Of sample i of the bins along an axis, in pixels of the map."""
    return start + (bins + _divide(tl.cast(i + 0.5, bins.dtype), samples)) * extent + shift


@triton.jit
def _onto_map(position, size):
    position = tl.where(position == position, position, 0.0)
    return tl.minimum(tl.maximum(position, 0.0), size - 1)


@triton.jit
def _axis(start, bins, extent, shift, size, sampling_ratio):
    """How to go along an axis: (samples a bin, steps, whether a step is a cell, first cells).

    A ratio of 0 takes as many samples as the bin has pixels, none over twice the map's size.
    """
    sized = (extent > 0) & (extent <= 2 * size)
    adaptive = tl.ceil(tl.where(sized, extent, 0.0)).to(tl.int32)
    samples = tl.where(sampling_ratio > 0, sampling_ratio, adaptive)
    first = _onto_map(_position(0, samples, start, bins, extent, shift), size)
    last = _onto_map(_position(samples - 1, samples, start, bins, extent, shift), size)
    low, high = tl.floor(tl.minimum(first, last)), tl.floor(tl.maximum(first, last))
    cells = tl.max(high - low, 0).to(tl.int32) + 2
    return samples, tl.minimum(cells, 2 * samples), cells <= 2 * samples, low


@triton.jit
def _step(i, axis, start, bins, extent, shift, size):
    """Cells of the bins at a step, their weights in the samples' sum, and the weights' slopes."""
    samples, _, by_cell, low = axis
    nearest = tl.floor(_onto_map(_position(i // 2, samples, start, bins, extent, shift), size))
    cell = tl.where(by_cell, low + i, nearest + i % 2)
    weight, slope = tl.zeros_like(cell), tl.zeros_like(cell)
    for s in range(tl.where(by_cell, 0, i // 2), tl.where(by_cell, samples, i // 2 + 1)):
        position = _position(s, samples, start, bins, extent, shift)
        on_map = _onto_map(position, size)
        inside = (position >= -1) & (position <= size)
        weight += tl.where(inside, tl.maximum(1 - tl.abs(on_map - cell), 0.0), 0.0)
        # Where the position was moved onto the map, moving it changes nothing.
        moves = (position >= 0) & (position < size - 1)
        above = cell - tl.floor(on_map)
        slope += tl.where(moves & (above == 1), 1.0, 0.0) - tl.where(moves & (above == 0), 1.0, 0.0)
    return cell, weight, slope


@triton.jit
def _roi(
    rois, offset, roi, bin, valid, images, bins, pooled_h, pooled_w, spatial_scale, gamma,
    SHIFTED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of an RoI and some of its bins: the image, and whether there is such a one; (start, bins,
    extent of a bin, shifts) along y, and along x; gamma times its height and width.
    """
    image = tl.load(rois + roi * 5)
    # Half a pixel less: a pixel's value is that of its centre.
    x1 = (tl.load(rois + roi * 5 + 1).to(ACC) * spatial_scale).to(ACC) - 0.5
    y1 = (tl.load(rois + roi * 5 + 2).to(ACC) * spatial_scale).to(ACC) - 0.5
    x2 = (tl.load(rois + roi * 5 + 3).to(ACC) * spatial_scale).to(ACC) - 0.5
    y2 = (tl.load(rois + roi * 5 + 4).to(ACC) * spatial_scale).to(ACC) - 0.5
    height, width = y2 - y1, x2 - x1
    reach_y, reach_x = (height * gamma).to(ACC), (width * gamma).to(ACC)
    bins_y, bins_x = (bin // pooled_w).to(ACC), (bin % pooled_w).to(ACC)
    shift_y, shift_x = tl.zeros_like(bins_y), tl.zeros_like(bins_x)
    if SHIFTED:
        delta = offset + roi * 2 * bins + bin
        shift_x += tl.load(delta, mask=valid, other=0.0).to(ACC) * reach_x
        shift_y += tl.load(delta + bins, mask=valid, other=0.0).to(ACC) * reach_y
    along_y = (y1, bins_y, _divide(height, pooled_h), shift_y)
    along_x = (x1, bins_x, _divide(width, pooled_w), shift_x)
    known = (image >= 0) & (image < images)
    return tl.where(known, image, 0.0), known, along_y, along_x, (reach_y, reach_x)


@tuned(
    tile(4, BLOCK_BINS=32, BLOCK_C=64),
    tile(4, BLOCK_BINS=64, BLOCK_C=64),
    tile(4, BLOCK_BINS=16, BLOCK_C=128),
    tile(8, BLOCK_BINS=64, BLOCK_C=128),
    tile(4, BLOCK_BINS=16, BLOCK_C=64),
    key=_KIND,
)
@_jit
def forward_kernel(
    # [N, H, W, C], [count, 5], [count, 2, bins], [count, bins], [count, C, bins]
    x, rois, offset, mask, out,
    call_kind, images, h, w, sampling_ratio,
    c, bins, pooled_h, pooled_w, spatial_scale: tl.float64, gamma: tl.float64,
    SHIFTED: tl.constexpr, MODULATED: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_BINS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_BINS bins × BLOCK_C channels of one RoI."""
    c_tiles, bin_tiles = tl.cdiv(c, BLOCK_C), tl.cdiv(bins, BLOCK_BINS)
    channel = tl.program_id(0) % c_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    bin = tl.program_id(0) // c_tiles % bin_tiles * BLOCK_BINS + tl.arange(0, BLOCK_BINS)
    roi = (tl.program_id(0) // c_tiles // bin_tiles).to(INDEX)
    valid, c_valid = bin < bins, channel < c
    image, known, along_y, along_x, _reach = _roi(
        rois, offset, roi, bin, valid, images, bins, pooled_h, pooled_w, spatial_scale, gamma,
        SHIFTED, ACC,
    )  # fmt: skip
    axis_y = _axis(*along_y, h, sampling_ratio)
    axis_x = _axis(*along_x, w, sampling_ratio)

    total = tl.zeros((BLOCK_BINS, BLOCK_C), ACC)
    for i in range(tl.where(known, axis_y[1], 0)):
        row, weight_y, _ = _step(i, axis_y, *along_y, h)
        for j in range(axis_x[1]):
            column, weight_x, _ = _step(j, axis_x, *along_x, w)
            weight = weight_y * weight_x
            pixel = (image.to(INDEX) * h + row.to(INDEX)) * w + column.to(INDEX)
            values = tl.load(
                x + (pixel * c)[:, None] + channel[None, :],
                mask=(valid & (weight != 0))[:, None] & c_valid[None, :],
                other=0.0,
            )
            total += values.to(ACC) * weight[:, None]
    scale = _divide(tl.full((BLOCK_BINS,), 1.0, ACC), tl.maximum(axis_y[0] * axis_x[0], 1))
    if MODULATED:
        scale *= tl.load(mask + roi * bins + bin, mask=valid, other=0.0).to(ACC)
    total = tl.where(known, total * scale[:, None], float("nan"))
    tl.store(
        out + (roi * c + channel)[None, :] * bins + bin[:, None],
        total.to(out.dtype.element_ty),
        mask=valid[:, None] & c_valid[None, :],
    )


@tuned(
    tile(4, BLOCK_BINS=32, BLOCK_C=64),
    tile(4, BLOCK_BINS=16, BLOCK_C=128),
    tile(8, BLOCK_BINS=64, BLOCK_C=64),
    tile(8, BLOCK_BINS=32, BLOCK_C=128),
    tile(4, BLOCK_BINS=16, BLOCK_C=64),
    key=(*_KIND, "OF_INPUT"),
    reset_to_zero=("grad_input",),
)
@_jit
def backward_kernel(
    # [count, C, bins], [N, H, W, C], [count, 5], [count, 2, bins], [count, bins]
    grad, x, rois, offset, mask,
    # [N, H, W, C], [count, 2, bins], [count, bins]
    grad_input, grad_offset, grad_mask,
    call_kind, images, h, w, sampling_ratio,
    c, bins, pooled_h, pooled_w, spatial_scale: tl.float64, gamma: tl.float64,
    SHIFTED: tl.constexpr, MODULATED: tl.constexpr, OF_INPUT: tl.constexpr,
    OF_OFFSET: tl.constexpr, OF_MASK: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_BINS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_BINS bins of one RoI: adds to grad_input, writes the other two, those wanted."""
    bin_tiles = tl.cdiv(bins, BLOCK_BINS)
    bin = tl.program_id(0) % bin_tiles * BLOCK_BINS + tl.arange(0, BLOCK_BINS)
    roi = (tl.program_id(0) // bin_tiles).to(INDEX)
    valid = bin < bins
    image, known, along_y, along_x, reach = _roi(
        rois, offset, roi, bin, valid, images, bins, pooled_h, pooled_w, spatial_scale, gamma,
        SHIFTED, ACC,
    )  # fmt: skip
    axis_y = _axis(*along_y, h, sampling_ratio)
    axis_x = _axis(*along_x, w, sampling_ratio)
    share = _divide(tl.cast(1.0, ACC), tl.maximum(axis_y[0] * axis_x[0], 1))
    scale = tl.full((BLOCK_BINS,), 1.0, ACC)
    if MODULATED:
        scale = tl.load(mask + roi * bins + bin, mask=valid, other=0.0).to(ACC)

    zero = tl.zeros((BLOCK_BINS,), ACC)
    grad_y, grad_x, grad_scale = zero, zero, zero
    for first in range(0, c, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        c_valid = channel < c
        g = tl.load(
            grad + (roi * c + channel)[None, :] * bins + bin[:, None],
            mask=valid[:, None] & c_valid[None, :],
            other=0.0,
        )
        g = g.to(ACC) * share
        for i in range(tl.where(known, axis_y[1], 0)):
            row, weight_y, slope_y = _step(i, axis_y, *along_y, h)
            for j in range(axis_x[1]):
                column, weight_x, slope_x = _step(j, axis_x, *along_x, w)
                weight = weight_y * weight_x
                pixel = (image.to(INDEX) * h + row.to(INDEX)) * w + column.to(INDEX)
                pointer = (pixel * c)[:, None] + channel[None, :]
                if OF_INPUT:
                    tl.atomic_add(
                        grad_input + pointer,
                        g * (weight * scale)[:, None],
                        mask=(valid & (weight != 0))[:, None] & c_valid[None, :],
                        sem="relaxed",
                    )
                if OF_OFFSET or OF_MASK:
                    read = ((weight_y != 0) | (slope_y != 0)) & ((weight_x != 0) | (slope_x != 0))
                    values = tl.load(
                        x + pointer, mask=(valid & read)[:, None] & c_valid[None, :], other=0.0
                    )
                    dot = tl.sum(values.to(ACC) * g, 1)
                    grad_scale += dot * weight
                    grad_y += dot * (slope_y * weight_x)
                    grad_x += dot * (weight_y * slope_x)
    if OF_MASK:
        to = grad_mask + roi * bins + bin
        tl.store(to, grad_scale.to(grad_mask.dtype.element_ty), mask=valid)
    if OF_OFFSET:
        to = grad_offset + roi * 2 * bins + bin
        reach_y, reach_x = reach
        # An RoI of infinite size sampled nothing: its gradient is zero, not zero times infinity.
        reach_y = tl.where(tl.abs(reach_y) < float("inf"), reach_y, 0.0)
        reach_x = tl.where(tl.abs(reach_x) < float("inf"), reach_x, 0.0)
        dtype = grad_offset.dtype.element_ty
        tl.store(to, (grad_x * scale * reach_x).to(dtype), mask=valid)
        tl.store(to + bins, (grad_y * scale * reach_y).to(dtype), mask=valid)


def forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """Shapes as in `dcn.deform_roi_pool`. No batch index is checked."""
    check_shapes(input, rois, offset, mask, output_size)
    out = input.new_empty(rois.shape[0], input.shape[1], *output_size)
    if out.numel() > 0:
        call = _Call.of(input, rois, offset, mask, out, spatial_scale, sampling_ratio, gamma)

        def blocks(block):
            tiles = triton.cdiv(call.c, block["BLOCK_C"])
            return (len(rois) * triton.cdiv(call.bins, block["BLOCK_BINS"]) * tiles,)

        launch(forward_kernel, blocks, vars(call), out=out)
    return out


def backward(
    grad: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of input, offset and mask, those that `output_mask` asks for. RoIs get none.

    Bins that overlap add to the same pixels in any order, so where the order must be the same every
    time the definition in plain PyTorch runs instead.
    """
    geometry = (spatial_scale, sampling_ratio, gamma)
    if torch.are_deterministic_algorithms_enabled():
        return definition.backward(
            grad, input, rois, offset, mask, output_size, *geometry, output_mask
        )
    check_shapes(input, rois, offset, mask, output_size, grad)
    n, c, h, w = input.shape
    of_input, of_offset, of_mask = output_mask
    grad_input = input.new_zeros(n, h, w, c, dtype=compute_dtype(input)) if of_input else None
    grad_offset = offset.new_empty(offset.shape) if of_offset else None
    grad_mask = mask.new_empty(mask.shape) if of_mask else None
    if grad.numel() > 0:
        call = _Call.of(input, rois, offset, mask, grad, *geometry)
        launch(
            backward_kernel,
            lambda block: (len(rois) * triton.cdiv(call.bins, block["BLOCK_BINS"]),),
            vars(call),
            grad=grad.contiguous(),
            grad_input=input.new_empty(0) if grad_input is None else grad_input,
            grad_offset=grad_offset,
            grad_mask=grad_mask,
            OF_INPUT=of_input,
            OF_OFFSET=of_offset,
            OF_MASK=of_mask,
        )
    return (
        like(grad_input.permute(0, 3, 1, 2), input) if of_input else None,
        like(grad_offset, offset) if of_offset else None,
        like(grad_mask, mask) if of_mask else None,
    )


@dataclass(frozen=True)
class _Call:
    """What both kernels take."""

    x: Tensor
    rois: Tensor
    offset: Tensor | None
    mask: Tensor | None
    call_kind: int
    images: int
    h: int
    w: int
    sampling_ratio: int
    c: int
    bins: int
    pooled_h: int
    pooled_w: int
    spatial_scale: float
    gamma: float
    SHIFTED: bool
    MODULATED: bool
    ACC: tl.dtype
    INDEX: tl.dtype

    @classmethod
    def of(
        cls,
        input: Tensor,
        rois: Tensor,
        offset: Tensor | None,
        mask: Tensor | None,
        output: Tensor,
        spatial_scale: float,
        sampling_ratio: int,
        gamma: float,
    ) -> "_Call":
        """`output` is the gradient in the backward pass."""
        n, c, h, w = input.shape
        pooled_h, pooled_w = output.shape[2:]
        return cls(
            x=input.contiguous(memory_format=torch.channels_last),
            rois=rois.contiguous(),
            offset=None if offset is None else offset.contiguous(),
            mask=None if mask is None else mask.contiguous(),
            call_kind=call_kind(input, len(rois)),
            images=n,
            h=h,
            w=w,
            sampling_ratio=sampling_ratio,
            c=c,
            bins=pooled_h * pooled_w,
            pooled_h=pooled_h,
            pooled_w=pooled_w,
            spatial_scale=spatial_scale,
            gamma=gamma,
            SHIFTED=offset is not None,
            MODULATED=mask is not None,
            ACC=tl.float64 if input.dtype == torch.float64 else tl.float32,
            INDEX=index_dtype(input, output, rois, offset, mask),
        )
