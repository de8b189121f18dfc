"""The layer `CondConv2d`, and the convolution by a kernel for each image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import integer, pair
from ..deformable import geometry_of


class CondConv2d(nn.Module):
    """Conditionally parameterised convolution (CondConv, arXiv 1904.04971, section 3).

    The kernel of an image is a sum of experts, weighted by sigmoid(`fc`(global average of x)). `fc`
    starts at zero, so that all gates are 0.5.

    Parameters are `weight` [E, C_out, C_in / groups, kh, kw], `fc` and `bias`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in
            `torch.nn.Conv2d`, except that padding is in pixels. An expert starts as its weight.
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
        experts = [
            nn.Conv2d(in_channels, out_channels, self.kernel_size, groups=groups, bias=bias)
            for _ in range(num_experts)
        ]
        self.weight = nn.Parameter(torch.stack([expert.weight.detach() for expert in experts]))
        self.bias = experts[0].bias
        self.fc = nn.Linear(in_channels, num_experts)
        self.init_weights()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **settings) -> "CondConv2d":
        """In the place of a convolution, with its geometry and, at the start, its values.

        Args:
            settings: num_experts.

        Raises:
            ValueError: the convolution's padding is not zeros, a number of pixels.
        """
        layer = cls(*geometry_of(conv), conv.bias is not None, **settings).to(conv.weight)
        layer.load_state_dict(conv.state_dict(), strict=False)
        return layer.train(conv.training)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Also of a convolution.

        Experts are twice its weight, divided among them, and differ by what they now differ from
        their mean: experts that are equal would stay so.
        """
        name = f"{prefix}weight"
        if name in state_dict and state_dict[name].shape == self.weight.shape[1:]:
            own = self.weight.detach()
            state_dict[name] = 2 * state_dict[name].to(own) / len(own) + own - own.mean(0)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_weights(self) -> None:
        """Zero `fc`. mmengine calls this after it has initialised all layers."""
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, input: Tensor) -> Tensor:
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

    One convolution of N·groups groups.
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
    return out.view(n, -1, *out.shape[2:])
