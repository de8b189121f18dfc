"""The layer `ConvOffset2D`: a feature map, resampled where it says itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_tensors, integer
from .deformable import Deformable, Samples
from .layout import compute_dtype


class ConvOffset2D(nn.Conv2d, Deformable):
    """Resamples a map, every channel and pixel of it, at an offset that it predicts.

    The Keras reading of deformable convolution (arXiv 1703.06211): a 3×3 convolution without bias
    predicts the offsets, the map is sampled bilinearly there, and an ordinary convolution follows.
    Positions beyond the border are moved onto it.

    The only parameter is `weight` [2·C, C, 3, 3]. Its output channel 2·c is dy of channel c, in
    pixels, and 2·c + 1 is dx. (The Keras code's reshape mixes channels and axes.) It starts normal
    with a standard deviation of 0.01.

    An offset that is not a number counts as zero, an infinite one leads to the border.

    Args:
        channels: C.

    Shapes: [N, C, H, W] -> the same, float64, float32, float16 or bfloat16.

    Raises:
        TypeError: channels is no int, or the input no dense floating-point tensor.
        ValueError: channels below 1, or an input of another number of dimensions or channels.
    """

    def __init__(self, channels: int) -> None:
        integer("channels", channels, 1, 2**30)
        super().__init__(channels, 2 * channels, 3, padding=1, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """mmengine calls this after it has initialised all convolutions."""
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, input: Tensor) -> Tensor:
        check_tensors(input=(input, 4))
        if input.shape[1] != self.in_channels:
            raise ValueError(f"input: expected {self.in_channels} channels, got {input.shape[1]}")
        samples = self.samples(input)
        # -1 and 1 are the centres of the first and the last pixel, which may be one.
        grid = [
            along.flatten(0, 2) * (2 / max(size - 1, 1)) - 1
            for along, size in ((samples.x, input.shape[3]), (samples.y, input.shape[2]))
        ]
        out = F.grid_sample(
            input.to(samples.x.dtype).flatten(0, 1).unsqueeze(1),
            torch.stack(grid, -1),
            mode="bilinear",
            padding_mode="border",
            align_corners=True,
        )
        return out.view(input.shape).to(input.dtype)

    def samples(self, input: Tensor) -> Samples:
        """A group per channel, of one point."""
        n, channels, *size = input.shape
        offset = super().forward(input).to(compute_dtype(input)).view(n, channels, 1, 2, *size)
        dy, dx = torch.where(offset.isnan(), 0, offset).unbind(3)
        y, x = (torch.arange(length, dtype=dy.dtype, device=dy.device) for length in size)
        high = (float(size[0]), float(size[1]))
        return Samples(
            (y[:, None] + dy).clamp(0, size[0] - 1),
            (x + dx).clamp(0, size[1] - 1),
            None,
            y[:, None],
            x,
            (-1.0, -1.0),
            high,
        )
