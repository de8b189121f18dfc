"""Calls the compiled kernels of csrc/aggregation.h."""

import torch
from torch import Tensor

from .. import native
from ..checks import check_shape
from ..grid import Deltas
from ..layout import cast, compute_dtype, like
from .definition import check_shapes, deltas_of, grid_of


def forward(input: Tensor, offset: Tensor, mask: Tensor | None, *settings) -> Tensor:
    """As in the definition."""
    *of_grid, groups = settings
    out_size, grid = check_shapes(input, offset, mask, *settings), grid_of(*of_grid)
    image, offset, mask = _operands(input, offset, mask)
    out = image.new_empty(input.shape[0], *out_size, input.shape[3])
    deltas = deltas_of(offset, mask, groups, grid)
    fields = (grid, deltas, _nchw(image), _nchw(out), Deltas(None, None, None), None)
    native.call("deform_aggregation_forward", image.dtype, *fields)
    return out.to(input.dtype)


def backward(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor | None, *rest
) -> tuple[Tensor | None, ...]:
    """As in the definition: the last argument says which gradients are wanted."""
    *settings, output_mask = rest
    *of_grid, groups = settings
    out_size, grid = check_shapes(input, offset, mask, *settings), grid_of(*of_grid)
    check_shape("grad", grad, (input.shape[0], *out_size, input.shape[3]))
    of_input, of_offset, of_mask = output_mask
    image, wide_offset, wide_mask = _operands(input, offset, mask)
    dtype = compute_dtype(input)
    grad = grad.to(image.dtype).contiguous()
    grad_input = torch.zeros_like(image, dtype=dtype) if of_input else None
    grad_offset = torch.empty_like(wide_offset) if of_offset else None
    grad_mask = torch.empty_like(wide_mask) if of_mask else None
    if of_offset and mask is None:
        grad_offset[..., 3 * groups * grid.num_points :] = 0
    deltas = deltas_of(wide_offset, wide_mask, groups, grid)
    grad_deltas = deltas_of(grad_offset, grad_mask, groups, grid)
    fields = (grid, deltas, _nchw(image), _nchw(grad), grad_deltas, _nchw(grad_input))
    native.call("deform_aggregation_backward", image.dtype, *fields)
    return (
        like(grad_input, input) if of_input else None,
        like(grad_offset, offset) if of_offset else None,
        like(grad_mask, mask) if of_mask else None,
    )


def _operands(
    input: Tensor, offset: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """In the layouts and dtypes that the kernels want; a copy only of what is not in them."""
    dtype = compute_dtype(input)
    image = input.float() if input.dtype == torch.float16 else input
    return image.contiguous(), offset.to(dtype), cast(mask, dtype)


def _nchw(image: Tensor | None) -> Tensor | None:
    return None if image is None else image.permute(0, 3, 1, 2)
