"""Who reads which pixel: the positions whose samples a pixel has a part in.

The gradient of an input is a gather, not a scatter, by way of these lists: one for every kernel
point and pixel, of the positions that read it and of the weights with which they do.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import compute_dtype
from .launch import run
from .sampling import SIZES, Where, corner_weights, corners, modulation, unravel

# Positions that a program of list_samples_kernel takes.
LIST_BLOCK = 256


@triton.jit(do_not_specialize=[*SIZES])
def list_samples_kernel(
    # as in `Where`
    delta_y, delta_x, mask,
    # [G·K, 1 + N·H·W]: a zero and the lengths of a kernel point's lists; their sums up to there
    counts, ends,
    # [4, G·K, N·H_out·W_out], if SORTED: the list of each corner of each sample; its entry
    lists, slots,
    # [G·K, 4·N·H_out·W_out]: positions that read a pixel, list after list, and with what weight
    list_position, list_weight,
    positions, pixels, h, w, out_h, out_w,
    delta_n, delta_g, delta_k, delta_h, delta_w, mask_n, mask_g, mask_k, mask_h, mask_w,
    all_points, points, kernel,
    start_y: tl.float64, start_x: tl.float64, step_y: tl.float64, step_x: tl.float64,
    scale: tl.float64,
    BY_COLUMN: tl.constexpr, WITHOUT_CENTRE: tl.constexpr, MODULATED: tl.constexpr,
    FILL: tl.constexpr, SORTED: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Counts, or fills, the list of every pixel and kernel point."""
    where = (
        delta_y, delta_x, (delta_n, delta_g, delta_k, delta_h, delta_w),
        mask, (mask_n, mask_g, mask_k, mask_h, mask_w),
        kernel, (start_y, start_x), (step_y, step_x), scale, h, w,
    )  # fmt: skip
    point = tl.program_id(0) % all_points
    m = (tl.program_id(0) // all_points).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid, place = m < positions, unravel(m, out_h, out_w)
    deform_group, k = point // points, point % points
    pixel, inside, part = corners(
        where, place, valid, deform_group, k, BY_COLUMN, WITHOUT_CENTRE, ACC, INDEX,
    )  # fmt: skip
    modulated = modulation(where, place, valid, deform_group, k, ACC, MODULATED)
    weights = corner_weights(part, modulated)
    row = point.to(INDEX) * (pixels + 1)
    for i in tl.static_range(4):
        # A corner of no weight is left out: where an offset is zero, three of the four.
        reads = inside[i] & (weights[i] != 0)
        key = row + pixel + i // 2 * w + i % 2
        sample = (point.to(INDEX) + i * all_points) * positions + m
        if FILL:
            if SORTED:
                slot = tl.load(slots + sample, mask=reads, other=0)
            else:
                left = tl.atomic_add(counts + key + 1, -1, mask=reads, sem="relaxed")
                slot = tl.load(ends + key + 1, mask=reads, other=0) - tl.load(ends + row) - left
                slot += point.to(INDEX) * 4 * positions
            tl.store(list_position + slot, m.to(tl.int32), mask=reads)
            tl.store(list_weight + slot, weights[i], mask=reads)
        else:
            tl.atomic_add(counts + key + 1, 1, mask=reads, sem="relaxed")
            if SORTED:
                tl.store(lists + sample, tl.where(reads, key, row + pixels), mask=valid)


@triton.jit
def list_entry(lists, i, length, c_out, INDEX: tl.constexpr):
    """Entry i of lists: whether there is one, where the position's row starts, its weight."""
    there = i < length
    m = tl.load(lists[0] + i, mask=there, other=0)
    return there, m.to(INDEX) * c_out, tl.load(lists[1] + i, mask=there, other=0.0)


@triton.jit
def weighted_rows(grad, entry, co, co_valid, ACC: tl.constexpr):
    there, row, weight = entry
    mask = there[:, None] & co_valid[None, :]
    values = tl.load(grad + row[:, None] + co[None, :], mask=mask, other=0.0)
    return values.to(ACC) * weight[:, None]


@dataclass(frozen=True)
class Lists:
    """As in `list_samples_kernel`."""

    ends: Tensor
    list_position: Tensor
    list_weight: Tensor
    INDEX: tl.dtype  # of the entries, and of all else


def list_readers(where: Where, arguments: dict, input: Tensor, groups: int) -> Lists:
    """Of every pixel of the input; `arguments` are those of all kernels of the call.

    Raises:
        ValueError: more positions than the lists can name.
    """
    all_points = groups * where.points
    entries = 4 * all_points * where.positions
    if where.positions >= 2**29:
        raise ValueError(f"offset: {where.positions} positions are more than 32 bits can list")
    index = arguments["INDEX"]
    if max(entries, all_points * (where.pixels + 1)) >= 2**31:
        index = tl.int64
    in_order = torch.are_deterministic_algorithms_enabled()
    counts = torch.zeros(all_points * (where.pixels + 1), dtype=torch.int32, device=input.device)
    position = torch.empty(entries, dtype=torch.int32, device=input.device)
    weight = input.new_empty(entries, dtype=compute_dtype(input))
    lists = torch.empty(entries, dtype=torch.int64, device=input.device) if in_order else None
    blocks = (triton.cdiv(where.positions, LIST_BLOCK) * all_points,)

    def pass_over(ends: Tensor | None, slots: Tensor | None) -> None:
        own = dict(counts=counts, ends=ends, lists=lists, slots=slots, all_points=all_points)
        own |= dict(list_position=position, list_weight=weight, SORTED=in_order, INDEX=index)
        own |= dict(FILL=ends is not None, BLOCK_M=LIST_BLOCK)
        run(list_samples_kernel, blocks, arguments, **own)

    pass_over(None, None)
    # Only differences within a kernel point are used, so that it may overflow.
    ends = counts.cumsum(0, dtype=torch.int32)
    pass_over(ends, lists.argsort(stable=True).argsort() if in_order else None)
    return Lists(ends, position, weight, index)
