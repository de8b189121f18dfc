"""Runs the kernels of deformable convolution."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..library import check_conv, check_shape
from ..reference.sampling import compute_dtype, like, memory_format
from .deform_conv_kernels import (
    forward_kernel,
    grad_input_kernel,
    grad_offset_kernel,
    grad_weight_kernel,
    list_samples_kernel,
)
from .tuning import call_kind, dot_precision, index_dtype, launch, multiprocessors, run

# A split of the weight gradient's sum is of at least as many positions.
MIN_CHUNK = 2048
# Positions that a program of list_samples_kernel takes.
LIST_BLOCK = 256


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
    out = input.new_empty(n, out_h, out_w, weight.shape[0])
    result = out.permute(0, 3, 1, 2)
    a = _arguments(input, offset, weight, mask, result, stride, padding, dilation)
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
    if out.numel() > 0:
        a |= dict(bias=None if bias is None else bias.contiguous(), out=out)
        a["BIASED"] = bias is not None
        groups = a["c_out"] // a["group_out"]

        def grid(block):
            channels = groups * triton.cdiv(a["group_out"], block["BLOCK_N"])
            return (triton.cdiv(a["positions"], block["BLOCK_M"]) * channels,)

        launch(forward_kernel, grid, a)
    return result.contiguous(memory_format=memory_format(input))


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
    """Gradients of input, offset, weight and mask (empty without a mask)."""
    a = _arguments(input, offset, weight, mask, grad, stride, padding, dilation)
    grad_offset = torch.empty_like(offset)
    grad_mask = grad.new_empty(0) if mask is None else torch.empty_like(mask)
    if grad.numel() == 0:
        return tuple(map(torch.zeros_like, (input, offset, weight, grad_mask)))
    a["grad"] = grad.to(input.dtype).contiguous(memory_format=torch.channels_last)
    a |= dict(grad_offset=grad_offset, grad_mask=grad_mask)
    a |= _strides("grad_offset", grad_offset)
    a |= _strides("grad_mask", None if mask is None else grad_mask)
    launch(
        grad_offset_kernel,
        lambda block: (triton.cdiv(a["positions"], block["BLOCK_M"]) * a["all_points"],),
        a,
    )
    grad_input = _grad_input(a).view_as(a["x"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return (
        grad_input.contiguous(memory_format=memory_format(input)),
        grad_offset,
        like(_grad_weight(a).permute(0, 3, 1, 2), weight),
        grad_mask,
    )


def _grad_weight(a: dict) -> Tensor:
    """[C_out, kh, kw, C_in / groups]; in float32 if it is of more than one split."""
    tiles = (a["c_in"] // a["span"]) * a["points"]
    tiles *= triton.cdiv(a["span"], 64) * triton.cdiv(a["group_out"], 128)
    splits = min(
        triton.cdiv(4 * multiprocessors(a["x"]), tiles), triton.cdiv(a["positions"], MIN_CHUNK)
    )
    chunk = triton.cdiv(a["positions"], splits)
    splits = triton.cdiv(a["positions"], chunk)
    weight = a["weight"].permute(0, 2, 3, 1)
    dtype = weight.dtype if splits == 1 else compute_dtype(weight)
    partial = weight.new_empty(splits, *weight.shape, dtype=dtype)

    def grid(block):
        tiles = (a["c_in"] // a["span"]) * triton.cdiv(a["span"], block["BLOCK_K"])
        tiles *= a["points"] * triton.cdiv(a["group_out"], block["BLOCK_N"])
        return (tiles * splits,)

    launch(grad_weight_kernel, grid, a | dict(grad_weight=partial, chunk=chunk))
    return partial[0] if splits == 1 else partial.sum(0)


def _grad_input(a: dict) -> Tensor:
    """[N·H·W, C_in], by way of the lists of who reads which pixel."""
    x, pixels, positions, all_points = a["x"], a["pixels"], a["positions"], a["all_points"]
    entries = 4 * all_points * positions
    if positions >= 2**29:
        raise ValueError(f"offset: {positions} positions are more than 32 bits can list")
    if max(entries, all_points * (pixels + 1)) >= 2**31:
        a = a | dict(INDEX=tl.int64)
    counts = torch.zeros(all_points * (pixels + 1), dtype=torch.int32, device=x.device)
    a = a | dict(
        counts=counts,
        SORTED=torch.are_deterministic_algorithms_enabled(),
        list_position=torch.empty(entries, dtype=torch.int32, device=x.device),
        list_weight=x.new_empty(entries, dtype=compute_dtype(x)),
        **dict.fromkeys(("ends", "lists", "slots")),
    )
    grid = (triton.cdiv(positions, LIST_BLOCK) * all_points,)
    if a["SORTED"]:
        a["lists"] = torch.empty(entries, dtype=torch.int64, device=x.device)
    run(list_samples_kernel, grid, a, FILL=False, BLOCK_M=LIST_BLOCK)
    # Only differences within a kernel point are used, so that it may overflow.
    a["ends"] = counts.cumsum(0, dtype=torch.int32)
    if a["SORTED"]:
        a["slots"] = a["lists"].argsort(stable=True).argsort()
    run(list_samples_kernel, grid, a, FILL=True, BLOCK_M=LIST_BLOCK)

    a["grad_input"] = x.new_empty(pixels, a["c_in"])

    def grid(block):
        channels = (a["c_in"] // a["span"]) * triton.cdiv(a["span"], block["BLOCK_N"])
        return (triton.cdiv(pixels, block["BLOCK_M"]) * channels,)

    launch(grad_input_kernel, grid, a)
    return a["grad_input"]


def _arguments(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    output: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> dict:
    """What the kernels take, by name; `output` is the gradient in the backward pass."""
    groups, deform_groups = check_conv(input, offset, weight, mask, output)
    n, c_in, h, w = input.shape
    c_out, group_in, kernel_h, kernel_w = weight.shape
    out_h, out_w = output.shape[2:]
    index = index_dtype(input, offset, mask, output)
    return dict(
        x=input.contiguous(memory_format=torch.channels_last),
        offset=offset,
        mask=mask,
        weight=weight.to(input.dtype).contiguous(memory_format=torch.channels_last),
        call_kind=call_kind(input, n * out_h * out_w),
        positions=n * out_h * out_w,
        pixels=n * h * w,
        h=h,
        w=w,
        out_h=out_h,
        out_w=out_w,
        **_strides("offset", offset),
        **_strides("mask", mask),
        c_in=c_in,
        c_out=c_out,
        group_in=group_in,
        group_out=c_out // groups,
        span=math.gcd(group_in, c_in // deform_groups),
        deform_span=c_in // deform_groups,
        points=kernel_h * kernel_w,
        all_points=deform_groups * kernel_h * kernel_w,
        kernel_w=kernel_w,
        geometry=(*stride, *padding, *dilation),
        MODULATED=mask is not None,
        PRECISION=dot_precision(input),
        ACC=tl.float64 if input.dtype == torch.float64 else tl.float32,
        INDEX=index,
    )


def _strides(name: str, tensor: Tensor | None) -> dict[str, int]:
    strides = (0, 0, 0, 0) if tensor is None else tensor.stride()
    return {f"{name}_{axis}": s for axis, s in zip("ncyx", strides, strict=True)}
