"""Modulated deformable convolution in plain PyTorch (arXiv 1811.11168, equation 1).

y(p) = sum_k w_k · x(p + p_k + Δp_k) · Δm_k
"""

import torch
from torch import Tensor

from .sampling import (
    Axis,
    Bags,
    compute_dtype,
    corner_index,
    from_rows,
    like,
    make_bags,
    memory_format,
    outer,
    sum_bags,
    sum_bags_backward_table,
    sum_bags_backward_weight,
    to_rows,
    zero_padded_axis,
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
    """Shapes as in `dcn.deform_conv2d`, which checks them."""
    n, _, out_h, out_w = offset.shape
    dtype = compute_dtype(input)
    _, _, modulation, bags = _bags(input, offset, weight, mask, stride, padding, dilation)
    columns = sum_bags(to_rows(input, modulation.shape[-1], dtype), bags)
    columns, matrix = _gemm_operands(columns, weight.to(dtype), input.shape[1])
    out = torch.bmm(columns, matrix).transpose(0, 1).reshape(n, out_h, out_w, weight.shape[0])
    if bias is not None:
        out = out + bias.to(dtype)
    out = out.permute(0, 3, 1, 2).to(input.dtype)
    return out.contiguous(memory_format=memory_format(input))


def backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, offset, weight and mask (empty without a mask).

    The columns are gathered again, not kept from the forward pass: they are kh·kw times the input.
    """
    c_out, group_in, kh, kw = weight.shape
    dtype = compute_dtype(input)
    y, x, modulation, bags = _bags(input, offset, weight, mask, stride, padding, dilation)
    deform_groups = modulation.shape[-1]
    rows = to_rows(input, deform_groups, dtype)
    columns, matrix = _gemm_operands(sum_bags(rows, bags), weight.to(dtype), input.shape[1])
    groups = matrix.shape[0]

    grad_out = grad.permute(0, 2, 3, 1).to(dtype).reshape(-1, groups, c_out // groups)
    grad_out = grad_out.transpose(0, 1)
    grad_weight = torch.bmm(grad_out.mT, columns).view(c_out, kh, kw, group_in)
    grad_weight = like(grad_weight.permute(0, 3, 1, 2), weight)

    grad_columns = torch.bmm(grad_out, matrix.mT)  # [groups, N·P, K·C/groups]
    grad_columns = grad_columns.view(groups, -1, kh * kw, group_in).permute(1, 2, 0, 3)
    grad_columns = grad_columns.reshape(-1, rows.shape[1])
    grad_rows = sum_bags_backward_table(grad_columns, bags, rows.shape[0])

    # One dot product a corner; the chain rule through the corner weights gives the rest.
    dot = sum_bags_backward_weight(grad_columns, rows, bags).view(*modulation.shape, 4)
    grad_y = (dot * outer(y.slope, x.weight)).sum(-1) * modulation
    grad_x = (dot * outer(y.weight, x.slope)).sum(-1) * modulation
    grad_offset = torch.stack((grad_y, grad_x), -1).permute(0, 3, 2, 4, 1)
    if mask is None:
        grad_mask = grad.new_empty(0)
    else:
        grad_mask = (dot * outer(y.weight, x.weight)).sum(-1).permute(0, 3, 2, 1)
        grad_mask = like(grad_mask.reshape(mask.shape), mask)
    return (
        from_rows(grad_rows, input),
        like(grad_offset.reshape(offset.shape), offset),
        grad_weight,
        grad_mask,
    )


def _bags(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[Axis, Axis, Tensor, Bags]:
    """One bag of four corners for every (image n, position p, kernel point k, deform group g)."""
    n, _, h, w = input.shape
    out_h, out_w = offset.shape[2:]
    kh, kw = weight.shape[2:]
    points, positions = kh * kw, out_h * out_w
    deform_groups = offset.shape[1] // (2 * points)
    dtype, device = compute_dtype(input), input.device

    def grid(out: int, kernel: int, axis: int) -> Tensor:
        """Undeformed sampling positions p + p_k along an axis: [out, kernel]."""
        out_pos = torch.arange(out, device=device, dtype=dtype) * stride[axis] - padding[axis]
        return out_pos[:, None] + torch.arange(kernel, device=device, dtype=dtype) * dilation[axis]

    grid_y = grid(out_h, kh, 0)[:, None, :, None].expand(out_h, out_w, kh, kw)
    grid_x = grid(out_w, kw, 1)[None, :, None, :].expand(out_h, out_w, kh, kw)
    delta = offset.reshape(n, deform_groups, points, 2, positions).to(dtype).permute(3, 0, 4, 2, 1)
    y = zero_padded_axis(grid_y.reshape(positions, points, 1) + delta[0], h)
    x = zero_padded_axis(grid_x.reshape(positions, points, 1) + delta[1], w)

    if mask is None:
        modulation = delta.new_ones(()).expand(delta.shape[1:])
    else:
        modulation = mask.reshape(n, deform_groups, points, positions).to(dtype).permute(0, 3, 2, 1)

    image = torch.arange(n, device=device).view(n, 1, 1, 1, 1) * (h * w)
    group = torch.arange(deform_groups, device=device).view(deform_groups, 1)
    index = (corner_index(y, x, w) + image) * deform_groups + group
    corner_weight = outer(y.weight, x.weight) * modulation.unsqueeze(-1)
    num_bags = n * positions * points * deform_groups
    lengths = torch.full((num_bags,), 4, device=device)
    num_rows = n * h * w * deform_groups
    bags = make_bags(index.reshape(-1), corner_weight.reshape(-1), lengths, num_rows)
    return y, x, modulation, bags


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
