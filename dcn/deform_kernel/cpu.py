"""Calls the compiled kernels of csrc/deform_kernel.h.

They are those of depthwise convolutions, by far the most common use. All others, and those with
several groups of input offsets, are run by the definition, as matrix products.
"""

import torch
from torch import Tensor

from .. import native
from ..checks import check_shape
from ..deform_conv.definition import bias_gradient, deltas_of, grid_of_kernel
from ..grid import Deltas
from ..layout import cast, compute_dtype, like, memory_format
from . import definition
from .definition import check_shapes, scope_grid

_NO_DELTAS = Deltas(None, None, None)


def forward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_offset: Tensor | None,
    *settings,
) -> Tensor:
    """As in the definition."""
    tensors, (*geometry, clamp) = (input, offset, weight, bias, input_offset), settings
    if not _has_kernel(*tensors, geometry[0]):
        return definition.forward(*tensors, *settings)
    out_size = check_shapes(*tensors, *geometry)
    call = _Call(*tensors, geometry, clamp)
    out = torch.empty(
        (*input.shape[:2], *out_size), dtype=call.image.dtype, memory_format=torch.channels_last
    )
    fields = (*call.fields(out), _NO_DELTAS, _NO_DELTAS, None, None)
    native.call("local_deform_kernel_forward", call.image.dtype, *fields)
    return call.in_order(out).to(input.dtype).contiguous(memory_format=memory_format(input))


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
    tensors, (*geometry, clamp, output_mask) = (input, offset, weight, bias, input_offset), rest
    if not _has_kernel(*tensors, geometry[0]):
        return definition.backward(grad, *tensors, *rest)
    out_size = check_shapes(*tensors, *geometry)
    check_shape("grad", grad, (*input.shape[:2], *out_size))
    of_input, of_offset, of_weight, of_bias, of_input_offset = output_mask
    call = _Call(input, offset, weight, None, input_offset, geometry, clamp)
    grad_out = call.by_group(grad.to(call.image.dtype))
    dtype = call.cells.dtype
    grad_input = torch.zeros_like(call.image, dtype=dtype) if of_input else None
    grad_cells = torch.zeros_like(call.cells) if of_weight else None
    grad_offset = torch.empty_like(call.offset) if of_offset else None
    grad_input_offset = torch.empty_like(call.input_offset) if of_input_offset else None
    grad_deltas = call.deltas(grad_input_offset), call.deltas(grad_offset)
    if of_input or of_offset or of_weight or of_input_offset:
        fields = (*call.fields(grad_out), *grad_deltas, grad_input, grad_cells)
        native.call("local_deform_kernel_backward", call.image.dtype, *fields)
    grad_weight = None
    if of_weight:
        grad_weight = call.in_order(grad_cells.permute(2, 0, 1).unsqueeze(0)).view(weight.shape)
    return (
        like(call.in_order(grad_input), input) if of_input else None,
        like(grad_offset, offset) if of_offset else None,
        like(grad_weight, weight) if of_weight else None,
        bias_gradient(grad, bias) if of_bias else None,
        like(grad_input_offset, input_offset) if of_input_offset else None,
    )


def _has_kernel(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_offset: Tensor | None,
    kernel: list[int],
) -> bool:
    channels = 2 * kernel[0] * kernel[1]
    one_group = input_offset is None or (
        input_offset.shape[1] == channels and offset.shape[1] == channels
    )
    # Pixels are numbered in 32 bits.
    countable = max(input.shape[2] * input.shape[3], weight.shape[2] * weight.shape[3]) < 2**31
    return weight.shape[1] == 1 and weight.shape[0] == input.shape[1] and one_group and countable


class _Call:
    """Operands in the layouts and dtypes that the kernels want; a copy of what is not in them.

    The channels of a rotation group, which are R apart, follow each other there.
    """

    def __init__(self, input, offset, weight, bias, input_offset, geometry, clamp) -> None:
        kernel = geometry[0]
        dtype = compute_dtype(input)
        self.points = kernel[0] * kernel[1]
        self.rotations = offset.shape[1] // (2 * self.points)
        self.image = self.by_group(input.float() if input.dtype == torch.float16 else input)
        self.offset, self.input_offset = offset.to(dtype), cast(input_offset, dtype)
        cells = self.by_group(weight.to(dtype).transpose(0, 1))  # [1, C, S_h, S_w]
        self.cells = cells[0].permute(1, 2, 0).contiguous()
        self.bias = None if bias is None else self.by_group(bias.to(dtype).view(1, -1, 1, 1))
        self.grids = grid_of_kernel(*geometry), scope_grid(kernel, weight.shape[2:], clamp)

    def by_group(self, map: Tensor) -> Tensor:
        """[N, C, H, W], dense and channels-last."""
        if self.rotations > 1:
            map = map.unflatten(1, (-1, self.rotations)).transpose(1, 2).flatten(1, 2)
        return map.contiguous(memory_format=torch.channels_last)

    def in_order(self, map: Tensor) -> Tensor:
        if self.rotations > 1:
            map = map.unflatten(1, (self.rotations, -1)).transpose(1, 2).flatten(1, 2)
        return map

    def deltas(self, offset: Tensor | None) -> Deltas:
        return deltas_of(offset, None, self.points)

    def fields(self, output: Tensor) -> tuple:
        """Of the arguments' structure, up to the gradients."""
        grid, scope = self.grids
        bias = None if self.bias is None else self.bias.flatten()
        deltas = self.deltas(self.input_offset), self.deltas(self.offset)
        return (grid, deltas[0], scope, deltas[1], self.image, self.cells, bias, output)
