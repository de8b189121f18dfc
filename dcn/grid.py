"""Where the samples of a convolution-like operator lie: the one definition for all of them.

Kernel point k at output position p samples the input at p · stride + point k + scale · Δ(p, k).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A kernel's points, in input pixels; pairs are (vertical, horizontal).

    Points are numbered row by row, or column by column where `by_column`. The one in the middle may
    be left out.

    Args:
        kernel: points along each axis.
        stride: pixels from one output position to the next.
        start: the first point of the output position 0.
        step: pixels from one point to the next.
        scale: pixels per unit of offset.
        by_column: whether the points of a column follow each other.
        without_centre: whether the middle point, of an odd number, is left out.
        clamped: whether positions beyond the centres of the outer pixels are moved onto these.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[float, float]
    step: tuple[float, float]
    scale: float = 1.0
    by_column: bool = False
    without_centre: bool = False
    clamped: bool = False

    @property
    def num_points(self) -> int:
        return self.kernel[0] * self.kernel[1] - self.without_centre

    def positions(self, size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """y [H_out, K] and x [W_out, K] without offsets, of the dtype and device of `like`."""
        rows, columns = self.kernel
        point = torch.arange(rows * columns, device=like.device)
        if self.without_centre:
            point = torch.cat((point[: len(point) // 2], point[len(point) // 2 + 1 :]))
        steps = (point % rows, point // rows)
        if not self.by_column:
            steps = (point // columns, point % columns)
        return tuple(
            (torch.arange(n, device=like.device, dtype=like.dtype) * stride)[:, None]
            + (start + along.to(like.dtype) * step)
            for n, stride, start, along, step in zip(
                size, self.stride, self.start, steps, self.step, strict=True
            )
        )


class Deltas(NamedTuple):
    """Offsets and weights of all samples, as views [N, G, K, H_out, W_out] of any strides.

    G groups of channels have samples of their own, one for each of K kernel points.
    """

    y: Tensor | None  # None among gradients: not wanted
    x: Tensor | None
    mask: Tensor | None  # None among values: ones
