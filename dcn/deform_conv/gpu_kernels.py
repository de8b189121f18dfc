"""The kernels of deformable convolution (arXiv 1811.11168, equation 1): implicit GEMMs.

y(p) = sum_k w_k · x(p + p_k + Δp_k) · Δm_k

Forward, a program gathers a tile of samples into registers and multiplies it with a tile of the
weight; there are no columns in memory. The gradients of offsets, masks and weight gather the same
samples again. That of the input is a gather as well, not a scatter: for every pixel and kernel
point there is a list of the positions that read it, and their gradients, summed over the list, are
a row of one more implicit GEMM. So no two programs write to the same place of a gradient; a program
takes as long as its longest list.

Maps are channels-last; sums are taken in float32 (float64 for float64). Channels are worked on in
spans, the longest runs that lie within one group and one deform group.
"""

import triton
import triton.language as tl

from ..gpu.launch import tile, tuned
from ..gpu.readers import list_entry, weighted_rows
from ..gpu.sampling import (
    SIZES,
    at,
    corner_weights,
    corners,
    interpolate,
    load_corners,
    modulation,
    unravel,
)

_jit = triton.jit(
    do_not_specialize=[
        *SIZES,
        *("call_kind", "chunk"),
        *("grad_delta_n", "grad_delta_g", "grad_delta_k", "grad_delta_h", "grad_delta_w"),
        *("grad_mask_n", "grad_mask_g", "grad_mask_k", "grad_mask_h", "grad_mask_w"),
    ]
)
_KIND = ("call_kind", "c_in", "c_out", "span", "points", "PRECISION")


@tuned(
    tile(8, 2, BLOCK_M=64, BLOCK_N=128, BLOCK_K=32),
    tile(4, 2, BLOCK_M=64, BLOCK_N=128, BLOCK_K=32),
    tile(8, 2, BLOCK_M=128, BLOCK_N=128, BLOCK_K=32),
    tile(8, 2, BLOCK_M=64, BLOCK_N=256, BLOCK_K=32),
    tile(4, 2, BLOCK_M=32, BLOCK_N=64, BLOCK_K=64),
    tile(4, 2, BLOCK_M=32, BLOCK_N=64, BLOCK_K=32),
    key=_KIND,
)
@_jit
def forward_kernel(
    # [N, H, W, C_in]; as in `Where`
    x, delta_y, delta_x, mask,
    # [C_out, K, C_in / groups], [C_out], [N·H_out·W_out, C_out]
    weight, bias, out,
    call_kind, positions, h, w, out_h, out_w,
    delta_n, delta_g, delta_k, delta_h, delta_w, mask_n, mask_g, mask_k, mask_h, mask_w,
    c_in, c_out, group_in, group_out, span, deform_span, points, kernel,
    start_y: tl.float64, start_x: tl.float64, step_y: tl.float64, step_x: tl.float64,
    scale: tl.float64,
    BY_COLUMN: tl.constexpr, WITHOUT_CENTRE: tl.constexpr, MODULATED: tl.constexpr,
    BIASED: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M positions × BLOCK_N output channels of one group."""
    where = (
        delta_y, delta_x, (delta_n, delta_g, delta_k, delta_h, delta_w),
        mask, (mask_n, mask_g, mask_k, mask_h, mask_w),
        kernel, (start_y, start_x), (step_y, step_x), scale, h, w,
    )  # fmt: skip
    tiles = tl.cdiv(group_out, BLOCK_N)
    # Programs of the same positions follow each other: they read the same pixels.
    program = tl.program_id(0) % (tiles * (c_out // group_out))
    m = (tl.program_id(0) // (tiles * (c_out // group_out))).to(INDEX) * BLOCK_M
    m += tl.arange(0, BLOCK_M)
    valid, place = m < positions, unravel(m, out_h, out_w)
    group = program // tiles
    co = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    co_valid = co < group_out
    co += group * group_out

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for first in range(0, group_in, span):
        channel = group * group_in + first
        deform_group = channel // deform_span
        for k in range(points):
            pixel, inside, part = corners(
                where, place, valid, deform_group, k, BY_COLUMN, WITHOUT_CENTRE, ACC, INDEX,
            )  # fmt: skip
            modulated = modulation(where, place, valid, deform_group, k, ACC, MODULATED)
            weights = corner_weights(part, modulated)
            for c in range(0, span, BLOCK_K):
                ci = c + tl.arange(0, BLOCK_K)
                ci_valid = ci < span
                samples = interpolate(
                    x, pixel, inside, weights, w, c_in, channel + ci, ci_valid, ACC
                )
                w_k = tl.load(
                    weight + (co * points + k)[None, :] * group_in + (first + ci)[:, None],
                    mask=co_valid[None, :] & ci_valid[:, None],
                    other=0.0,
                )
                acc = tl.dot(
                    samples.to(x.dtype.element_ty), w_k, acc, input_precision=PRECISION,
                    out_dtype=ACC,
                )  # fmt: skip
    if BIASED:
        acc += tl.load(bias + co, mask=co_valid, other=0.0).to(ACC)[None, :]
    tl.store(
        out + m[:, None] * c_out + co[None, :],
        acc.to(out.dtype.element_ty),
        mask=valid[:, None] & co_valid[None, :],
    )


@tuned(
    tile(8, 3, BLOCK_M=64, BLOCK_N=32, BLOCK_K=64),
    tile(8, 3, BLOCK_M=32, BLOCK_N=64, BLOCK_K=64),
    tile(8, 2, BLOCK_M=64, BLOCK_N=64, BLOCK_K=64),
    tile(8, 3, BLOCK_M=64, BLOCK_N=128, BLOCK_K=64),
    tile(4, 3, BLOCK_M=32, BLOCK_N=32, BLOCK_K=64),
    tile(4, 3, BLOCK_M=32, BLOCK_N=32, BLOCK_K=32),
    key=_KIND,
)
@_jit
def grad_offset_kernel(
    # [N·H_out·W_out, C_out], [N, H, W, C_in]
    grad, x,
    # as in `Where`
    delta_y, delta_x, mask,
    # [C_out, K, C_in / groups]
    weight,
    # as in `Where`, if they are wanted
    grad_y, grad_x, grad_mask,
    call_kind, positions, h, w, out_h, out_w,
    delta_n, delta_g, delta_k, delta_h, delta_w, mask_n, mask_g, mask_k, mask_h, mask_w,
    grad_delta_n, grad_delta_g, grad_delta_k, grad_delta_h, grad_delta_w,
    grad_mask_n, grad_mask_g, grad_mask_k, grad_mask_h, grad_mask_w,
    c_in, c_out, group_in, group_out, span, deform_span, points, kernel,
    start_y: tl.float64, start_x: tl.float64, step_y: tl.float64, step_x: tl.float64,
    scale: tl.float64,
    BY_COLUMN: tl.constexpr, WITHOUT_CENTRE: tl.constexpr, MODULATED: tl.constexpr,
    OF_OFFSET: tl.constexpr, OF_MASK: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M positions of one kernel point of one deform group.

    The gradient of the samples is a GEMM; its dot products with the four corners, by the chain rule
    through the bilinear weights, are the gradients of offset and mask.
    """
    where = (
        delta_y, delta_x, (delta_n, delta_g, delta_k, delta_h, delta_w),
        mask, (mask_n, mask_g, mask_k, mask_h, mask_w),
        kernel, (start_y, start_x), (step_y, step_x), scale, h, w,
    )  # fmt: skip
    all_points = c_in // deform_span * points
    point = tl.program_id(0) % all_points
    m = (tl.program_id(0) // all_points).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid, place = m < positions, unravel(m, out_h, out_w)
    deform_group, k = point // points, point % points
    pixel, inside, part = corners(
        where, place, valid, deform_group, k, BY_COLUMN, WITHOUT_CENTRE, ACC, INDEX,
    )  # fmt: skip

    dot_tl = tl.zeros((BLOCK_M,), ACC)
    dot_tr, dot_bl, dot_br = dot_tl, dot_tl, dot_tl
    first_channel = deform_group * deform_span
    for first in range(first_channel, first_channel + deform_span, span):
        group = first // group_in
        for c in range(0, span, BLOCK_N):
            ci = c + tl.arange(0, BLOCK_N)
            ci_valid = ci < span
            grad_samples = tl.zeros((BLOCK_M, BLOCK_N), ACC)
            for o in range(0, group_out, BLOCK_K):
                co = o + tl.arange(0, BLOCK_K)
                co_valid = co < group_out
                co += group * group_out
                g = tl.load(
                    grad + m[:, None] * c_out + co[None, :],
                    mask=valid[:, None] & co_valid[None, :],
                    other=0.0,
                )
                w_k = tl.load(
                    weight
                    + (co * points + k)[:, None] * group_in
                    + (first - group * group_in + ci)[None, :],
                    mask=co_valid[:, None] & ci_valid[None, :],
                    other=0.0,
                )
                grad_samples = tl.dot(
                    g, w_k, grad_samples, input_precision=PRECISION, out_dtype=ACC
                )
            values = load_corners(x, pixel, inside, w, c_in, first + ci, ci_valid)
            dot_tl += tl.sum(values[0].to(ACC) * grad_samples, 1)
            dot_tr += tl.sum(values[1].to(ACC) * grad_samples, 1)
            dot_bl += tl.sum(values[2].to(ACC) * grad_samples, 1)
            dot_br += tl.sum(values[3].to(ACC) * grad_samples, 1)

    y, x_ = part
    modulated = modulation(where, place, valid, deform_group, k, ACC, MODULATED)
    if OF_OFFSET:
        strides = (grad_delta_n, grad_delta_g, grad_delta_k, grad_delta_h, grad_delta_w)
        element = at(place, deform_group, k, strides)
        value = ((1 - x_) * (dot_bl - dot_tl) + x_ * (dot_br - dot_tr)) * modulated
        value *= tl.cast(scale, ACC)
        tl.store(grad_y + element, value.to(grad_y.dtype.element_ty), mask=valid)
        value = ((1 - y) * (dot_tr - dot_tl) + y * (dot_br - dot_bl)) * modulated
        value *= tl.cast(scale, ACC)
        tl.store(grad_x + element, value.to(grad_x.dtype.element_ty), mask=valid)
    if OF_MASK:
        strides = (grad_mask_n, grad_mask_g, grad_mask_k, grad_mask_h, grad_mask_w)
        value = (1 - y) * ((1 - x_) * dot_tl + x_ * dot_tr) + y * ((1 - x_) * dot_bl + x_ * dot_br)
        to = grad_mask + at(place, deform_group, k, strides)
        tl.store(to, value.to(grad_mask.dtype.element_ty), mask=valid)


@tuned(
    tile(8, 2, BLOCK_M=32, BLOCK_N=128, BLOCK_K=64),
    tile(8, 2, BLOCK_M=64, BLOCK_N=128, BLOCK_K=64),
    tile(8, 2, BLOCK_M=32, BLOCK_N=128, BLOCK_K=128),
    tile(8, 2, BLOCK_M=64, BLOCK_N=64, BLOCK_K=64),
    tile(4, 2, BLOCK_M=32, BLOCK_N=64, BLOCK_K=64),
    tile(4, 2, BLOCK_M=32, BLOCK_N=64, BLOCK_K=32),
    key=_KIND,
)
@_jit
def grad_weight_kernel(
    # [N·H_out·W_out, C_out], [N, H, W, C_in]
    grad, x,
    # as in `Where`
    delta_y, delta_x, mask,
    # [splits, C_out, K, C_in / groups]
    grad_weight,
    call_kind, positions, chunk, h, w, out_h, out_w,
    delta_n, delta_g, delta_k, delta_h, delta_w, mask_n, mask_g, mask_k, mask_h, mask_w,
    c_in, c_out, group_in, group_out, span, deform_span, points, kernel,
    start_y: tl.float64, start_x: tl.float64, step_y: tl.float64, step_x: tl.float64,
    scale: tl.float64,
    BY_COLUMN: tl.constexpr, WITHOUT_CENTRE: tl.constexpr, MODULATED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_K input × BLOCK_N output channels of one kernel point, over `chunk` positions."""
    where = (
        delta_y, delta_x, (delta_n, delta_g, delta_k, delta_h, delta_w),
        mask, (mask_n, mask_g, mask_k, mask_h, mask_w),
        kernel, (start_y, start_x), (step_y, step_x), scale, h, w,
    )  # fmt: skip
    in_tiles, out_tiles = tl.cdiv(span, BLOCK_K), tl.cdiv(group_out, BLOCK_N)
    program = tl.program_id(0)
    o, program = program % out_tiles * BLOCK_N, program // out_tiles
    c, program = program % in_tiles * BLOCK_K, program // in_tiles
    k, program = program % points, program // points
    first, split = program % (c_in // span) * span, program // (c_in // span)
    group = first // group_in
    deform_group = first // deform_span
    ci = c + tl.arange(0, BLOCK_K)
    co = o + tl.arange(0, BLOCK_N)
    ci_valid, co_valid = ci < span, co < group_out
    ci += first
    co += group * group_out

    acc = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    start = split.to(INDEX) * chunk
    stop = tl.minimum(start + chunk, positions)
    for i in range(start, stop, BLOCK_M):
        m = i + tl.arange(0, BLOCK_M)
        valid, place = m < stop, unravel(m, out_h, out_w)
        pixel, inside, part = corners(
            where, place, valid, deform_group, k, BY_COLUMN, WITHOUT_CENTRE, ACC, INDEX,
        )  # fmt: skip
        modulated = modulation(where, place, valid, deform_group, k, ACC, MODULATED)
        samples = interpolate(
            x, pixel, inside, corner_weights(part, modulated), w, c_in, ci, ci_valid, ACC
        )
        g = tl.load(
            grad + m[:, None] * c_out + co[None, :],
            mask=valid[:, None] & co_valid[None, :],
            other=0.0,
        )
        acc = tl.dot(
            tl.trans(g), samples.to(x.dtype.element_ty), acc, input_precision=PRECISION,
            out_dtype=ACC,
        )  # fmt: skip
    to = grad_weight + (split.to(INDEX) * c_out * points + co * points + k)[:, None] * group_in
    tl.store(
        to + (ci - group * group_in)[None, :],
        acc.to(grad_weight.dtype.element_ty),
        mask=co_valid[:, None] & ci_valid[None, :],
    )


@tuned(
    tile(8, 1, BLOCK_M=64, BLOCK_N=128, BLOCK_K=32),
    tile(8, 1, BLOCK_M=64, BLOCK_N=128, BLOCK_K=64),
    tile(4, 1, BLOCK_M=32, BLOCK_N=128, BLOCK_K=64),
    tile(8, 1, BLOCK_M=64, BLOCK_N=256, BLOCK_K=32),
    tile(4, 1, BLOCK_M=16, BLOCK_N=128, BLOCK_K=64),
    tile(4, 1, BLOCK_M=32, BLOCK_N=64, BLOCK_K=32),
    key=_KIND,
)
@_jit
def grad_input_kernel(
    # [N·H_out·W_out, C_out], [C_out, K, C_in / groups], [N·H·W, C_in]
    grad, weight, grad_input,
    # as in list_samples_kernel
    ends, list_position, list_weight,
    call_kind, positions, pixels,
    c_in, c_out, group_in, group_out, span, deform_span, points,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M pixels × BLOCK_N input channels of one span."""
    tiles = tl.cdiv(span, BLOCK_N)
    program = tl.program_id(0) % (tiles * (c_in // span))
    first_pixel = (tl.program_id(0) // (tiles * (c_in // span))).to(INDEX) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    valid = rows < pixels - first_pixel
    first = program // tiles * span
    ci = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    ci_valid = ci < span
    ci += first
    group = first // group_in

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for k in range(points):
        point = first // deform_span * points + k
        row = ends + point.to(INDEX) * (pixels + 1)
        start = tl.load(row + first_pixel + rows, mask=valid, other=0)
        length = tl.load(row + first_pixel + rows + 1, mask=valid, other=0) - start
        longest = tl.max(length, 0)
        start -= tl.load(row)
        first_entry = point.to(INDEX) * 4 * positions + start
        lists = (list_position + first_entry, list_weight + first_entry)
        # Few lists are longer than that: these entries stay in registers for all channels.
        kept: tl.constexpr = 6
        entries = ()
        for i in tl.static_range(kept):
            entries = entries + (list_entry(lists, i, length, c_out, INDEX),)  # noqa: RUF005
        for o in range(0, group_out, BLOCK_K):
            co = o + tl.arange(0, BLOCK_K)
            co_valid = co < group_out
            co += group * group_out
            total = tl.zeros((BLOCK_M, BLOCK_K), ACC)
            for i in tl.static_range(kept):
                total += weighted_rows(grad, entries[i], co, co_valid, ACC)
            for j in range(kept, longest, 4):
                for i in tl.static_range(4):
                    entry = list_entry(lists, j + i, length, c_out, INDEX)
                    total += weighted_rows(grad, entry, co, co_valid, ACC)
            w_k = tl.load(
                weight + (co * points + k)[:, None] * group_in + (ci - group * group_in)[None, :],
                mask=co_valid[:, None] & ci_valid[None, :],
                other=0.0,
            )
            acc = tl.dot(
                total.to(grad.dtype.element_ty), w_k, acc, input_precision=PRECISION, out_dtype=ACC
            )
    tl.store(
        grad_input + (first_pixel + rows)[:, None] * c_in + ci[None, :],
        acc.to(grad_input.dtype.element_ty),
        mask=valid[:, None] & ci_valid[None, :],
    )
