"""Local deformable kernels (arXiv 1910.02940, section 3): depthwise ones, on a regular grid.

y_c(p) = sum_k W_c(k + (S - K)/2 + Δk(p)) · x_c(p + p_k)

A program takes some positions and channels of one rotation group, and reads their kernels from the
scope, which is small enough to stay in the cache. Every sum is gathered, in the same order each
time. Where weight mixes channels, or there is an `input_offset`, the definition in plain PyTorch
runs.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_shape
from ..deform_conv.definition import bias_gradient, deltas_of
from ..gpu.launch import call_kind, index_dtype, launch, multiprocessors, tile, tuned
from ..gpu.sampling import (
    SIZES,
    Where,
    at,
    corner_weights,
    interpolate,
    load_corners,
    strides,
    unravel,
)
from ..layout import compute_dtype, like, memory_format
from . import definition
from .definition import check_shapes, scope_grid

# A split of the weight gradient's sum is of at least as many positions.
MIN_CHUNK = 256
_KIND = ("call_kind", "rotation_channels", "points")
_tuned = tuned(
    tile(4, BLOCK_M=64, BLOCK_C=16),
    tile(4, BLOCK_M=32, BLOCK_C=32),
    tile(4, BLOCK_M=128, BLOCK_C=16),
    tile(8, BLOCK_M=64, BLOCK_C=32),
    tile(4, BLOCK_M=32, BLOCK_C=16),
    key=_KIND,
)
_jit = triton.jit(
    do_not_specialize=[
        *SIZES,
        *("call_kind", "chunk"),
        *("grad_delta_n", "grad_delta_g", "grad_delta_k", "grad_delta_h", "grad_delta_w"),
    ]
)


@triton.jit
def _block(
    rotations, rotation_channels,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What a program takes: rotation group, rows, channels, and which of the channels there are.

    Programs of the same rows follow each other: they read the same offsets and pixels.
    """
    tiles = tl.cdiv(rotation_channels, BLOCK_C)
    rotation, program = tl.program_id(0) % rotations, tl.program_id(0) // rotations
    rows = (program // tiles).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = program % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    return rotation, rows, channel * rotations + rotation, channel < rotation_channels


@triton.jit
def _held(position, size, CLAMP: tl.constexpr):
    """Where a point reads along an axis, -2 for nowhere; and whether its offset moves that."""
    finite = tl.abs(position) < float("inf")
    if CLAMP:
        held = tl.minimum(tl.maximum(position, 0.0), size - 1)
        moves = (held == position) & (size > 1)
    else:
        held = tl.minimum(tl.maximum(position, -2.0), size)
        moves = finite
    return tl.where(finite, held, -2.0), moves


@triton.jit
def _scope_position(scope, place, valid, rotation, k, CLAMP: tl.constexpr, ACC: tl.constexpr):
    """Of point k of a rotation group: y, x and whether offsets move them.

    scope: (delta_y, delta_x, their strides, kernel, start, size), all but the last as in `Where`.
    """
    delta_y, delta_x, delta_strides, kernel, start, size = scope
    element = at(place, rotation, k, delta_strides)
    y = tl.load(delta_y + element, mask=valid, other=0.0).to(ACC)
    x = tl.load(delta_x + element, mask=valid, other=0.0).to(ACC)
    y, y_moves = _held(y + tl.cast(start[0] + k // kernel[1], ACC), size[0], CLAMP)
    x, x_moves = _held(x + tl.cast(start[1] + k % kernel[1], ACC), size[1], CLAMP)
    return y, x, (y_moves, x_moves)


@triton.jit
def _cells(y, x, size, CLAMP: tl.constexpr, INDEX: tl.constexpr):
    """The four cells around a position, as `corners` gives pixels."""
    low_y, low_x = tl.floor(y), tl.floor(x)
    if CLAMP:  # the slope at the last cell is to the one before
        low_y, low_x = tl.minimum(low_y, size[0] - 2), tl.minimum(low_x, size[1] - 2)
    row, column = low_y.to(INDEX), low_x.to(INDEX)
    top, bottom = (row >= 0) & (row < size[0]), (row >= -1) & (row + 1 < size[0])
    left, right = (column >= 0) & (column < size[1]), (column >= -1) & (column + 1 < size[1])
    inside = (top & left, top & right, bottom & left, bottom & right)
    return row * size[1] + column, inside, (y - low_y, x - low_x)


@triton.jit
def _kernel_values(
    scope, weight, place, valid, rotation, k, channels, c, c_valid,
    CLAMP: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Point k of the kernels of some positions: [positions, channels]."""
    y, x, _ = _scope_position(scope, place, valid, rotation, k, CLAMP, ACC)
    cell, inside, part = _cells(y, x, scope[5], CLAMP, INDEX)
    weights = corner_weights(part, 1.0)
    return interpolate(weight, cell, inside, weights, scope[5][1], channels, c, c_valid, ACC)


@triton.jit
def _pixel(place, valid, k, kernel, stride, padding, dilation, h, w):
    """Which pixel point k is on, in [N, H, W], and whether there is one."""
    n, y, x = place
    y = y * stride[0] - padding[0] + k // kernel[1] * dilation[0]
    x = x * stride[1] - padding[1] + k % kernel[1] * dilation[1]
    return (n * h + y) * w + x, valid & (y >= 0) & (y < h) & (x >= 0) & (x < w)


@triton.jit
def _load(rows, row, there, channels, c, c_valid, ACC: tl.constexpr):
    """Channels of rows, zero where there is none: [rows, channels], in ACC."""
    mask = there[:, None] & c_valid[None, :]
    return tl.load(rows + (row * channels)[:, None] + c[None, :], mask=mask, other=0.0).to(ACC)


@_tuned
@_jit
def forward_kernel(
    # [N, H, W, C]; as in `Where`; [S_h·S_w, C], [C], [N·H_out·W_out, C]
    x, delta_y, delta_x, weight, bias, out,
    call_kind, positions, h, w, out_h, out_w, delta_n, delta_g, delta_k, delta_h, delta_w,
    channels, rotations, rotation_channels, points, kernel, stride, padding, dilation, size,
    start_y: tl.float64, start_x: tl.float64,
    BIASED: tl.constexpr, CLAMP: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_M positions × BLOCK_C channels of one rotation group."""
    delta_strides = (delta_n, delta_g, delta_k, delta_h, delta_w)
    scope = (delta_y, delta_x, delta_strides, kernel, (start_y, start_x), size)
    rotation, m, c, c_valid = _block(rotations, rotation_channels, INDEX, BLOCK_M, BLOCK_C)
    valid, place = m < positions, unravel(m, out_h, out_w)

    total = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for k in range(points):
        values = _kernel_values(
            scope, weight, place, valid, rotation, k, channels, c, c_valid, CLAMP, ACC, INDEX
        )
        pixel, there = _pixel(place, valid, k, kernel, stride, padding, dilation, h, w)
        total += values * _load(x, pixel, there, channels, c, c_valid, ACC)
    if BIASED:
        total += tl.load(bias + c, mask=c_valid, other=0.0).to(ACC)[None, :]
    tl.store(
        out + m[:, None] * channels + c[None, :],
        total.to(out.dtype.element_ty),
        mask=valid[:, None] & c_valid[None, :],
    )


@_tuned
@_jit
def grad_input_kernel(
    # [N·H_out·W_out, C]; as in `Where`; [S_h·S_w, C], [N·H·W, C]
    grad, delta_y, delta_x, weight, grad_input,
    call_kind, pixels, h, w, out_h, out_w, delta_n, delta_g, delta_k, delta_h, delta_w,
    channels, rotations, rotation_channels, points, kernel, stride, padding, dilation, size,
    start_y: tl.float64, start_x: tl.float64, CLAMP: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_M pixels × BLOCK_C channels of one rotation group.

    Point k of at most one position is on a pixel.
    """
    delta_strides = (delta_n, delta_g, delta_k, delta_h, delta_w)
    scope = (delta_y, delta_x, delta_strides, kernel, (start_y, start_x), size)
    rotation, m, c, c_valid = _block(rotations, rotation_channels, INDEX, BLOCK_M, BLOCK_C)
    n, y, x = unravel(m, h, w)

    total = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for k in range(points):
        from_y = y + padding[0] - k // kernel[1] * dilation[0]
        from_x = x + padding[1] - k % kernel[1] * dilation[1]
        out_y, out_x = from_y // stride[0], from_x // stride[1]
        valid = (m < pixels) & (from_y >= 0) & (out_y < out_h) & (from_x >= 0) & (out_x < out_w)
        valid &= (from_y % stride[0] == 0) & (from_x % stride[1] == 0)
        values = _kernel_values(
            scope, weight, (n, out_y, out_x), valid, rotation, k, channels, c, c_valid,
            CLAMP, ACC, INDEX,
        )  # fmt: skip
        position = (n * out_h + out_y) * out_w + out_x
        total += values * _load(grad, position, valid, channels, c, c_valid, ACC)
    tl.store(
        grad_input + m[:, None] * channels + c[None, :],
        total.to(grad_input.dtype.element_ty),
        mask=(m < pixels)[:, None] & c_valid[None, :],
    )


@_tuned
@_jit
def grad_offset_kernel(
    # [N·H_out·W_out, C], [N, H, W, C]; as in `Where`; [S_h·S_w, C]; as in `Where`
    grad, x, delta_y, delta_x, weight, grad_y, grad_x,
    call_kind, positions, h, w, out_h, out_w, delta_n, delta_g, delta_k, delta_h, delta_w,
    grad_delta_n, grad_delta_g, grad_delta_k, grad_delta_h, grad_delta_w,
    channels, rotations, rotation_channels, points, kernel, stride, padding, dilation, size,
    start_y: tl.float64, start_x: tl.float64, CLAMP: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_M positions of one kernel point of one rotation group."""
    delta_strides = (delta_n, delta_g, delta_k, delta_h, delta_w)
    scope = (delta_y, delta_x, delta_strides, kernel, (start_y, start_x), size)
    rotation, program = tl.program_id(0) % rotations, tl.program_id(0) // rotations
    k = program % points
    m = (program // points).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid, place = m < positions, unravel(m, out_h, out_w)
    pixel, there = _pixel(place, valid, k, kernel, stride, padding, dilation, h, w)
    in_y, in_x, moves = _scope_position(scope, place, valid, rotation, k, CLAMP, ACC)
    cell, inside, part = _cells(in_y, in_x, size, CLAMP, INDEX)

    dot_tl = tl.zeros((BLOCK_M,), ACC)
    dot_tr, dot_bl, dot_br = dot_tl, dot_tl, dot_tl
    for first in range(0, rotation_channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        c_valid, c = c < rotation_channels, c * rotations + rotation
        g = _load(grad, m, there, channels, c, c_valid, ACC)
        g *= _load(x, pixel, there, channels, c, c_valid, ACC)
        values = load_corners(weight, cell, inside, size[1], channels, c, c_valid)
        dot_tl += tl.sum(values[0].to(ACC) * g, 1)
        dot_tr += tl.sum(values[1].to(ACC) * g, 1)
        dot_bl += tl.sum(values[2].to(ACC) * g, 1)
        dot_br += tl.sum(values[3].to(ACC) * g, 1)

    y, x_ = part
    grad_strides = (grad_delta_n, grad_delta_g, grad_delta_k, grad_delta_h, grad_delta_w)
    element = at(place, rotation, k, grad_strides)
    value = tl.where(moves[0], (1 - x_) * (dot_bl - dot_tl) + x_ * (dot_br - dot_tr), 0.0)
    tl.store(grad_y + element, value.to(grad_y.dtype.element_ty), mask=valid)
    value = tl.where(moves[1], (1 - y) * (dot_tr - dot_tl) + y * (dot_br - dot_bl), 0.0)
    tl.store(grad_x + element, value.to(grad_x.dtype.element_ty), mask=valid)


@tuned(
    tile(4, BLOCK_M=32, BLOCK_S=16, BLOCK_C=32),
    tile(4, BLOCK_M=64, BLOCK_S=16, BLOCK_C=32),
    tile(4, BLOCK_M=32, BLOCK_S=16, BLOCK_C=64),
    tile(8, BLOCK_M=64, BLOCK_S=16, BLOCK_C=64),
    tile(4, BLOCK_M=16, BLOCK_S=16, BLOCK_C=16),
    key=(*_KIND, "cells"),
)
@_jit
def grad_weight_kernel(
    # [N·H_out·W_out, C], [N, H, W, C]; as in `Where`; [splits, S_h·S_w, C]
    grad, x, delta_y, delta_x, grad_weight,
    call_kind, positions, chunk, h, w, out_h, out_w, delta_n, delta_g, delta_k, delta_h, delta_w,
    channels, rotations, rotation_channels, points, kernel, stride, padding, dilation, size, cells,
    start_y: tl.float64, start_x: tl.float64, CLAMP: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_S cells × BLOCK_C channels of one rotation group, over `chunk` positions."""
    delta_strides = (delta_n, delta_g, delta_k, delta_h, delta_w)
    scope = (delta_y, delta_x, delta_strides, kernel, (start_y, start_x), size)
    tiles, cell_tiles = tl.cdiv(rotation_channels, BLOCK_C), tl.cdiv(cells, BLOCK_S)
    rotation, program = tl.program_id(0) % rotations, tl.program_id(0) // rotations
    c, program = program % tiles * BLOCK_C + tl.arange(0, BLOCK_C), program // tiles
    c_valid, c = c < rotation_channels, c * rotations + rotation
    cell, split = program % cell_tiles * BLOCK_S + tl.arange(0, BLOCK_S), program // cell_tiles
    row, column = (cell // size[1])[None, :], (cell % size[1])[None, :]

    acc = tl.zeros((BLOCK_S, BLOCK_C), ACC)
    start = split.to(INDEX) * chunk
    stop = tl.minimum(start + chunk, positions)
    for i in range(start, stop, BLOCK_M):
        m = i + tl.arange(0, BLOCK_M)
        valid, place = m < stop, unravel(m, out_h, out_w)
        g = _load(grad, m, valid, channels, c, c_valid, ACC)
        for k in range(points):
            pixel, there = _pixel(place, valid, k, kernel, stride, padding, dilation, h, w)
            y, x_, _ = _scope_position(scope, place, valid, rotation, k, CLAMP, ACC)
            # The bilinear weights of all cells, nearly all of them zero.
            factor = tl.maximum(1 - tl.abs(y[:, None] - row), 0.0)
            factor *= tl.maximum(1 - tl.abs(x_[:, None] - column), 0.0)
            products = g * _load(x, pixel, there, channels, c, c_valid, ACC)
            acc = tl.dot(tl.trans(factor), products, acc, input_precision="ieee", out_dtype=ACC)
    to = grad_weight + (split.to(INDEX) * cells + cell)[:, None] * channels
    tl.store(to + c[None, :], acc, mask=(cell < cells)[:, None] & c_valid[None, :])


def forward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_offset: Tensor | None,
    *settings,
) -> Tensor:
    """As in the definition."""
    if not _has_kernels(input, weight, input_offset):
        return definition.forward(input, offset, weight, bias, input_offset, *settings)
    size = check_shapes(input, offset, weight, bias, None, *settings[:-1])
    out = input.new_empty(input.shape[0], *size, input.shape[1])
    result = out.permute(0, 3, 1, 2)
    if out.numel() > 0:
        call = _arguments(input, offset, weight, result, *settings)
        bias = None if bias is None else bias.contiguous()
        blocks = _blocks(call, call["positions"])
        launch(forward_kernel, blocks, call, bias=bias, out=out, BIASED=bias is not None)
    return result.contiguous(memory_format=memory_format(input))


def backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_offset: Tensor | None,
    *rest,
) -> tuple[Tensor | None, ...]:
    """As in the definition: the last argument says which gradients are wanted."""
    if not _has_kernels(input, weight, input_offset):
        return definition.backward(grad, input, offset, weight, bias, input_offset, *rest)
    *settings, output_mask = rest
    size = check_shapes(input, offset, weight, bias, None, *settings[:-1])
    check_shape("grad", grad, (*input.shape[:2], *size))
    if grad.numel() == 0:
        pairs = zip((input, offset, weight, bias, None), output_mask, strict=True)
        return tuple(torch.zeros_like(tensor) if wanted else None for tensor, wanted in pairs)
    of_input, of_offset, of_weight, of_bias, _ = output_mask
    call = _arguments(input, offset, weight, grad, *settings)
    call["grad"] = grad.to(input.dtype).contiguous(memory_format=torch.channels_last)
    return (
        like(_grad_input(call), input) if of_input else None,
        _grad_offset(call, offset) if of_offset else None,
        like(_grad_weight(call).mT.reshape(weight.shape), weight) if of_weight else None,
        bias_gradient(grad, bias) if of_bias else None,
        None,
    )


def _has_kernels(input: Tensor, weight: Tensor, input_offset: Tensor | None) -> bool:
    return input_offset is None and weight.shape[1] == 1 and weight.shape[0] == input.shape[1]


def _arguments(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    output: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    clamp: bool,
) -> dict:
    """What all kernels of one call take; `output` is the gradient in the backward pass."""
    size, channels = tuple(weight.shape[2:]), input.shape[1]
    grid = scope_grid(tuple(kernel), size)
    deltas = deltas_of(offset, None, grid.num_points)
    where, rotations = Where.of(deltas, grid, input), deltas.y.shape[1]
    return vars(where) | dict(
        x=input.contiguous(memory_format=torch.channels_last),
        weight=weight.to(input.dtype).flatten(1).mT.contiguous(),
        call_kind=call_kind(input, where.positions),
        channels=channels,
        rotations=rotations,
        rotation_channels=channels // rotations,
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        size=size,
        cells=size[0] * size[1],
        CLAMP=clamp,
        ACC=tl.float64 if input.dtype == torch.float64 else tl.float32,
        INDEX=index_dtype(input, offset, weight, output),
    )


def _blocks(call: dict, rows: int) -> Callable[[dict], tuple]:
    """Programs that take BLOCK_M rows and BLOCK_C channels."""
    return lambda block: (triton.cdiv(rows, block["BLOCK_M"]) * _tiles(call, block["BLOCK_C"]),)


def _tiles(call: dict, block: int) -> int:
    """Of all channels."""
    return call["rotations"] * triton.cdiv(call["rotation_channels"], block)


def _grad_input(call: dict) -> Tensor:
    """[N, C, H, W]."""
    n, c, h, w = call["x"].shape
    grad_input = call["x"].new_empty(n, h, w, c)
    launch(grad_input_kernel, _blocks(call, call["pixels"]), call, grad_input=grad_input)
    return grad_input.permute(0, 3, 1, 2)


def _grad_offset(call: dict, offset: Tensor) -> Tensor:
    grad_offset = torch.empty_like(offset)
    deltas = deltas_of(grad_offset, None, call["points"])
    all_points = call["rotations"] * call["points"]
    launch(
        grad_offset_kernel,
        lambda block: (triton.cdiv(call["positions"], block["BLOCK_M"]) * all_points,),
        call,
        grad_y=deltas.y,
        grad_x=deltas.x,
        **strides("grad_delta", deltas.y),
    )
    return grad_offset


def _grad_weight(call: dict) -> Tensor:
    """[S_h·S_w, C], the sum of one for each split of the positions."""
    positions, cells = call["positions"], call["cells"]
    wanted = triton.cdiv(4 * multiprocessors(call["x"]), _tiles(call, 32) * triton.cdiv(cells, 16))
    chunk = triton.cdiv(positions, min(wanted, triton.cdiv(positions, MIN_CHUNK)))
    splits = triton.cdiv(positions, chunk)
    partial = call["x"].new_empty(splits, cells, call["channels"], dtype=compute_dtype(call["x"]))

    def blocks(block):
        cell_tiles = triton.cdiv(cells, block["BLOCK_S"])
        return (_tiles(call, block["BLOCK_C"]) * cell_tiles * splits,)

    launch(grad_weight_kernel, blocks, call, grad_weight=partial, chunk=chunk)
    return partial.sum(0)
