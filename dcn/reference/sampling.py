"""Bilinear sampling as weighted sums of table rows ("bags"), forward and backward.

PyTorch's embedding bag computes exactly such sums, threaded and vectorised, without writing out
the rows it reads. It also serves the backward pass: the gradient of a row is a bag of the
gradients of all sums that row went into.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


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


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """[N·H·W·G, C/G] -> [N, C, H, W] of the dtype and memory format of `like`."""
    n, c, h, w = like.shape
    grid = rows.reshape(n, h, w, c).permute(0, 3, 1, 2)
    return grid.to(like.dtype).contiguous(memory_format=memory_format(like))


def like(values: Tensor, tensor: Tensor) -> Tensor:
    """The values in the dtype and layout of `torch.empty_like(tensor)`."""
    values = values.to(tensor.dtype)
    result = torch.empty_like(tensor)
    return values if values.stride() == result.stride() else result.copy_(values)


def memory_format(input: Tensor) -> torch.memory_format:
    """Channels-last for a channels-last input, else contiguous: what operators give back."""
    if input.is_contiguous():
        return torch.contiguous_format
    if input.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def compute_dtype(input: Tensor) -> torch.dtype:
    """16-bit types are sampled and summed in float32."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32
