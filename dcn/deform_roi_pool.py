"""Deformable RoI pooling, plain (DCNv1) and modulated (DCNv2)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .library import check_shape, check_tensors, define, is_autocast_enabled, pair
from .reference import deform_roi_pool as reference
from .reference.sampling import memory_format


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    offset: Tensor | None = None,
    mask: Tensor | None = None,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Deformable RoI pooling; without an offset and a mask it is RoIAlign (aligned).

    y(k) = sum_j x(p_kj + Δp_k) · Δm_k / n_k    (arXiv 1811.11168, equation 2)

    Every RoI is cut into ph × pw bins. Bin k is the mean of its n_k bilinear samples, which move
    together by Δp_k, multiplied by Δm_k. Samples up to one pixel outside the map read its edge;
    those further out, and those that are not finite, read zero. The values are those of
    `mmcv.ops.deform_roi_pool`, and of `torchvision.ops.roi_align(aligned=True)`.

    On an NVIDIA GPU the gradient of the input is summed in no fixed order. Under
    `torch.use_deterministic_algorithms(True)` the definition in plain PyTorch computes the
    gradients, which is slower and waits for the GPU, so no CUDA graph can capture it.

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        rois: [K, 5], (batch index, x1, y1, x2, y2) in pixels of the image. They have
            the input's dtype or float32. With 16-bit inputs use float32, because bfloat16 does not
            hold every integer above 256. They get no gradient.
        output_size: ph × pw, an int or a pair.
        offset: [K, 2, ph, pw] in (x, y) order; Δp = gamma · offset · (RoI width, RoI height).
        mask: [K, 1, ph, pw], the modulation Δm.
        spatial_scale: size of the feature map over that of the image, 1 / stride.
        sampling_ratio: samples per side of a bin, up to 1000; 0 takes ceil(bin size in pixels of
            the map), or none for a bin over twice the size of the map, which then pools zero.
        gamma: scale of the offsets.

    Returns:
        [K, C, ph, pw] of the input's dtype; contiguous, as fully connected layers take it.

    Raises:
        NotImplementedError: an argument has a tangent of forward-mode AD.
        TypeError: an argument is not a dense tensor, or dtypes differ or are not among those above.
        ValueError: shapes or devices that do not fit together, an empty output_size, a
            spatial_scale, sampling_ratio or gamma out of range, or a batch index that names no
            image. On an NVIDIA GPU, where a look at the indices would have to wait for it, such an
            RoI pools NaN instead (and its deterministic backward pass raises).

    Example:
        >>> features, rois = torch.rand(1, 8, 10, 10), torch.tensor([[0, 2.0, 2.0, 30.0, 20.0]])
        >>> deform_roi_pool(features, rois, 7, spatial_scale=0.25).shape
        torch.Size([1, 8, 7, 7])
    """
    output_size = pair("output_size", output_size, 1)
    check_tensors(optional=("offset", "mask"), input=(input, 4), offset=(offset, 4), mask=(mask, 4))
    # Coordinates may keep a precision of their own.
    check_tensors(rois=(rois, 2))
    if rois.dtype not in (input.dtype, torch.float32) and not is_autocast_enabled(input):
        raise TypeError(f"rois: is {rois.dtype}, expected {input.dtype} (the input's) or float32")
    if rois.device != input.device:
        raise ValueError(f"rois: is on {rois.device}, input on {input.device}")
    if 0 in input.shape[1:]:
        raise ValueError(f"input: only the batch may be empty, got shape {tuple(input.shape)}")
    count = rois.shape[0]
    check_shape("rois", rois, (count, 5))
    if offset is not None:
        check_shape("offset", offset, (count, 2, *output_size))
    if mask is not None:
        check_shape("mask", mask, (count, 1, *output_size))
    if not 0 < spatial_scale < math.inf:
        raise ValueError(f"spatial_scale: expected a positive number, got {spatial_scale}")
    _check_gamma(gamma)
    if not isinstance(sampling_ratio, int):
        raise TypeError(f"sampling_ratio: expected an int, got {sampling_ratio!r}")
    if not 0 <= sampling_ratio <= 1000:
        raise ValueError(f"sampling_ratio: expected 0 to 1000, got {sampling_ratio}")
    return torch.ops.dcn.deform_roi_pool(
        input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma
    )


def _check_gamma(gamma: float) -> None:
    if not -math.inf < gamma < math.inf:
        raise ValueError(f"gamma: expected a finite number, got {gamma}")


class DeformRoIPool(nn.Module):
    """Deformable RoI pooling that predicts its own offsets (and masks, when modulated).

    The RoIs are pooled plainly first; fully connected layers on those features yield the offsets
    and mask logits of a second, deformed pooling (arXiv 1811.11168, section 3.2). The last layers
    start at zero (Δp = 0, Δm = 0.5), the others from a Gaussian of standard deviation 0.01.
    DCNv1's branch is the last layer alone (`modulated=False, fc_channels=()`).

    Args:
        output_size: ph × pw, an int or a pair.
        in_channels: C.
        spatial_scale, sampling_ratio, gamma: as in `deform_roi_pool`.
        modulated: DCNv2 (True) or DCNv1 (False).
        fc_channels: widths of the hidden layers; an int stands for two of them, () for none.
        shared_fc: True is the paper's branch, `offset_fc`: two hidden layers, then one of 3·ph·pw
            (offsets, then mask logits) or, not modulated, 2·ph·pw. False is mmcv's layout, for
            its checkpoints: masks come from a branch of their own, `mask_fc`, with the first of
            the hidden layers. Without modulation the two are the same.

    Shapes: [N, C, H, W] and RoIs [K, 5] -> [K, C, ph, pw]. A call may give a `spatial_scale` of its
    own, so that the levels of a feature pyramid share one branch.

    Raises:
        ValueError: a width below 1, an empty output_size, or a gamma that is not finite.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        in_channels: int,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
        modulated: bool = True,
        fc_channels: int | Sequence[int] = 1024,
        shared_fc: bool = True,
    ) -> None:
        super().__init__()
        self.output_size = pair("output_size", output_size, 1)
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        _check_gamma(gamma)
        self.gamma = gamma
        self.modulated = modulated
        bins = self.output_size[0] * self.output_size[1]
        hidden = (fc_channels,) * 2 if isinstance(fc_channels, int) else tuple(fc_channels)
        if any(width < 1 for width in hidden):
            raise ValueError(f"fc_channels: expected widths from 1 up, or (), got {fc_channels}")
        widths = (in_channels * bins, *hidden)
        share_masks = modulated and shared_fc
        self.offset_fc = _mlp(*widths, (3 if share_masks else 2) * bins)
        self.mask_fc = _mlp(*widths[:2], bins) if modulated and not shared_fc else None

    def forward(self, input: Tensor, rois: Tensor, spatial_scale: float | None = None) -> Tensor:
        scale = self.spatial_scale if spatial_scale is None else spatial_scale

        def pool(offset: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            return deform_roi_pool(
                input,
                rois,
                self.output_size,
                offset,
                mask,
                scale,
                self.sampling_ratio,
                self.gamma,
            )

        plain = pool().flatten(1)
        prediction = self.offset_fc(plain).unflatten(1, (-1, *self.output_size))
        offset, mask = prediction, None
        if self.mask_fc is not None:
            mask = self.mask_fc(plain).unflatten(1, (1, *self.output_size)).sigmoid()
        elif self.modulated:
            offset, mask = prediction[:, :2], prediction[:, 2:].sigmoid()
        return pool(offset, mask)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, gamma={self.gamma}, modulated={self.modulated}"
        )


def _mlp(*channels: int) -> nn.Sequential:
    """Linear layers with ReLU between; the last one starts at zero."""
    layers = [nn.Linear(c_in, c_out) for c_in, c_out in pairwise(channels)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(layers[-1].weight)
    modules: list[nn.Module] = [layers[0]]
    for layer in layers[1:]:
        modules += [nn.ReLU(inplace=True), layer]
    return nn.Sequential(*modules)


def _fake(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma):
    return input.new_empty(rois.shape[0], input.shape[1], *output_size)


def _fake_backward(grad, input, rois, offset, mask, *geometry):
    grad_input = input.new_empty(input.shape)
    return (
        grad_input.contiguous(memory_format=memory_format(input)),
        grad.new_empty(0) if offset is None else offset.new_empty(offset.shape),
        grad.new_empty(0) if mask is None else mask.new_empty(mask.shape),
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.output_size, ctx.spatial_scale, ctx.sampling_ratio, ctx.gamma = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    input, rois, offset, mask = ctx.saved_tensors
    grad_input, grad_offset, grad_mask = torch.ops.dcn.deform_roi_pool_backward(
        grad,
        input,
        rois,
        offset,
        mask,
        ctx.output_size,
        ctx.spatial_scale,
        ctx.sampling_ratio,
        ctx.gamma,
    )
    if offset is None:
        grad_offset = None
    if mask is None:
        grad_mask = None
    return grad_input, None, grad_offset, grad_mask, None, None, None, None


_ARGUMENTS = (
    "Tensor input, Tensor rois, Tensor? offset, Tensor? mask, SymInt[2] output_size, "
    "float spatial_scale, SymInt sampling_ratio, float gamma"
)
define(
    "deform_roi_pool",
    f"({_ARGUMENTS}) -> Tensor",
    reference.forward,
    _fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast_exempt=("rois",),
)
define(
    "deform_roi_pool_backward",
    f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    reference.backward,
    _fake_backward,
)
