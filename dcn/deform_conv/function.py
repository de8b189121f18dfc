"""The operator `dcn::deform_conv2d`."""

import math

import torch
from torch import Tensor
from torch.overrides import wrap_torch_function

from ..checks import check_tensors, pair
from ..layout import memory_format
from ..registration import Operator
from .definition import check_shapes


def _tensors(input, offset, weight, bias=None, stride=1, padding=0, dilation=1, mask=None):
    return input, offset, weight, bias, mask


@wrap_torch_function(_tensors)
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
    Between two pixels' centres, where the slope jumps, the gradient of an offset is that to the
    right; so it is at exactly -1, where samples of padding lie as long as offsets are zero, and
    where mmcv has zero.

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
        NotImplementedError: an argument has a tangent of forward-mode AD, or is differentiated by
            torch.func.
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
        float32=OPERATOR.float32,
        input=(input, 4),
        offset=(offset, 4),
        weight=(weight, 4),
        bias=(bias, 1),
        mask=(mask, 4),
    )
    return torch.ops.dcn.deform_conv2d.default(
        input, offset, weight, bias, mask, stride, padding, dilation
    )


def _fake(input, offset, weight, bias, mask, stride, padding, dilation):
    size = check_shapes(input, offset, weight, bias, mask, stride, padding, dilation)
    out = input.new_empty(input.shape[0], weight.shape[0], *size)
    return out.contiguous(memory_format=memory_format(input))


def _flops(input, offset, weight, bias, mask, *geometry, out):
    return 2 * math.prod(out) * math.prod(weight[1:])


OPERATOR = Operator(
    "deform_conv2d",
    __package__,
    "Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, "
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation",
    gradients=("input", "offset", "weight", "bias", "mask"),
    fake=_fake,
    float32=("offset", "mask"),
    flops=_flops,
)
OPERATOR.register()
