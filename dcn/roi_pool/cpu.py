"""Calls the compiled kernels of csrc/roi_pooling.h."""

import torch
from torch import Tensor

from .. import native
from ..layout import compute_dtype, like
from .definition import check_shapes, image_index


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
    """Shapes as in `dcn.deform_roi_pool`."""
    check_shapes(input, rois, offset, mask, output_size)
    operands = _operands(input, rois, offset, mask)
    image = operands[0]
    out = image.new_empty(rois.shape[0], input.shape[1], *output_size)
    fields = (sampling_ratio, float(spatial_scale), float(gamma), *operands, out, None, None, None)
    native.call("deform_roi_pool_forward", image.dtype, *fields)
    return out.to(input.dtype)


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
    """Gradients of input, offset and mask, those that `output_mask` asks for. RoIs get none."""
    check_shapes(input, rois, offset, mask, output_size, grad)
    of_input, of_offset, of_mask = output_mask
    operands = _operands(input, rois, offset, mask)
    image, _, _, wide_offset, wide_mask = operands
    grad_input = torch.zeros_like(image, dtype=compute_dtype(input)) if of_input else None
    grad_offset = torch.empty_like(wide_offset) if of_offset else None
    grad_mask = torch.empty_like(wide_mask) if of_mask else None
    grads = (grad_input, grad_offset, grad_mask)
    geometry = (sampling_ratio, float(spatial_scale), float(gamma))
    grad = grad.to(image.dtype)
    native.call("deform_roi_pool_backward", image.dtype, *geometry, *operands, grad, *grads)
    return tuple(
        None if found is None else like(found, tensor)
        for found, tensor in zip(grads, (input, offset, mask), strict=True)
    )


def _operands(
    input: Tensor, rois: Tensor, offset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Input, image indices, boxes, offset and mask as the kernels want them."""
    dtype = compute_dtype(input)
    image = input.float() if input.dtype == torch.float16 else input
    return (
        image.contiguous(memory_format=torch.channels_last),
        image_index(rois, input.shape[0]),
        rois[:, 1:].to(dtype).contiguous(),
        None if offset is None else offset.to(dtype).contiguous(),
        None if mask is None else mask.to(dtype).contiguous(),
    )
