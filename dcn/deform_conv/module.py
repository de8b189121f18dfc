"""The layer `DeformConv2d`."""

import math

from torch import Tensor, nn

from .function import deform_conv2d


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
            offset, mask = prediction.split((self.offset_channels, self.offset_channels // 2), -3)
            mask = mask.sigmoid() if self.mask_scale == 1 else self.mask_scale * mask.sigmoid()
        return deform_conv2d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, deform_groups={self.deform_groups}, "
            f"modulated={self.modulated}, mask_scale={self.mask_scale}"
        )
