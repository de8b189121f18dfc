"""Modulated deformable convolution in plain PyTorch (arXiv 1811.11168, equation 1).

y(p) = sum_k w_k · x(p + p_k + Δp_k) · Δm_k
"""

from functools import lru_cache

import torch
from torch import Tensor

from ..checks import check_shape
from ..grid import Deltas, Grid
from ..layout import compute_dtype, like, memory_format
from ..sampling import (
    Bags,
    Located,
    from_rows,
    locate,
    make_bags,
    sum_bags,
    sum_bags_backward_table,
    sum_bags_backward_weight,
    to_rows,
)


def forward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Shapes as in `dcn.deform_conv2d`."""
    out_h, out_w = check_shapes(input, offset, weight, bias, mask, stride, padding, dilation)
    dtype = compute_dtype(input)
    grid = grid_of(weight, stride, padding, dilation)
    samples, bags = _bags(input, deltas_of(offset, mask, grid.num_points), grid)
    columns = sum_bags(to_rows(input, samples.mask.shape[3], dtype), bags)
    columns, matrix = _gemm_operands(columns, weight.to(dtype), input.shape[1])
    out = torch.bmm(columns, matrix).transpose(0, 1)
    out = out.reshape(input.shape[0], out_h, out_w, weight.shape[0])
    if bias is not None:
        out = out + bias.to(dtype)
    out = out.permute(0, 3, 1, 2).to(input.dtype)
    return out.contiguous(memory_format=memory_format(input))


def backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of input, offset, weight, bias and mask, those that `output_mask` asks for.

    The columns are gathered again, not kept from the forward pass: they are kh·kw times the input.
    """
    out = check_shapes(input, offset, weight, bias, mask, stride, padding, dilation)
    check_shape("grad", grad, (input.shape[0], weight.shape[0], *out))
    of_input, of_offset, of_weight, of_bias, of_mask = output_mask
    c_out, group_in, kh, kw = weight.shape
    dtype = compute_dtype(input)
    grid = grid_of(weight, stride, padding, dilation)
    samples, bags = _bags(input, deltas_of(offset, mask, grid.num_points), grid)
    rows = to_rows(input, samples.mask.shape[3], dtype)
    columns, matrix = _gemm_operands(sum_bags(rows, bags), weight.to(dtype), input.shape[1])
    groups = matrix.shape[0]
    grads = dict.fromkeys(("input", "offset", "weight", "bias", "mask"))
    if of_bias:
        grads["bias"] = bias_gradient(grad, bias)

    grad_out = grad.permute(0, 2, 3, 1).to(dtype).reshape(-1, groups, c_out // groups)
    grad_out = grad_out.transpose(0, 1)
    if of_weight:
        grad_weight = torch.bmm(grad_out.mT, columns).view(c_out, kh, kw, group_in)
        grads["weight"] = like(grad_weight.permute(0, 3, 1, 2), weight)

    if of_input or of_offset or of_mask:
        grad_columns = torch.bmm(grad_out, matrix.mT)  # [groups, N·P, K·C/groups]
        grad_columns = grad_columns.view(groups, -1, kh * kw, group_in).permute(1, 2, 0, 3)
        grad_columns = grad_columns.reshape(-1, rows.shape[1])
    if of_input:
        grad_rows = sum_bags_backward_table(grad_columns, bags, rows.shape[0])
        grads["input"] = from_rows(grad_rows, input)
    if of_offset or of_mask:
        dot = sum_bags_backward_weight(grad_columns, rows, bags)
        n, out_h, out_w, deform_groups, points = samples.mask.shape
        dot = dot.view(n, out_h, out_w, points, deform_groups, 4).transpose(3, 4)
        *grad_offset, grad_mask = samples.gradients(dot, grid.scale)
        if of_offset:
            grads["offset"] = like(torch.stack(grad_offset, 3).flatten(1, 3), offset)
        if of_mask:
            grads["mask"] = like(grad_mask.flatten(1, 2), mask)
    return tuple(grads.values())


def check_shapes(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[int, int]:
    """What every kernel relies on: (H_out, W_out).

    Raises:
        ValueError: shapes that do not fit together.
    """
    n, c_in, h, w = input.shape
    c_out, group_in, kh, kw = weight.shape
    if 0 in weight.shape:
        raise ValueError(f"weight: no dimension may be empty, got {tuple(weight.shape)}")
    if c_in == 0 or c_in % group_in or c_out % (c_in // group_in):
        raise ValueError(
            f"weight: {tuple(weight.shape)} does not fit an input of {c_in} channels: C_in must be "
            "groups · weight.shape[1], and C_out a multiple of groups"
        )
    out_h, out_w = (
        (size + 2 * pad - step * (k - 1) - 1) // by + 1
        for size, k, by, pad, step in zip((h, w), (kh, kw), stride, padding, dilation, strict=True)
    )
    if h == 0 or w == 0 or out_h <= 0 or out_w <= 0:
        raise ValueError(
            f"input: {h}×{w} pixels are too few for a {kh}×{kw} kernel with padding "
            f"{tuple(padding)} and dilation {tuple(dilation)}"
        )
    deform_groups = offset.shape[1] // (2 * kh * kw)
    if deform_groups == 0 or c_in % deform_groups:
        raise ValueError(
            f"offset: expected 2·G·{kh * kw} channels with G a divisor of {c_in}, "
            f"got {offset.shape[1]}"
        )
    check_shape("offset", offset, (n, 2 * deform_groups * kh * kw, out_h, out_w))
    if mask is not None:
        check_shape("mask", mask, (n, deform_groups * kh * kw, out_h, out_w))
    if bias is not None:
        check_shape("bias", bias, (c_out,))
    return out_h, out_w


def grid_of(weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Grid:
    return grid_of_kernel(weight.shape[2:], stride, padding, dilation)


def grid_of_kernel(
    kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Grid:
    return _grid(tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))


@lru_cache(maxsize=256)
def _grid(kernel, stride, padding, dilation) -> Grid:
    return Grid(kernel, stride, (-padding[0], -padding[1]), dilation)


def deltas_of(offset: Tensor | None, mask: Tensor | None, points: int) -> Deltas:
    """Of offsets [N, G·K·2, H, W], (dy, dx) of a point, and masks [N, G·K, H, W]; or gradients."""
    y = x = None
    if offset is not None:
        n, channels, h, w = offset.shape
        y, x = offset.view(n, channels // (2 * points), points, 2, h, w).unbind(3)
    if mask is not None:
        n, channels, h, w = mask.shape
        mask = mask.view(n, channels // points, points, h, w)
    return Deltas(y, x, mask)


def bias_gradient(grad: Tensor, bias: Tensor) -> Tensor:
    return grad.sum((0, 2, 3)).to(bias.dtype)


def _bags(input: Tensor, deltas: Deltas, grid: Grid) -> tuple[Located, Bags]:
    """A bag of four corners per sample, in the order [N, H_out, W_out, K, G]."""
    samples = locate(input, deltas, grid)
    row, weight = (t.transpose(3, 4).reshape(-1) for t in (samples.row, samples.weight))
    lengths = torch.full((samples.mask.numel(),), 4, device=input.device)
    num_rows = input[:, 0].numel() * samples.mask.shape[3]
    return samples, make_bags(row, weight, lengths, num_rows)


def _gemm_operands(columns: Tensor, weight: Tensor, c_in: int) -> tuple[Tensor, Tensor]:
    """columns -> [groups, N·P, K·C/groups]; weight -> [groups, K·C/groups, C_out/groups]."""
    c_out, group_in, kh, kw = weight.shape
    points, groups = kh * kw, c_in // group_in
    positions = columns.numel() // (points * c_in)
    columns = columns.view(positions, points, groups, group_in).permute(2, 0, 1, 3)
    matrix = weight.reshape(groups, c_out // groups, group_in, points).permute(0, 3, 2, 1)
    return (
        columns.reshape(groups, positions, points * group_in),
        matrix.reshape(groups, points * group_in, c_out // groups),
    )
