"""The layer `ConvOffset2D`: a feature map, resampled where it says itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from .checks import check_map, integer, number
from .deform_conv.definition import grid_of
from .deformable import Deformable, Samples, samples_of
from .grid import Deltas
from .in_place import geometry_of, take_over
from .layout import compute_dtype, memory_format


class ConvOffset2D(nn.Module, Deformable):
    """Resamples a map, every channel and pixel of it, at an offset that it predicts.

    The Keras reading of deformable convolution (arXiv 1703.06211): a 3×3 convolution without bias
    predicts the offsets, the map is sampled bilinearly there, and an ordinary convolution follows.
    Positions beyond the border are moved onto it.

    The only parameter is `weight` [2·C, C, 3, 3]. Its output channel 2·c is dy of channel c, in
    pixels, and 2·c + 1 is dx. (The Keras code's reshape mixes channels and axes.) It starts normal.

    An offset that is not a number counts as zero, an infinite one leads to the border.

    Args:
        channels: C.
        init_std: the standard deviation that `weight` starts with.

    Shapes: [N, C, H, W] -> the same, float64, float32, float16 or bfloat16.

    Raises:
        TypeError: channels is no int, or the input no dense floating-point tensor.
        ValueError: channels below 1, a negative init_std, or an input of another number of
            dimensions or channels.
    """

    def __init__(self, channels: int, init_std: float = 0.01) -> None:
        super().__init__()
        self.channels = integer("channels", channels, 1, 2**30)
        self.init_std = number("init_std", init_std)
        if self.init_std < 0:
            raise ValueError(f"init_std: expected a number from 0 up, got {init_std!r}")
        self.weight = nn.Parameter(torch.empty(2 * channels, channels, 3, 3))
        self.reset_parameters()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, init_std: float = 0.0) -> "ResampledConv2d":
        """In place of a convolution: resample its input, at first where it is, then convolve."""
        layer = ResampledConv2d(*geometry_of(conv), conv.bias is not None, init_std=init_std)
        return take_over(layer.to(conv.weight), conv)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.init_std)

    def samples(self, input: Tensor) -> Samples:
        """A group per channel, of one point."""
        *found, y, x = _positions(input, self.predict(input))
        size = (float(input.shape[2]), float(input.shape[3]))
        return Samples(*found, None, y, x, (-1.0, -1.0), size)

    def predict(self, input: Tensor) -> Tensor:
        """Offsets [N, 2·C, H, W]."""
        return F.conv2d(check_map(input, self.channels), self.weight, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return _resample(input, self.predict(input))

    def extra_repr(self) -> str:
        return str(self.channels)


class ResampledConv2d(nn.Conv2d, Deformable):
    """A convolution of a map that the child `offset`, a `ConvOffset2D`, has resampled.

    Args:
        init_std: as in `ConvOffset2D`; all others as in `nn.Conv2d`.
    """

    def __init__(self, *args, init_std: float = 0.01, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.offset = ConvOffset2D(self.in_channels, init_std)

    def samples(self, input: Tensor) -> Samples:
        """A group per channel; its points are what the kernel reads of the resampled map."""
        y, x, *rest = _positions(input, self.offset.predict(input))
        window = (self.kernel_size, self.dilation, self.padding, self.stride)
        moved = (
            F.unfold((at - at_rest)[:, :, 0], *window)
            for at, at_rest in zip((y, x), rest, strict=True)
        )
        grid = grid_of(self.weight, self.stride, self.padding, self.dilation)
        size = super().forward(input).shape[2:]
        shape = (len(input), self.in_channels, grid.num_points, *size)
        deltas = Deltas(*(delta.view(shape) for delta in moved), None)
        return samples_of(deltas, grid, input.shape[2:])

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.offset(input))


def _positions(input: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y and x [N, C, 1, H, W], and where they would be without offsets, [H, 1] and [W]."""
    n, channels, h, w = input.shape
    offset = offset.to(compute_dtype(input)).view(n, channels, 1, 2, h, w)
    dy, dx = torch.where(offset.isnan(), 0, offset).unbind(3)
    y, x = (torch.arange(size, dtype=dy.dtype, device=dy.device) for size in (h, w))
    y = y[:, None]
    return (y + dy).clamp(0, h - 1), (x + dx).clamp(0, w - 1), y, x


@wrap_torch_function(lambda input, offset: (input, offset))
def _resample(input: Tensor, offset: Tensor) -> Tensor:
    y, x, *_ = _positions(input, offset)
    # -1 and 1 are the centres of the first and the last pixel, which may be one.
    grid = [
        along.flatten(0, 2) * (2 / torch.sym_max(size - 1, 1)) - 1
        for along, size in ((x, input.shape[3]), (y, input.shape[2]))
    ]
    out = F.grid_sample(
        input.to(x.dtype).flatten(0, 1).unsqueeze(1),
        torch.stack(grid, -1),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    out = out.view(input.shape).to(input.dtype)
    return out.contiguous(memory_format=memory_format(input))
