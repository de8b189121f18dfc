"""Deformable aggregation (arXiv 2211.05778, equation 2; arXiv 2401.06197, section 3.1).

y_g(p) = sum_k m_gk · x_g(p + s · (p_k + Δp_gk))

A program takes some positions and the channels of one group: their samples are found once for each
kernel point, and are not multiplied by any weight.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_shape
from ..gpu.launch import call_kind, index_dtype, launch, tile, tuned
from ..gpu.sampling import (
    SIZES,
    Where,
    at,
    corner_weights,
    corners,
    interpolate,
    load_corners,
    modulation,
    strides,
    unravel,
)
from ..grid import Grid
from ..layout import compute_dtype, like
from . import definition
from .definition import check_shapes, deltas_of, grid_of

_KIND = ("call_kind", "group_channels", "points")
_jit = triton.jit(
    do_not_specialize=[
        *SIZES,
        "call_kind",
        *("grad_delta_n", "grad_delta_g", "grad_delta_k", "grad_delta_h", "grad_delta_w"),
        *("grad_mask_n", "grad_mask_g", "grad_mask_k", "grad_mask_h", "grad_mask_w"),
    ]
)


@tuned(
    tile(4, BLOCK_M=64, BLOCK_C=16),
    tile(4, BLOCK_M=32, BLOCK_C=32),
    tile(4, BLOCK_M=128, BLOCK_C=16),
    tile(8, BLOCK_M=64, BLOCK_C=32),
    tile(4, BLOCK_M=32, BLOCK_C=16),
    key=_KIND,
)
@_jit
def forward_kernel(
    # [N, H, W, C]; as in `Where`
    x, delta_y, delta_x, mask,
    # [N·H_out·W_out, C]
    out,
    call_kind, positions, h, w, out_h, out_w,
    delta_n, delta_g, delta_k, delta_h, delta_w, mask_n, mask_g, mask_k, mask_h, mask_w,
    channels, groups, group_channels, points, kernel,
    start_y: tl.float64, start_x: tl.float64, step_y: tl.float64, step_x: tl.float64,
    scale: tl.float64,
    BY_COLUMN: tl.constexpr, WITHOUT_CENTRE: tl.constexpr, MODULATED: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_M positions × BLOCK_C channels of one group."""
    where = (
        delta_y, delta_x, (delta_n, delta_g, delta_k, delta_h, delta_w),
        mask, (mask_n, mask_g, mask_k, mask_h, mask_w),
        kernel, (start_y, start_x), (step_y, step_x), scale, h, w,
    )  # fmt: skip
    tiles = tl.cdiv(group_channels, BLOCK_C)
    # Programs of the same positions follow each other: they read the same pixels.
    program = tl.program_id(0) % (tiles * groups)
    m = (tl.program_id(0) // (tiles * groups)).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid, place = m < positions, unravel(m, out_h, out_w)
    group = program // tiles
    c = program % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    c_valid = c < group_channels
    c += group * group_channels

    total = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for k in range(points):
        pixel, inside, part = corners(
            where, place, valid, group, k, BY_COLUMN, WITHOUT_CENTRE, ACC, INDEX
        )
        modulated = modulation(where, place, valid, group, k, ACC, MODULATED)
        weights = corner_weights(part, modulated)
        total += interpolate(x, pixel, inside, weights, w, channels, c, c_valid, ACC)
    tl.store(
        out + m[:, None] * channels + c[None, :],
        total.to(out.dtype.element_ty),
        mask=valid[:, None] & c_valid[None, :],
    )


@triton.jit
def _add_corner(to, pixel, stride, channels, g, weight, inside, channels_valid):
    tl.atomic_add(
        to + (pixel * stride)[:, None] + channels[None, :],
        g * weight[:, None],
        mask=(inside & (weight != 0))[:, None] & channels_valid[None, :],
        sem="relaxed",
    )


@tuned(
    tile(4, BLOCK_M=64, BLOCK_C=16),
    tile(4, BLOCK_M=32, BLOCK_C=32),
    tile(4, BLOCK_M=128, BLOCK_C=16),
    tile(8, BLOCK_M=64, BLOCK_C=32),
    tile(4, BLOCK_M=32, BLOCK_C=16),
    key=(*_KIND, "OF_INPUT"),
    reset_to_zero=("grad_input",),
)
@_jit
def backward_kernel(
    # [N·H_out·W_out, C], [N, H, W, C]; as in `Where`
    grad, x, delta_y, delta_x, mask,
    # [N, H, W, C]; as in `Where`; if they are wanted
    grad_input, grad_y, grad_x, grad_mask,
    call_kind, positions, h, w, out_h, out_w,
    delta_n, delta_g, delta_k, delta_h, delta_w, mask_n, mask_g, mask_k, mask_h, mask_w,
    grad_delta_n, grad_delta_g, grad_delta_k, grad_delta_h, grad_delta_w,
    grad_mask_n, grad_mask_g, grad_mask_k, grad_mask_h, grad_mask_w,
    channels, groups, group_channels, points, kernel,
    start_y: tl.float64, start_x: tl.float64, step_y: tl.float64, step_x: tl.float64,
    scale: tl.float64,
    BY_COLUMN: tl.constexpr, WITHOUT_CENTRE: tl.constexpr, MODULATED: tl.constexpr,
    OF_INPUT: tl.constexpr, OF_OFFSET: tl.constexpr, OF_MASK: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_M positions of one group: adds to grad_input, writes the others."""
    where = (
        delta_y, delta_x, (delta_n, delta_g, delta_k, delta_h, delta_w),
        mask, (mask_n, mask_g, mask_k, mask_h, mask_w),
        kernel, (start_y, start_x), (step_y, step_x), scale, h, w,
    )  # fmt: skip
    group = tl.program_id(0) % groups
    m = (tl.program_id(0) // groups).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid, place = m < positions, unravel(m, out_h, out_w)
    delta_strides = (grad_delta_n, grad_delta_g, grad_delta_k, grad_delta_h, grad_delta_w)
    mask_strides = (grad_mask_n, grad_mask_g, grad_mask_k, grad_mask_h, grad_mask_w)
    for k in range(points):
        pixel, inside, part = corners(
            where, place, valid, group, k, BY_COLUMN, WITHOUT_CENTRE, ACC, INDEX
        )
        modulated = modulation(where, place, valid, group, k, ACC, MODULATED)
        weights = corner_weights(part, modulated)
        dot_tl = tl.zeros((BLOCK_M,), ACC)
        dot_tr, dot_bl, dot_br = dot_tl, dot_tl, dot_tl
        for first in range(0, group_channels, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            c_valid = c < group_channels
            c += group * group_channels
            g = tl.load(
                grad + m[:, None] * channels + c[None, :],
                mask=valid[:, None] & c_valid[None, :],
                other=0.0,
            ).to(ACC)
            if OF_OFFSET or OF_MASK:
                values = load_corners(x, pixel, inside, w, channels, c, c_valid)
                dot_tl += tl.sum(values[0].to(ACC) * g, 1)
                dot_tr += tl.sum(values[1].to(ACC) * g, 1)
                dot_bl += tl.sum(values[2].to(ACC) * g, 1)
                dot_br += tl.sum(values[3].to(ACC) * g, 1)
            if OF_INPUT:
                _add_corner(grad_input, pixel, channels, c, g, weights[0], inside[0], c_valid)
                _add_corner(grad_input, pixel + 1, channels, c, g, weights[1], inside[1], c_valid)
                _add_corner(grad_input, pixel + w, channels, c, g, weights[2], inside[2], c_valid)
                _add_corner(
                    grad_input, pixel + w + 1, channels, c, g, weights[3], inside[3], c_valid
                )
        y, x_ = part
        if OF_OFFSET:
            element = at(place, group, k, delta_strides)
            unit = modulated * tl.cast(scale, ACC)
            value = ((1 - x_) * (dot_bl - dot_tl) + x_ * (dot_br - dot_tr)) * unit
            tl.store(grad_y + element, value.to(grad_y.dtype.element_ty), mask=valid)
            value = ((1 - y) * (dot_tr - dot_tl) + y * (dot_br - dot_bl)) * unit
            tl.store(grad_x + element, value.to(grad_x.dtype.element_ty), mask=valid)
        if OF_MASK:
            upper = (1 - x_) * dot_tl + x_ * dot_tr
            value = (1 - y) * upper + y * ((1 - x_) * dot_bl + x_ * dot_br)
            to = grad_mask + at(place, group, k, mask_strides)
            tl.store(to, value.to(grad_mask.dtype.element_ty), mask=valid)


def forward(input: Tensor, offset: Tensor, mask: Tensor | None, *settings) -> Tensor:
    """As in the definition."""
    *of_grid, groups = settings
    size, grid = check_shapes(input, offset, mask, *settings), grid_of(*of_grid)
    out = input.new_empty(input.shape[0], *size, input.shape[3])
    if out.numel() > 0:
        call = _Call.of(input, offset, mask, out, groups, grid)

        def blocks(block):
            tiles = groups * triton.cdiv(call.group_channels, block["BLOCK_C"])
            return (triton.cdiv(call.where.positions, block["BLOCK_M"]) * tiles,)

        launch(forward_kernel, blocks, call.arguments, out=out)
    return out


def backward(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor | None, *rest
) -> tuple[Tensor | None, ...]:
    """As in the definition: the last argument says which gradients are wanted.

    Samples add to the same pixels in any order, so where the order must be the same every time the
    definition in plain PyTorch runs instead.
    """
    *settings, output_mask = rest
    if torch.are_deterministic_algorithms_enabled():
        return definition.backward(grad, input, offset, mask, *settings, output_mask)
    *of_grid, groups = settings
    size, grid = check_shapes(input, offset, mask, *settings), grid_of(*of_grid)
    check_shape("grad", grad, (input.shape[0], *size, input.shape[3]))
    of_input, of_offset, of_mask = output_mask
    grad_input = torch.zeros(
        input.shape if of_input else 0, dtype=compute_dtype(input), device=input.device
    )
    grad_offset = torch.zeros_like(offset) if of_offset else None  # the last ones may be unused
    grad_mask = torch.empty_like(mask) if of_mask else None
    if grad.numel() > 0:
        call = _Call.of(input, offset, mask, grad, groups, grid)
        deltas = deltas_of(grad_offset, grad_mask, groups, grid)
        launch(
            backward_kernel,
            lambda block: (triton.cdiv(call.where.positions, block["BLOCK_M"]) * groups,),
            call.arguments,
            grad=grad.contiguous(),
            grad_input=grad_input,
            grad_y=deltas.y,
            grad_x=deltas.x,
            grad_mask=deltas.mask,
            **strides("grad_delta", deltas.y),
            **strides("grad_mask", deltas.mask),
            OF_INPUT=of_input,
            OF_OFFSET=of_offset,
            OF_MASK=deltas.mask is not None,
        )
    return (like(grad_input, input) if of_input else None, grad_offset, grad_mask)


@dataclass(frozen=True)
class _Call:
    """What both kernels take."""

    x: Tensor
    where: Where
    call_kind: int
    channels: int
    groups: int
    group_channels: int
    ACC: tl.dtype
    INDEX: tl.dtype

    @classmethod
    def of(
        cls,
        input: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        output: Tensor,
        groups: int,
        grid: Grid,
    ) -> "_Call":
        """`output` is the gradient in the backward pass."""
        where = Where.of(deltas_of(offset, mask, groups, grid), grid, input.permute(0, 3, 1, 2))
        return cls(
            x=input.contiguous(),
            where=where,
            call_kind=call_kind(input, where.positions),
            channels=input.shape[3],
            groups=groups,
            group_channels=input.shape[3] // groups,
            ACC=tl.float64 if input.dtype == torch.float64 else tl.float32,
            INDEX=index_dtype(input, offset, mask, output),
        )

    @property
    def arguments(self) -> dict:
        return vars(self.where) | vars(self)
