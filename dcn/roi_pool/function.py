"""The operator `dcn::deform_roi_pool`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import wrap_torch_function

from ..checks import check_tensors, integer, pair
from ..registration import Operator
from .definition import check_shapes


def _tensors(input, rois, output_size, offset=None, mask=None, *geometry, **_):
    return input, *(rois if isinstance(rois, list | tuple) else (rois,)), offset, mask


@wrap_torch_function(_tensors)
def deform_roi_pool(
    input: Tensor,
    rois: Tensor | Sequence[Tensor],
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
            hold every integer above 256. They get no gradient. Or one [L_i, 4] per image, which are
            its boxes.
        output_size: ph × pw, an int or a pair.
        offset: [K, 2, ph, pw] in (x, y) order; Δp = gamma · offset · (RoI width, RoI height).
        mask: [K, 1, ph, pw], the modulation Δm.
        spatial_scale: size of the feature map over that of the image, 1 / stride.
        sampling_ratio: samples per side of a bin, up to 1000; 0 or -1 takes ceil(bin size in pixels
            of the map), or none for a bin over twice the size of the map, which then pools zero.
        gamma: scale of the offsets.

    Returns:
        [K, C, ph, pw] of the input's dtype; contiguous, as fully connected layers take it.

    Raises:
        NotImplementedError: an argument has a tangent of forward-mode AD, or is differentiated by
            torch.func.
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
    if isinstance(rois, list | tuple):
        rois = _with_index("rois", input, rois)
    check_tensors(
        optional=("offset", "mask"),
        float32=OPERATOR.float32,
        input=(input, 4),
        rois=(rois, 2),
        offset=(offset, 4),
        mask=(mask, 4),
    )
    _check_scale(spatial_scale)
    check_gamma(gamma)
    sampling_ratio = max(integer("sampling_ratio", sampling_ratio, -1, 1000), 0)
    return torch.ops.dcn.deform_roi_pool.default(
        input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma
    )


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign (arXiv 1703.06870), with the signature of `torchvision.ops.roi_align`.

    Its values are the same up to rounding. That decides on the number of samples of a bin where its
    size is a whole number of pixels: with adaptive sampling and `aligned=False`, boxes under a
    pixel of the map wide or high may pool another value.

    Args:
        input, boxes, output_size, spatial_scale, sampling_ratio: as in `deform_roi_pool`.
        aligned: shift boxes by half a pixel, so that a pixel's value is that of its centre. Without
            it, boxes are also taken to be a pixel of the map wide and high at least.

    Returns, raises: as `deform_roi_pool`.
    """
    _check_scale(spatial_scale)
    if isinstance(boxes, list | tuple):
        boxes = _with_index("boxes", input, boxes)
    if not aligned and isinstance(boxes, Tensor) and boxes.dim() == 2 and boxes.shape[1] == 5:
        boxes = boxes.float() if boxes.dtype.itemsize == 2 else boxes
        corner = boxes[:, 1:3]
        size = (boxes[:, 3:] - corner).clamp(min=1 / spatial_scale)
        corner = corner + 0.5 / spatial_scale
        boxes = torch.cat((boxes[:, :1], corner, corner + size), 1)
    return deform_roi_pool(
        input, boxes, output_size, spatial_scale=spatial_scale, sampling_ratio=sampling_ratio
    )


def _with_index(name: str, input: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """[L_i, 4] per image to [K, 5]."""
    if len(boxes) != input.shape[0]:
        raise ValueError(f"{name}: {len(boxes)} lists of boxes for {input.shape[0]} images")
    for i, own in enumerate(boxes):
        if not isinstance(own, Tensor) or own.dim() != 2 or own.shape[1] != 4:
            found = tuple(own.shape) if isinstance(own, Tensor) else type(own).__name__
            raise ValueError(f"{name}[{i}]: expected a tensor [L, 4], got {found}")
    # 16 bits hold neither every image's number nor a shift by half a pixel.
    wide = (own.float() if own.dtype.itemsize == 2 else own for own in boxes)
    rows = [torch.nn.functional.pad(own, (1, 0), value=i) for i, own in enumerate(wide)]
    return torch.cat(rows) if rows else input.new_empty(0, 5)


def _check_scale(spatial_scale: float) -> None:
    if not 0 < spatial_scale < math.inf:
        raise ValueError(f"spatial_scale: expected a positive number, got {spatial_scale}")


def check_gamma(gamma: float) -> None:
    if not -math.inf < gamma < math.inf:
        raise ValueError(f"gamma: expected a finite number, got {gamma}")


def _fake(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma):
    check_shapes(input, rois, offset, mask, output_size)
    return input.new_empty(rois.shape[0], input.shape[1], *output_size)


def _flops(input, rois, *rest, out):
    return 0  # sampling alone


OPERATOR = Operator(
    "deform_roi_pool",
    __package__,
    "Tensor input, Tensor rois, Tensor? offset, Tensor? mask, SymInt[2] output_size, "
    "float spatial_scale, SymInt sampling_ratio, float gamma",
    gradients=("input", "offset", "mask"),
    fake=_fake,
    flops=_flops,
    float32=("rois", "offset", "mask"),
)
OPERATOR.register()
