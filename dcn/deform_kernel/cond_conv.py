"""The layer `CondConv2d`, and the convolution by a kernel for each image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from ..checks import check_map, integer, pair
from ..deformable import ZeroLinear
from ..in_place import geometry_of, take_over
from ..layout import memory_format


class CondConv2d(nn.Module):
    """Conditionally parameterised convolution (CondConv, arXiv 1904.04971, section 3).

    The kernel of an image is a sum of experts, weighted by sigmoid(`fc`(global average of x)). `fc`
    starts at zero, so that all gates are 0.5.

    Parameters are `weight` [E, C_out, C_in / groups, kh, kw], `fc` and `bias`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in
            `torch.nn.Conv2d`, except that padding is in pixels and there is no bias by default. An
            expert starts as its weight.
        num_experts: E.

    Shapes: [N, C_in, H, W] -> [N, C_out, H_out, W_out].

    Raises:
        TypeError: a size that is no int (or pair of ints).
        ValueError: a size out of range, or groups that do not divide the channels.
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
        bias: bool = False,
        num_experts: int = 8,
    ) -> None:
        super().__init__()
        integer("num_experts", num_experts, 1, 2**15)
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.stride = pair("stride", stride, 1)
        self.padding = pair("padding", padding, 0)
        self.dilation = pair("dilation", dilation, 1)
        self.groups = groups
        # Which checks channels and groups.
        expert = nn.Conv2d(
            in_channels, out_channels, self.kernel_size, groups=groups, device="meta"
        )
        self.weight = nn.Parameter(torch.empty(num_experts, *expert.weight.shape))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.fc = ZeroLinear(in_channels, num_experts)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Experts start as the weight of a `torch.nn.Conv2d`."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                _uniform(parameter, self.weight[0, 0].numel())

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **settings) -> "CondConv2d":
        """In the place of a convolution, with its geometry and, at the start, its values.

        Args:
            settings: num_experts.

        Raises:
            ValueError: the convolution's padding is not zeros, a number of pixels.
        """
        layer = cls(*geometry_of(conv), conv.bias is not None, **settings).to(conv.weight)
        return take_over(layer, conv)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Also of a convolution.

        Experts are twice its weight, divided among them, and differ by what fresh ones differ from
        their mean: experts that are equal would stay so.
        """
        name = f"{prefix}weight"
        kernel = state_dict.get(name)
        if kernel is not None and kernel.shape == self.weight.shape[1:]:
            fresh = kernel.new_empty(self.weight.shape)
            _uniform(fresh, kernel[0].numel())
            state_dict[name] = 2 * kernel / len(fresh) + fresh - fresh.mean(0)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn, recurse=True):
        """Experts are one batch of kernels to it: no tensor of five dimensions is channels-last."""

        def apply(tensor: Tensor) -> Tensor:
            if tensor.dim() != 5:
                return fn(tensor)
            return fn(tensor.flatten(0, 1)).unflatten(0, tensor.shape[:2])

        return super()._apply(apply, recurse)

    def init_weights(self) -> None:
        """Zero `fc`. mmengine calls this after it has initialised all layers."""
        self.fc.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        input = check_map(input, self.fc.in_features)
        gates = self.fc(input.mean((2, 3))).sigmoid()
        kernels = torch.einsum("ne,eoihw->noihw", gates, self.weight)
        return conv_per_image(
            input, kernels, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        experts, out_channels, group_in, *_ = self.weight.shape
        return (
            f"{group_in * self.groups}, {out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}, num_experts={experts}"
        )


def _uniform(tensor: Tensor, products: int) -> None:
    """Of that many products per output, as `torch.nn.Conv2d` starts."""
    nn.init.uniform_(tensor, -(products**-0.5), products**-0.5)


@wrap_torch_function(lambda input, kernels, *_: (input, kernels))
def conv_per_image(
    input: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """[N, C_in, H, W] by kernels [N, C_out, C_in / groups, kh, kw] -> [N, C_out, H_out, W_out].

    One convolution of N·groups groups. A channels-last input is copied for it, and the output is
    channels-last again.
    """
    n, _, h, w = input.shape
    if n == 0:  # the sum of no kernels has their shape, and gradients
        return F.conv2d(input, kernels.sum(0), bias, stride, padding, dilation, groups)
    bias = None if bias is None else bias.repeat(n)
    out = F.conv2d(
        input.reshape(1, -1, h, w),
        kernels.flatten(0, 1),
        bias,
        stride,
        padding,
        dilation,
        n * groups,
    )
    out = out.view(n, -1, *out.shape[2:])
    return out.contiguous(memory_format=memory_format(input))
