"""The layer `DeformConv2d`."""

import torch
from torch import Tensor, nn

from ..checks import integer, number, pair
from ..deformable import Deformable, Samples, ZeroConv2d, samples_of
from ..in_place import geometry_of, take_over
from .definition import deltas_of, grid_of
from .function import deform_conv2d


class DeformConv2d(nn.Conv2d, Deformable):
    """Deformable convolution that predicts its own offsets (and masks, when modulated).

    Another convolution on the same input, `conv_offset`, with the same kernel, stride, padding and
    dilation, yields 2·G·K offset channels, then G·K mask logits (K = kh·kw, G = deform_groups).
    It starts at zero: Δp = 0, Δm = sigmoid(0) = 0.5 (arXiv 1811.11168, section 3.2). The paper
    trains it at a tenth of the learning rate.

    Parameters are named as in mmcv's packs (`weight`, `bias`, `conv_offset.weight`,
    `conv_offset.bias`), so mmdetection's DCN and DCNv2 checkpoints load unchanged.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device,
            dtype: as in `torch.nn.Conv2d`; of the paddings by name, 'same'.
        deform_groups: G; groups of input channels that share offsets and masks.
        modulated: DCNv2 (True) or DCNv1 (False).
        mask_scale: Δm = mask_scale · sigmoid(logit). 1 is the paper's text; the authors' code has
            2, so that Δm starts at 1 and pre-trained weights act as before.

    Shapes: [N, C_in, H, W] -> [N, C_out, H_out, W_out].

    Raises:
        TypeError: a size that is no int.
        ValueError: deform_groups does not divide in_channels, mask_scale is not positive, or a size
            out of range.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel_size = pair("kernel_size", kernel_size, 1)
        dilation = pair("dilation", dilation, 1)
        if padding == "same":
            if pair("stride", stride, 1) != (1, 1):
                raise ValueError(f"padding: 'same' needs a stride of 1, got {stride!r}")
            reach = [step * (k - 1) for k, step in zip(kernel_size, dilation, strict=True)]
            if any(size % 2 for size in reach):
                raise ValueError("padding: 'same' needs as much of it on either side")
            padding = (reach[0] // 2, reach[1] // 2)
        placed = dict(device=device, dtype=dtype)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            pair("stride", stride, 1),
            pair("padding", padding, 0),
            dilation,
            groups,
            bias,
            **placed,
        )
        integer("deform_groups", deform_groups, -(2**31), 2**31)
        if deform_groups < 1 or in_channels % deform_groups:
            raise ValueError(
                f"deform_groups: expected a divisor of {in_channels}, got {deform_groups}"
            )
        if number("mask_scale", mask_scale) <= 0:
            raise ValueError(f"mask_scale: expected a positive number, got {mask_scale}")
        self.deform_groups = deform_groups
        self.modulated = modulated
        self.mask_scale = mask_scale
        points = self.kernel_size[0] * self.kernel_size[1]
        self.offset_channels = 2 * deform_groups * points
        self.conv_offset = ZeroConv2d(
            in_channels,
            (3 if modulated else 2) * deform_groups * points,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            **placed,
        )

    def init_weights(self) -> None:
        """Zero `conv_offset`. mmengine calls this after it has initialised all convolutions."""
        self.conv_offset.reset_parameters()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **settings) -> "DeformConv2d":
        """With the geometry and the trained weight of a regular convolution."""
        deformed = cls(
            *geometry_of(conv),
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            **settings,
        )
        return take_over(deformed, conv)

    def predict(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Offsets and masks, as `deform_conv2d` takes them."""
        prediction = self.conv_offset(input)
        if not self.modulated:
            return prediction, None
        offset, mask = prediction.split((self.offset_channels, self.offset_channels // 2), -3)
        mask = mask.sigmoid() if self.mask_scale == 1 else self.mask_scale * mask.sigmoid()
        return offset, mask

    def samples(
        self, input: Tensor, offset: Tensor | None = None, mask: Tensor | None = None
    ) -> Samples:
        if offset is None:
            offset, mask = self.predict(input)
        grid = grid_of(self.weight, self.stride, self.padding, self.dilation)
        return samples_of(deltas_of(offset, mask, grid.num_points), grid, input.shape[2:])

    def forward(
        self, input: Tensor, offset: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """With offsets (and masks) from elsewhere, as heads predict them, its own are not used."""
        if offset is None:
            if mask is not None:
                raise ValueError("mask: needs an offset beside it")
            offset, mask = self.predict(input)
        return deform_conv2d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, deform_groups={self.deform_groups}, "
            f"modulated={self.modulated}, mask_scale={self.mask_scale}"
        )
