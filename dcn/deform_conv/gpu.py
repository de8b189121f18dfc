"""Runs the kernels of deformable convolution."""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_shape
from ..gpu.launch import call_kind, dot_precision, index_dtype, launch, multiprocessors
from ..gpu.readers import list_readers
from ..gpu.sampling import Where, strides
from ..layout import compute_dtype, like, memory_format
from .definition import bias_gradient, check_shapes, deltas_of, grid_of
from .gpu_kernels import (
    forward_kernel,
    grad_input_kernel,
    grad_offset_kernel,
    grad_weight_kernel,
)

# A split of the weight gradient's sum is of at least as many positions.
MIN_CHUNK = 2048


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
    out = input.new_empty(input.shape[0], *out_size, weight.shape[0])
    result = out.permute(0, 3, 1, 2)
    if out.numel() > 0:
        call = _Call.of(input, offset, weight, mask, result, stride, padding, dilation)

        def blocks(block):
            channels = call.groups * triton.cdiv(call.group_out, block["BLOCK_N"])
            return (triton.cdiv(call.where.positions, block["BLOCK_M"]) * channels,)

        launch(
            forward_kernel,
            blocks,
            call.arguments,
            bias=None if bias is None else bias.contiguous(),
            out=out,
            BIASED=bias is not None,
        )
    return result.contiguous(memory_format=memory_format(input))


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
    if grad.numel() == 0:
        return tuple(
            torch.zeros_like(tensor) if wanted else None
            for tensor, wanted in zip((input, offset, weight, bias, mask), output_mask, strict=True)
        )
    of_input, of_offset, of_weight, of_bias, of_mask = output_mask
    call = _Call.of(input, offset, weight, mask, grad, stride, padding, dilation)
    rows = grad.to(input.dtype).contiguous(memory_format=torch.channels_last)
    grad_offset = torch.empty_like(offset) if of_offset else None
    grad_mask = torch.empty_like(mask) if of_mask else None
    if of_offset or of_mask:
        _grad_offset(call, rows, grad_offset, grad_mask)
    grad_input = grad_weight = None
    if of_input:
        grad_input = _grad_input(call, rows).view(call.x.permute(0, 2, 3, 1).shape)
        grad_input = like(grad_input.permute(0, 3, 1, 2), input)
    if of_weight:
        grad_weight = like(_grad_weight(call, rows).permute(0, 3, 1, 2), weight)
    grad_bias = bias_gradient(grad, bias) if of_bias else None
    return grad_input, grad_offset, grad_weight, grad_bias, grad_mask


@dataclass(frozen=True)
class _Call:
    """What all kernels of one call take."""

    x: Tensor
    weight: Tensor
    where: Where
    call_kind: int
    c_in: int
    c_out: int
    groups: int
    deform_groups: int
    group_in: int
    group_out: int
    span: int
    deform_span: int
    PRECISION: str
    ACC: tl.dtype
    INDEX: tl.dtype

    @classmethod
    def of(
        cls,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        output: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
    ) -> "_Call":
        """`output` is the gradient in the backward pass."""
        grid = grid_of(weight, stride, padding, dilation)
        deltas = deltas_of(offset, mask, grid.num_points)
        where = Where.of(deltas, grid, input)
        c_in, (c_out, group_in) = input.shape[1], weight.shape[:2]
        groups, deform_groups = c_in // group_in, deltas.y.shape[1]
        return cls(
            x=input.contiguous(memory_format=torch.channels_last),
            weight=weight.to(input.dtype).contiguous(memory_format=torch.channels_last),
            where=where,
            call_kind=call_kind(input, where.positions),
            c_in=c_in,
            c_out=c_out,
            groups=groups,
            deform_groups=deform_groups,
            group_in=group_in,
            group_out=c_out // groups,
            span=math.gcd(group_in, c_in // deform_groups),
            deform_span=c_in // deform_groups,
            PRECISION=dot_precision(input),
            ACC=tl.float64 if input.dtype == torch.float64 else tl.float32,
            INDEX=index_dtype(input, offset, mask, output),
        )

    @property
    def arguments(self) -> dict:
        return vars(self.where) | vars(self)


def _grad_offset(
    call: _Call, grad: Tensor, grad_offset: Tensor | None, grad_mask: Tensor | None
) -> None:
    """Writes those that there are."""
    all_points = call.deform_groups * call.where.points
    deltas = deltas_of(grad_offset, grad_mask, call.where.points)
    launch(
        grad_offset_kernel,
        lambda block: (triton.cdiv(call.where.positions, block["BLOCK_M"]) * all_points,),
        call.arguments,
        grad=grad,
        grad_y=deltas.y,
        grad_x=deltas.x,
        grad_mask=deltas.mask,
        **strides("grad_delta", deltas.y),
        **strides("grad_mask", deltas.mask),
        OF_OFFSET=grad_offset is not None,
        OF_MASK=grad_mask is not None,
    )


def _grad_weight(call: _Call, grad: Tensor) -> Tensor:
    """[C_out, kh, kw, C_in / groups]; in float32 if it is of more than one split."""
    positions, spans = call.where.positions, call.c_in // call.span
    tiles = spans * call.where.points
    tiles *= triton.cdiv(call.span, 64) * triton.cdiv(call.group_out, 128)
    splits = min(triton.cdiv(4 * multiprocessors(call.x), tiles), triton.cdiv(positions, MIN_CHUNK))
    chunk = triton.cdiv(positions, splits)
    splits = triton.cdiv(positions, chunk)
    weight = call.weight.permute(0, 2, 3, 1)
    dtype = weight.dtype if splits == 1 else compute_dtype(weight)
    partial = weight.new_empty(splits, *weight.shape, dtype=dtype)

    def blocks(block):
        tiles = spans * triton.cdiv(call.span, block["BLOCK_K"])
        tiles *= call.where.points * triton.cdiv(call.group_out, block["BLOCK_N"])
        return (tiles * splits,)

    launch(grad_weight_kernel, blocks, call.arguments, grad=grad, grad_weight=partial, chunk=chunk)
    return partial[0] if splits == 1 else partial.sum(0)


def _grad_input(call: _Call, grad: Tensor) -> Tensor:
    """[N·H·W, C_in], by way of the lists of who reads which pixel."""
    lists = list_readers(call.where, call.arguments, call.x, call.deform_groups)
    grad_input = call.x.new_empty(call.where.pixels, call.c_in)

    def blocks(block):
        channels = (call.c_in // call.span) * triton.cdiv(call.span, block["BLOCK_N"])
        return (triton.cdiv(call.where.pixels, block["BLOCK_M"]) * channels,)

    own = dict(grad=grad, grad_input=grad_input)
    launch(grad_input_kernel, blocks, call.arguments, **own, **vars(lists))
    return grad_input
