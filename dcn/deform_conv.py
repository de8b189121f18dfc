"""Deformable convolution, plain (DCNv1) and modulated (DCNv2)."""

import math

import torch
from torch import Tensor, nn

from .library import check_shape, check_tensors, define, pair
from .reference import deform_conv as reference
from .reference.sampling import memory_format


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution: DCNv1 without a mask (arXiv 1703.06211, equation 2), DCNv2 with one.

    y(p) = sum_k w_k · x(p + p_k + Δp_k) · Δm_k    (arXiv 1811.11168, equation 1)

    x is sampled bilinearly and is zero outside the image; a sample whose offset is not finite is
    zero. The signature and the values are those of `torchvision.ops.deform_conv2d`. K = kh·kw, and
    G is the number of deform groups: the channels of a group share one offset per kernel point.

    On an NVIDIA GPU, tensor cores multiply the samples and, for the gradient of the input, sums of
    output gradients. Both are rounded to the input's dtype, so float16 has to be able to hold them.
    float32 is multiplied as `torch.backends.cudnn` sets it for convolutions, by default in TF32.
    `torch.use_deterministic_algorithms(True)` gives the same bits every time. The backward pass
    needs N·H_out·W_out to be below 2^29.

    Args:
        input: [N, C_in, H, W], float64, float32, float16 or bfloat16.
        offset: [N, 2·G·K, H_out, W_out], Δp in input pixels; channel 2·(g·K + k) is dy of kernel
            point k in deform group g, the next one dx. G follows from the shape and divides C_in.
        weight: [C_out, C_in / groups, kh, kw]. groups follows from the shape.
        bias: [C_out].
        stride, padding, dilation: of the kernel, an int or (vertical, horizontal).
        mask: [N, G·K, H_out, W_out], the modulation Δm.

    Returns:
        [N, C_out, H_out, W_out] of the input's dtype; channels-last if the input is.

    Raises:
        NotImplementedError: an argument has a tangent of forward-mode AD.
        TypeError: an argument is not a dense tensor, or dtypes differ or are not among those above.
        ValueError: shapes or devices that do not fit together, or a stride, padding or dilation
            out of range.

    Example:
        >>> x, weight = torch.rand(2, 8, 10, 10), torch.rand(16, 8, 3, 3)
        >>> offset, mask = torch.zeros(2, 18, 10, 10), torch.ones(2, 9, 10, 10)
        >>> deform_conv2d(x, offset, weight, padding=1, mask=mask).shape
        torch.Size([2, 16, 10, 10])
    """
    stride, padding, dilation = (
        pair("stride", stride, 1),
        pair("padding", padding, 0),
        pair("dilation", dilation, 1),
    )
    check_tensors(
        optional=("bias", "mask"),
        input=(input, 4),
        offset=(offset, 4),
        weight=(weight, 4),
        bias=(bias, 1),
        mask=(mask, 4),
    )
    n, c_in, h, w = input.shape
    c_out, group_in, kh, kw = weight.shape
    if 0 in weight.shape:
        raise ValueError(f"weight: no dimension may be empty, got {tuple(weight.shape)}")
    if c_in == 0 or c_in % group_in or c_out % (c_in // group_in):
        raise ValueError(
            f"weight: {tuple(weight.shape)} does not fit an input of {c_in} channels: C_in must be "
            "groups · weight.shape[1], and C_out a multiple of groups"
        )
    out = tuple(
        (size + 2 * padding[i] - dilation[i] * ((kh, kw)[i] - 1) - 1) // stride[i] + 1
        for i, size in enumerate((h, w))
    )
    if h == 0 or w == 0 or min(out) <= 0:
        raise ValueError(
            f"input: {h}×{w} pixels are too few for a {kh}×{kw} kernel with padding {padding} and "
            f"dilation {dilation}"
        )
    deform_groups = offset.shape[1] // (2 * kh * kw)
    if deform_groups == 0 or c_in % deform_groups:
        raise ValueError(
            f"offset: expected 2·G·{kh * kw} channels with G a divisor of {c_in}, "
            f"got {offset.shape[1]}"
        )
    check_shape("offset", offset, (n, 2 * deform_groups * kh * kw, *out))
    if mask is not None:
        check_shape("mask", mask, (n, deform_groups * kh * kw, *out))
    if bias is not None:
        check_shape("bias", bias, (c_out,))
    return torch.ops.dcn.deform_conv2d(input, offset, weight, bias, mask, stride, padding, dilation)


class DeformConv2d(nn.Conv2d):
    """Deformable convolution that predicts its own offsets (and masks, when modulated).

    Another convolution on the same input, `conv_offset`, with the same kernel, stride, padding and
    dilation, yields 2·G·K offset channels, then G·K mask logits (K = kh·kw, G = deform_groups).
    It starts at zero: Δp = 0, Δm = sigmoid(0) = 0.5 (arXiv 1811.11168, section 3.2). The paper
    trains it at a tenth of the learning rate.

    Parameters are named as in mmcv's packs (`weight`, `bias`, `conv_offset.weight`,
    `conv_offset.bias`), so mmdetection's DCN and DCNv2 checkpoints load unchanged.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in
            `torch.nn.Conv2d`.
        deform_groups: G; groups of input channels that share offsets and masks.
        modulated: DCNv2 (True) or DCNv1 (False).
        mask_scale: Δm = mask_scale · sigmoid(logit). 1 is the paper's text; the authors' code has
            2, so that Δm starts at 1 and pre-trained weights act as before.

    Shapes: [N, C_in, H, W] -> [N, C_out, H_out, W_out].

    Raises:
        ValueError: deform_groups does not divide in_channels, or mask_scale is not positive.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
        modulated: bool = True,
        mask_scale: float = 1.0,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        if deform_groups < 1 or in_channels % deform_groups:
            raise ValueError(
                f"deform_groups: expected a divisor of {in_channels}, got {deform_groups}"
            )
        if not 0 < mask_scale < math.inf:
            raise ValueError(f"mask_scale: expected a positive number, got {mask_scale}")
        self.deform_groups = deform_groups
        self.modulated = modulated
        self.mask_scale = mask_scale
        points = self.kernel_size[0] * self.kernel_size[1]
        self.offset_channels = 2 * deform_groups * points
        self.conv_offset = nn.Conv2d(
            in_channels,
            (3 if modulated else 2) * deform_groups * points,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Zero `conv_offset`. mmengine calls this after it has initialised all convolutions."""
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, input: Tensor) -> Tensor:
        prediction = self.conv_offset(input)
        offset, mask = prediction, None
        if self.modulated:
            offset, mask = prediction.split((self.offset_channels, self.offset_channels // 2), 1)
            mask = mask.sigmoid() if self.mask_scale == 1 else self.mask_scale * mask.sigmoid()
        return deform_conv2d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, deform_groups={self.deform_groups}, "
            f"modulated={self.modulated}, mask_scale={self.mask_scale}"
        )


def _fake(input, offset, weight, bias, mask, stride, padding, dilation):
    out = input.new_empty(input.shape[0], weight.shape[0], *offset.shape[2:])
    return out.contiguous(memory_format=memory_format(input))


def _fake_backward(grad, input, offset, weight, mask, stride, padding, dilation):
    grad_input = input.new_empty(input.shape)
    return (
        grad_input.contiguous(memory_format=memory_format(input)),
        torch.empty_like(offset),
        torch.empty_like(weight),
        grad.new_empty(0) if mask is None else torch.empty_like(mask),
    )


def _setup_context(ctx, inputs, output):
    input, offset, weight, bias, mask, *ctx.geometry = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx, grad):
    input, offset, weight, mask = ctx.saved_tensors
    grad_input, grad_offset, grad_weight, grad_mask = torch.ops.dcn.deform_conv2d_backward(
        grad, input, offset, weight, mask, *ctx.geometry
    )
    grad_bias = grad.sum((0, 2, 3)) if ctx.has_bias else None
    if mask is None:
        grad_mask = None
    return grad_input, grad_offset, grad_weight, grad_bias, grad_mask, None, None, None


_GEOMETRY = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation"
define(
    "deform_conv2d",
    f"(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, {_GEOMETRY})"
    " -> Tensor",
    reference.forward,
    _fake,
    backward=_backward,
    setup_context=_setup_context,
)
define(
    "deform_conv2d_backward",
    f"(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, {_GEOMETRY})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference.backward,
    _fake_backward,
)
