"""Calls the compiled kernels of csrc/convolution.h."""

import torch
from torch import Tensor

from .. import native
from ..checks import check_shape
from ..grid import Deltas
from ..layout import cast, compute_dtype, like, memory_format
from .definition import bias_gradient, check_shapes, deltas_of, grid_of


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
    out_size = check_shapes(input, offset, weight, bias, mask, stride, padding, dilation)
    grid = grid_of(weight, stride, padding, dilation)
    operands = _operands(input, offset, weight, bias, mask)
    image, offset, weight, bias, mask = operands
    shape = (input.shape[0], weight.shape[0], *out_size)
    layout = torch.channels_last if _is_narrow(input, weight) else memory_format(input)
    out = torch.empty(shape, dtype=image.dtype, memory_format=layout)
    deltas = deltas_of(offset, mask, grid.num_points)
    fields = (grid, deltas, image, weight, bias, out, Deltas(None, None, None), None, None)
    native.call("deform_conv2d_forward", image.dtype, *fields)
    return out.to(input.dtype).contiguous(memory_format=memory_format(input))


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
    """Gradients of input, offset, weight, bias and mask, those that `output_mask` asks for."""
    out_size = check_shapes(input, offset, weight, bias, mask, stride, padding, dilation)
    check_shape("grad", grad, (input.shape[0], weight.shape[0], *out_size))
    of_input, of_offset, of_weight, of_bias, of_mask = output_mask
    grid = grid_of(weight, stride, padding, dilation)
    image, wide_offset, rows, _, wide_mask = _operands(input, offset, weight, None, mask)
    grad = grad.to(image.dtype)
    if _is_narrow(input, weight):
        grad = grad.contiguous(memory_format=torch.channels_last)
    grad_input = torch.zeros_like(image, dtype=rows.dtype) if of_input else None
    grad_weight = torch.zeros_like(rows) if of_weight else None
    grad_offset = torch.empty_like(wide_offset) if of_offset else None
    grad_mask = torch.empty_like(wide_mask) if of_mask else None
    deltas = deltas_of(wide_offset, wide_mask, grid.num_points)
    grad_deltas = deltas_of(grad_offset, grad_mask, grid.num_points)
    fields = (grid, deltas, image, rows, None, grad, grad_deltas, grad_input, grad_weight)
    if of_input or of_offset or of_weight or of_mask:
        native.call("deform_conv2d_backward", image.dtype, *fields)
    return (
        like(grad_input, input) if of_input else None,
        like(grad_offset, offset) if of_offset else None,
        like(grad_weight, weight) if of_weight else None,
        bias_gradient(grad, bias) if of_bias else None,
        like(grad_mask, mask) if of_mask else None,
    )


def _is_narrow(input: Tensor, weight: Tensor) -> bool:
    """Then a vector may hold several groups; the kernels for that know one layout of the output."""
    return weight.shape[1] <= 8 and weight.shape[1] < weight.shape[0] == input.shape[1]


def _operands(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """In the layouts and dtypes that the kernels want; a copy only of what is not in them."""
    dtype = compute_dtype(input)
    image = input.float() if input.dtype == torch.float16 else input
    return (
        image.contiguous(memory_format=torch.channels_last),
        offset.to(dtype),
        weight.to(dtype).contiguous(memory_format=torch.channels_last),
        None if bias is None else bias.to(dtype).contiguous(),
        cast(mask, dtype),
    )
