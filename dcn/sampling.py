"""Bilinear sampling in plain PyTorch, as weighted sums of table rows ("bags").

Seen channels-last, a feature map is a table with one row of channels per pixel; a bilinear sample
is four rows with four weights, and a bin of an RoI is all the samples that fall into it.
PyTorch's embedding bag computes exactly such sums, threaded and vectorised, without writing out
the rows it reads. It also serves the backward pass: the gradient of a row is a bag of the
gradients of all sums that row went into.

Pixels outside the map are read as zero times the nearest one inside, so a pixel that is not finite
spreads. The faster kernels do not have this effect.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .grid import Deltas, Grid
from .layout import compute_dtype, like


class Axis(NamedTuple):
    """Linear interpolation along one axis: two neighbouring cells for every position.

    Each tensor has the positions' shape and a last dimension of 2 (lower, upper cell).
    """

    cell: Tensor  # int64, always a valid cell
    weight: Tensor  # zero where the true neighbour lies outside
    slope: Tensor  # d weight / d position


def zero_padded_axis(position: Tensor, size: int) -> Axis:
    """Outside the `size` cells everything reads as zero, as in a zero-padded convolution.

    A non-finite position reads zero.
    """
    position = position.nan_to_num(nan=-2.0).clamp(-2, size)
    low = position.floor()
    fraction = position - low
    cell = torch.stack((low, low + 1), -1).long()
    inside = ((cell >= 0) & (cell < size)).to(position.dtype)
    weight = torch.stack((1 - fraction, fraction), -1) * inside
    slope = inside * inside.new_tensor((-1.0, 1.0))
    return Axis(cell.clamp(0, size - 1), weight, slope)


def edge_padded_axis(position: Tensor, size: int) -> Axis:
    """Up to one cell outside reads the edge, further out zero, as RoIAlign does.

    A non-finite position reads zero.
    """
    inside = (position >= -1) & (position <= size)
    clamped = torch.where(inside, position, 0).clamp(0, size - 1)
    low = clamped.floor()
    fraction = clamped - low
    cell = torch.stack((low, (low + 1).clamp(max=size - 1)), -1).long()
    inside = inside.to(position.dtype).unsqueeze(-1)
    weight = torch.stack((1 - fraction, fraction), -1) * inside
    # Where the position was clamped, moving it changes nothing.
    moves = ((position >= 0) & (position < size - 1)).to(position.dtype).unsqueeze(-1)
    return Axis(cell, weight, moves * moves.new_tensor((-1.0, 1.0)))


def outer(y: Tensor, x: Tensor) -> Tensor:
    """[..., 2] and [..., 2] -> [..., 4], the corners in the order (low, low), (low, high), ..."""
    return (y.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)


def corner_index(y: Axis, x: Axis, width: int) -> Tensor:
    """Index of the four corners in a map flattened row by row: [..., 4]."""
    return (y.cell.unsqueeze(-1) * width + x.cell.unsqueeze(-2)).flatten(-2)


class Located(NamedTuple):
    """All samples [N, H_out, W_out, G, K] of a grid, in an input that is zero outside."""

    y: Axis
    x: Axis
    mask: Tensor
    row: Tensor  # [..., 4] of the corners, in the table of `to_rows(input, G)`

    @property
    def weight(self) -> Tensor:
        """[..., 4] of the corners."""
        return outer(self.y.weight, self.x.weight) * self.mask.unsqueeze(-1)

    def gradients(self, dot: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of the offsets y and x and the mask, each [N, G, K, H_out, W_out].

        dot: [..., 4] products of the corners' rows with the gradient of the sample, by the chain
        rule through the corner weights.
        """
        grad_y = (dot * outer(self.y.slope, self.x.weight)).sum(-1) * self.mask
        grad_x = (dot * outer(self.y.weight, self.x.slope)).sum(-1) * self.mask
        grad_mask = (dot * outer(self.y.weight, self.x.weight)).sum(-1)
        grads = (grad_y * scale, grad_x * scale, grad_mask)
        return tuple(grad.permute(0, 3, 4, 1, 2) for grad in grads)


def locate(input: Tensor, deltas: Deltas, grid: Grid) -> Located:
    """Of an input [N, C, H, W]."""
    n, _, h, w = input.shape
    _, groups, _, *out = deltas.y.shape
    dtype = compute_dtype(input)
    y, x = (delta.permute(0, 3, 4, 1, 2).to(dtype) * grid.scale for delta in deltas[:2])
    rest_y, rest_x = grid.positions(out, y)
    y = zero_padded_axis(rest_y[:, None, None] + y, h)
    x = zero_padded_axis(rest_x[:, None] + x, w)
    if deltas.mask is None:
        mask = y.weight.new_ones(()).expand(y.cell.shape[:-1])
    else:
        mask = deltas.mask.permute(0, 3, 4, 1, 2).to(dtype)
    image = torch.arange(n, device=input.device).view(n, 1, 1, 1, 1, 1) * (h * w)
    group = torch.arange(groups, device=input.device).view(groups, 1, 1)
    return Located(y, x, mask, (corner_index(y, x, w) + image) * groups + group)


class Bags(NamedTuple):
    """`num_bags` weighted sums of rows; bag b holds entries starts[b] to starts[b + 1] - 1."""

    index: Tensor  # [L] row of each entry
    weight: Tensor  # [L]
    starts: Tensor  # [num_bags]
    bag: Tensor  # [L] bag of each entry


def make_bags(index: Tensor, weight: Tensor, lengths: Tensor, num_rows: int) -> Bags:
    """Bags of the given lengths [num_bags] (int64) over a table of `num_rows` rows."""
    bag = torch.repeat_interleave(lengths, output_size=index.numel())
    starts = lengths.cumsum(0) - lengths
    largest = max(num_rows, index.numel(), lengths.numel())
    # Half the index is half the traffic, and embedding bags are faster for it.
    dtype = torch.int32 if largest < 2**31 else torch.int64
    return Bags(index.to(dtype), weight, starts.to(dtype), bag.to(dtype))


def sum_bags(table: Tensor, bags: Bags) -> Tensor:
    """table [R, C] -> [num_bags, C]."""
    if bags.index.numel() == 0:
        return table.new_zeros(bags.starts.numel(), table.shape[1])
    return F.embedding_bag(
        bags.index, table, bags.starts, mode="sum", per_sample_weights=bags.weight
    )


def sum_bags_backward_table(grad: Tensor, bags: Bags, num_rows: int) -> Tensor:
    """Gradient of the table, [num_rows, C], from the gradient of the sums, [num_bags, C]."""
    row, order = bags.index.sort(stable=True)
    lengths = torch.bincount(row, minlength=num_rows)
    starts = (lengths.cumsum(0) - lengths).to(bags.index.dtype)
    return sum_bags(grad, Bags(bags.bag[order], bags.weight[order], starts, row))


def sum_bags_backward_weight(grad: Tensor, table: Tensor, bags: Bags) -> Tensor:
    """Gradient of the weights, [L]: the dot product of each entry's row and its bag's gradient."""
    if bags.index.numel() == 0:
        return torch.zeros_like(bags.weight)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, table, bags.index, bags.starts, bags.bag, mode=0
    )


def to_rows(input: Tensor, channel_groups: int, dtype: torch.dtype) -> Tensor:
    """[N, C, H, W] -> [N·H·W·G, C/G]; no copy for a channels-last input of that dtype."""
    rows = input.permute(0, 2, 3, 1).to(dtype).contiguous()
    return rows.view(-1, input.shape[1] // channel_groups)


def from_rows(rows: Tensor, tensor: Tensor) -> Tensor:
    """[N·H·W·G, C/G] -> [N, C, H, W] of the dtype and layout of `tensor`."""
    n, c, h, w = tensor.shape
    return like(rows.reshape(n, h, w, c).permute(0, 3, 1, 2), tensor)
