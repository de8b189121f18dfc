"""The operator `dcn::deform_aggregation`, which is DCNv3's and DCNv4's."""

import math

import torch
from torch import Tensor
from torch.overrides import wrap_torch_function

from ..checks import check_tensors, integer, number, pair
from ..registration import Operator
from .definition import check_shapes


@wrap_torch_function(lambda input, offset, mask, *_, **__: (input, offset, mask))
def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    pad: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    group: int = 4,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """Deformable aggregation as in DCNv3 (InternImage, arXiv 2211.05778, equation 2).

    y_g(p) = sum_k m_gk · x_g(p + s · (p_k + Δp_gk))

    x_g are the channels of group g, sampled bilinearly, zero outside the image; a sample whose
    offset is not finite is zero. There is no weight, and channels are not mixed. K = kh·kw kernel
    points, one less with `remove_center`. They are numbered column by column: k = i·kh + j is the
    point in column i and row j. s scales the kernel around its centre, with the offsets.

    On an NVIDIA GPU the gradient of the input is summed in no fixed order. Under
    `torch.use_deterministic_algorithms(True)` the definition in plain PyTorch computes the
    gradients, which is slower.

    Args:
        input: [N, H, W, C], float64, float32, float16 or bfloat16.
        offset: [N, H_out, W_out, G·K·2], Δp in input pixels; channel (g·K + k)·2 is **dx** of point
            k in group g, the next one dy. It has the input's dtype or float32.
        mask: [N, H_out, W_out, G·K], m, of any values; DCNv3's module takes a softmax over the K
            points of a group. It has the input's dtype or float32.
        kernel_size, stride, pad, dilation: an int or (vertical, horizontal).
        group: G, which divides C. A group is C/G channels that follow each other.
        offset_scale: s.
        remove_center: leave out the middle point of a kernel of odd size.

    Returns:
        [N, H_out, W_out, C] of the input's dtype.

    Raises:
        NotImplementedError: an argument has a tangent of forward-mode AD, or is differentiated by
            torch.func.
        TypeError: an argument is not a dense tensor, or dtypes differ or are not among those above.
        ValueError: shapes or devices that do not fit together, or a setting out of range.

    Example:
        >>> x, offset = torch.rand(2, 7, 9, 8), torch.zeros(2, 7, 9, 36)
        >>> mask = torch.rand(2, 7, 9, 18)
        >>> dcnv3(x, offset, mask, group=2).shape
        torch.Size([2, 7, 9, 8])
    """
    check_tensors(float32=OPERATOR.float32, input=(input, 4), offset=(offset, 4), mask=(mask, 4))
    settings = (kernel_size, stride, pad, dilation, group, offset_scale, remove_center)
    return _aggregate(input, offset, mask, *settings)


@wrap_torch_function(lambda input, offset_mask, *_, **__: (input, offset_mask))
def dcnv4(
    input: Tensor,
    offset_mask: Tensor,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    pad: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    group: int = 4,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """Deformable aggregation as in DCNv4 (arXiv 2401.06197, section 3.1).

    It is that of `dcnv3`, whose weights are not normalised, with offsets and weights in one tensor.
    What `dcnv3` says of the order of sums on a GPU holds here, too.

    Args:
        input: [N, H, W, C], float64, float32, float16 or bfloat16.
        offset_mask: [N, H_out, W_out, ceil(3·G·K / 8)·8]; group g has 3·K channels from 3·K·g: dx
            and dy of every point, then the points' weights. The last ones are not used. It has the
            input's dtype or float32.
        kernel_size, stride, pad, dilation, group, offset_scale, remove_center: as in `dcnv3`.

    Returns:
        [N, H_out, W_out, C] of the input's dtype.

    Raises:
        NotImplementedError: an argument has a tangent of forward-mode AD, or is differentiated by
            torch.func.
        TypeError: an argument is not a dense tensor, or dtypes differ or are not among those above.
        ValueError: shapes or devices that do not fit together, or a setting out of range.

    Example:
        >>> x, offset_mask = torch.rand(2, 7, 9, 8), torch.zeros(2, 7, 9, 56)
        >>> dcnv4(x, offset_mask, group=2).shape
        torch.Size([2, 7, 9, 8])
    """
    check_tensors(float32=("offset_mask",), input=(input, 4), offset_mask=(offset_mask, 4))
    settings = (kernel_size, stride, pad, dilation, group, offset_scale, remove_center)
    return _aggregate(input, offset_mask, None, *settings)


def _aggregate(
    input, offset, mask, kernel_size, stride, pad, dilation, group, offset_scale, remove_center
):
    kernel, stride, padding, dilation = (
        pair("kernel_size", kernel_size, 1),
        pair("stride", stride, 1),
        pair("pad", pad, 0),
        pair("dilation", dilation, 1),
    )
    if input.shape[3] == 0:
        raise ValueError(f"input: has no channels, got shape {tuple(input.shape)}")
    group = integer("group", group, 1, input.shape[3])
    number("offset_scale", offset_scale)
    remove_center = bool(remove_center)
    points = kernel[0] * kernel[1]
    if remove_center and (points == 1 or points % 2 == 0):
        raise ValueError(f"remove_center: a kernel of {kernel[0]}×{kernel[1]} has no middle point")
    return torch.ops.dcn.deform_aggregation.default(
        input, offset, mask, kernel, stride, padding, dilation, offset_scale, remove_center, group
    )


def _fake(input, offset, mask, *settings):
    size = check_shapes(input, offset, mask, *settings)
    return input.new_empty(input.shape[0], *size, input.shape[3])


def _flops(input, offset, mask, kernel, *settings, out):
    *_, without_centre, _groups = settings
    return 2 * math.prod(out) * (math.prod(kernel) - without_centre)


OPERATOR = Operator(
    "deform_aggregation",
    __package__,
    "Tensor input, Tensor offset, Tensor? mask, SymInt[2] kernel, SymInt[2] stride, "
    "SymInt[2] padding, SymInt[2] dilation, float offset_scale, bool without_centre, SymInt groups",
    gradients=("input", "offset", "mask"),
    fake=_fake,
    flops=_flops,
    float32=("offset", "mask"),
)
OPERATOR.register()
