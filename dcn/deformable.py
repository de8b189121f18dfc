"""What deformable layers have in common: they tell where they sample, and start without offsets."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from .grid import Deltas, Grid


class Samples(NamedTuple):
    """Of n images or RoIs: [n, groups, points, rows, columns], or what broadcasts to that.

    y, x: where samples lie, in pixels of the input (of RoI pooling: in pixels of the image; of
        kernels that are read from a scope: in its cells).
    mask: what they are multiplied by; None stands for ones.
    rest_y, rest_x: where they would lie without offsets.
    low, high: (y, x) between which samples are inside of the image, or scope.
    """

    y: Tensor
    x: Tensor
    mask: Tensor | None
    rest_y: Tensor
    rest_x: Tensor
    low: tuple[float, float]
    high: tuple[float, float]


class Deformable:
    """A layer whose samples move.

    Statistics, pictures and receptive fields ask for `samples`, so that only a layer itself knows
    in which layout it predicts.

    Attributes:
        sampled: what its samples lie in: "map" (the input, in its pixels), "rois" (in pixels of the
            image that the RoIs are of), or "scope" (that its kernels are read from).
    """

    sampled: ClassVar[str] = "map"

    def samples(self, *args, **kwargs) -> Samples:
        """Of a call of the layer with these arguments.

        It predicts once more, so keep it out of hot paths.
        """
        raise NotImplementedError


def deformable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The deformable layers of a model by name, without those that are part of another.

    They are in the order in which the model registers them; in the backbones and detectors of this
    repository, that is the order in which they are run.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():  # a module comes before what is inside of it
        if isinstance(module, Deformable) and not name.startswith(tuple(f"{n}." for n in found)):
            found[name] = module
    return found


class ZeroConv2d(nn.Conv2d):
    """Predicts nothing to start with, whenever it starts: also after `to_empty`."""

    def reset_parameters(self) -> None:
        _zero(self)


class ZeroLinear(nn.Linear):
    """As `ZeroConv2d`."""

    def reset_parameters(self) -> None:
        _zero(self)


def _zero(layer: nn.Module) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def samples_of(deltas: Deltas, grid: Grid, input_size: tuple[int, int]) -> Samples:
    """Of an operator that samples a map of (H, W) pixels and reads zeros outside."""
    y, x = (delta.float() * grid.scale for delta in deltas[:2])
    rest_y, rest_x = grid.positions(deltas.y.shape[3:], y)
    rest_y, rest_x = rest_y.T[:, :, None], rest_x.T[:, None, :]  # [K, H_out, 1], [K, 1, W_out]
    mask = None if deltas.mask is None else deltas.mask.float()
    high = (float(input_size[0]), float(input_size[1]))
    return Samples(rest_y + y, rest_x + x, mask, rest_y, rest_x, (-1.0, -1.0), high)
