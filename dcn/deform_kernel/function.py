"""The operator `dcn::local_deform_kernel`."""

import math

import torch
from torch import Tensor
from torch.overrides import wrap_torch_function

from ..checks import check_tensors, pair
from ..layout import memory_format
from ..registration import Operator
from .definition import check_shapes


def _tensors(input, offset, weight, kernel_size, bias=None, *_, input_offset=None, **__):
    return input, offset, weight, bias, input_offset


@wrap_torch_function(_tensors)
def local_deform_kernel(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    kernel_size: int | tuple[int, int],
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    *,
    input_offset: Tensor | None = None,
    clamp: bool = False,
) -> Tensor:
    """Convolution by a kernel of its own at every position (arXiv 1910.02940, section 3).

    y(p) = sum_k W(k + (S - K)/2 + Δk(p)) · x(p + p_k + Δp_k)

    A kernel of kh × kw points is read from a larger one, its scope of S_h × S_w cells: point k, a
    row and a column, lies in the middle of the scope and is moved by Δk. W is read bilinearly and
    is zero outside the scope. Without Δp the input is read where a convolution reads it; with Δp it
    is sampled as in `deform_conv2d`, zero outside the image. A point whose offset is not finite
    adds nothing. On a whole cell the gradient of Δk is the slope to the next one.

    Args:
        input: [N, C_in, H, W], float64, float32, float16 or bfloat16.
        offset: [N, R·K·2, H_out, W_out], Δk in cells, K = kh·kw; channel (r·K + k)·2 moves point k
            along the scope's rows, the next one along its columns. Points are numbered row by row.
            Input channel c belongs to rotation group r = c % R. R follows from the shape and
            divides C_in. It has the input's dtype or float32.
        weight: [C_out, C_in / groups, S_h, S_w], the scope. groups follows from the shape.
        kernel_size: (kh, kw) or an int. The scope may be larger or smaller.
        bias: [C_out].
        stride, padding, dilation: of the kernel on the input, an int or (vertical, horizontal).
        input_offset: [N, 2·G·K, H_out, W_out], Δp in input pixels, as the `offset` of
            `deform_conv2d`: dy and dx of a point. It has the input's dtype or float32.
        clamp: hold points within the cells' centres, 0 to S - 1, instead of reading zero outside.

    Returns:
        [N, C_out, H_out, W_out] of the input's dtype; channels-last if the input is.

    Raises:
        NotImplementedError: an argument has a tangent of forward-mode AD, or is differentiated by
            torch.func.
        TypeError: an argument is not a dense tensor, or dtypes differ or are not among those above;
            or clamp is no bool.
        ValueError: shapes or devices that do not fit together, or a size, stride, padding or
            dilation out of range.

    Example:
        >>> x, weight = torch.rand(2, 8, 10, 10), torch.rand(8, 1, 4, 4)
        >>> offset = torch.zeros(2, 18, 10, 10)
        >>> local_deform_kernel(x, offset, weight, kernel_size=3, padding=1).shape
        torch.Size([2, 8, 10, 10])
    """
    kernel, stride, padding, dilation = (
        pair("kernel_size", kernel_size, 1),
        pair("stride", stride, 1),
        pair("padding", padding, 0),
        pair("dilation", dilation, 1),
    )
    if not isinstance(clamp, bool):
        raise TypeError(f"clamp: expected a bool, got {type(clamp).__name__}")
    check_tensors(
        optional=("bias", "input_offset"),
        float32=OPERATOR.float32,
        input=(input, 4),
        offset=(offset, 4),
        weight=(weight, 4),
        bias=(bias, 1),
        input_offset=(input_offset, 4),
    )
    return torch.ops.dcn.local_deform_kernel.default(
        input, offset, weight, bias, input_offset, kernel, stride, padding, dilation, clamp
    )


def _fake(input, offset, weight, bias, input_offset, kernel, stride, padding, dilation, clamp):
    geometry = (kernel, stride, padding, dilation)
    size = check_shapes(input, offset, weight, bias, input_offset, *geometry)
    out = input.new_empty(input.shape[0], weight.shape[0], *size)
    return out.contiguous(memory_format=memory_format(input))


def _flops(input, offset, weight, bias, input_offset, kernel, *settings, out):
    return 2 * math.prod(out) * weight[1] * math.prod(kernel)


OPERATOR = Operator(
    "local_deform_kernel",
    __package__,
    "Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? input_offset, "
    "SymInt[2] kernel, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool clamp",
    gradients=("input", "offset", "weight", "bias", "input_offset"),
    fake=_fake,
    flops=_flops,
    float32=("offset", "input_offset"),
)
OPERATOR.register()
