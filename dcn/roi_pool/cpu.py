"""Calls the compiled kernels of csrc/roi_pooling.h."""

import ctypes

import torch
from torch import Tensor

from .. import native
from ..layout import compute_dtype, like
from .definition import check_shapes, image_index


class _Arguments(native.Call):
    """`DeformRoIPool` of csrc/arguments.h."""

    _fields_ = (
        ("sampling_ratio", ctypes.c_int64),
        ("spatial_scale", ctypes.c_double),
        ("gamma", ctypes.c_double),
        ("input", native.Tensor),
        ("index", native.Tensor),
        ("boxes", native.Tensor),
        ("offset", native.Tensor),
        ("mask", native.Tensor),
        ("output", native.Tensor),
        ("grad_input", native.Tensor),
        ("grad_offset", native.Tensor),
        ("grad_mask", native.Tensor),
    )


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
    _run("forward", operands, out, (sampling_ratio, spatial_scale, gamma))
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
    _run("backward", operands, grad.to(image.dtype), (sampling_ratio, spatial_scale, gamma), grads)
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


def _run(
    direction: str,
    operands: tuple[Tensor | None, ...],
    output: Tensor,
    geometry: tuple[int, float, float],
    grads: tuple[Tensor | None, ...] = (),
) -> None:
    """`output` is its gradient in the backward pass."""
    tensors = map(native.tensor, (*operands, output, *grads))
    arguments = _Arguments(0, 0, *geometry, *tensors)
    native.call(f"deform_roi_pool_{direction}", arguments, operands[0].dtype)
