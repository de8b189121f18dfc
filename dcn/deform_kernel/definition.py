"""Local deformable kernels in plain PyTorch (arXiv 1910.02940, section 3).

y(p) = sum_k W(k + (S - K)/2 + Δk(p)) · x(p + p_k + Δp_k)

No kernel is written out. Every input sample is spread over the cells of the scope, by the weights
with which its kernel point reads them; what is left is a product with the scope, as for an ordinary
convolution of its size.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_shape
from ..grid import Deltas, Grid
from ..layout import compute_dtype, like, memory_format
from ..sampling import (
    Bags,
    Located,
    from_rows,
    locate,
    make_bags,
    sum_bags,
    sum_bags_backward_table,
    sum_bags_backward_weight,
    to_rows,
)

# Of the samples and what they become, which are held for some rows of an image at a time.
MOST_ELEMENTS = 2**24


def forward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_offset: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    clamp: bool,
) -> Tensor:
    """Shapes as in `dcn.local_deform_kernel`."""
    geometry = (kernel, stride, padding, dilation)
    out_size = check_shapes(input, offset, weight, bias, input_offset, *geometry)
    matrix = _matrix(weight, input)
    out = input.new_empty(input.shape[0], *out_size, weight.shape[0])
    for part in _parts(input, offset, weight, input_offset, geometry, clamp):
        values = torch.bmm(part.spread(matrix), matrix).transpose(0, 1).flatten(1)
        if bias is not None:
            values = values + bias.to(matrix.dtype)
        out[part.image, part.rows] = values.view(-1, *out.shape[2:]).to(out.dtype)
    out = out.permute(0, 3, 1, 2)
    return out.contiguous(memory_format=memory_format(input))


def backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_offset: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    clamp: bool,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of input, offset, weight, bias and input_offset, those that are asked for.

    What the forward pass spread out is computed again: it is S_h·S_w times the input.
    """
    geometry = (kernel, stride, padding, dilation)
    out_size = check_shapes(input, offset, weight, bias, input_offset, *geometry)
    check_shape("grad", grad, (input.shape[0], weight.shape[0], *out_size))
    of_input, of_offset, of_weight, of_bias, of_input_offset = output_mask
    matrix = _matrix(weight, input)
    grad_matrix = torch.zeros_like(matrix)
    grad_input = torch.empty_like(input) if of_input else None
    grad_offset = torch.empty_like(offset) if of_offset else None
    grad_input_offset = torch.empty_like(input_offset) if of_input_offset else None
    grad_rows = None
    for part in _parts(input, offset, weight, input_offset, geometry, clamp):
        grad_out = grad[part.image, :, part.rows].flatten(1).to(matrix.dtype)  # [C_out, M]
        grad_out = grad_out.view(matrix.shape[0], -1, grad_out.shape[1]).mT
        if of_weight:
            grad_matrix += torch.bmm(part.spread(matrix).mT, grad_out)
        if not (of_input or of_offset or of_input_offset):
            continue
        grad_spread = part.gather(torch.bmm(grad_out, matrix.mT))
        if of_offset:
            grad_offset[part.image, :, part.rows] = part.offset_gradient(grad_spread)
        if of_input or of_input_offset:
            grad_samples = part.sample_gradient(grad_spread)
        if of_input:
            if part.rows.start == 0:
                grad_rows = torch.zeros_like(part.table)
            grad_rows += sum_bags_backward_table(grad_samples, part.bags, len(grad_rows))
            if part.rows.stop == out_size[0]:
                image = slice(part.image, part.image + 1)
                grad_input[image] = from_rows(grad_rows, input[image])
        if of_input_offset:
            grad_input_offset[part.image, :, part.rows] = part.input_offset_gradient(grad_samples)
    grad_weight = like(grad_matrix.mT.reshape(weight.shape), weight) if of_weight else None
    grad_bias = grad.sum((0, 2, 3)).to(bias.dtype) if of_bias else None
    return grad_input, grad_offset, grad_weight, grad_bias, grad_input_offset


def check_shapes(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_offset: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[int, int]:
    """What every kernel relies on: (H_out, W_out).

    Raises:
        ValueError: shapes that do not fit together.
    """
    n, c_in, h, w = input.shape
    c_out, group_in, *_ = weight.shape
    if 0 in weight.shape:
        raise ValueError(f"weight: no dimension may be empty, got {tuple(weight.shape)}")
    if c_in == 0 or c_in % group_in or c_out % (c_in // group_in):
        raise ValueError(
            f"weight: {tuple(weight.shape)} does not fit an input of {c_in} channels: C_in must be "
            "groups · weight.shape[1], and C_out a multiple of groups"
        )
    out = tuple(
        (size + 2 * pad - step * (k - 1) - 1) // by + 1
        for size, k, by, pad, step in zip((h, w), kernel, stride, padding, dilation, strict=True)
    )
    if h == 0 or w == 0 or min(out) <= 0:
        raise ValueError(
            f"input: {h}×{w} pixels are too few for a {kernel[0]}×{kernel[1]} kernel with padding "
            f"{tuple(padding)} and dilation {tuple(dilation)}"
        )
    points = kernel[0] * kernel[1]
    for name, tensor, letter in (("offset", offset, "R"), ("input_offset", input_offset, "G")):
        if tensor is None:
            continue
        groups = tensor.shape[1] // (2 * points)
        if groups == 0 or c_in % groups:
            raise ValueError(
                f"{name}: expected 2·{letter}·{points} channels with {letter} a divisor of {c_in}, "
                f"got {tensor.shape[1]}"
            )
        check_shape(name, tensor, (n, 2 * groups * points, *out))
    if bias is not None:
        check_shape("bias", bias, (c_out,))
    return out


def scope_grid(kernel: tuple[int, int], scope: tuple[int, int], clamp: bool = False) -> Grid:
    """Where a kernel's points lie among the cells of its scope: in the middle."""
    start = tuple((s - k) / 2 for s, k in zip(scope, kernel, strict=True))
    return Grid(tuple(kernel), (0, 0), start, (1, 1), clamped=clamp)


def read_scope(position: Tensor, size: int, clamp: bool) -> tuple[Tensor, Tensor]:
    """Linear interpolation along one axis of a scope, as factors of all its cells.

    Outside the scope lie zeros; with `clamp` the position is held within [0, size - 1]. A position
    that is not finite reads zero. At a cell both neighbours would do for the slope: it is that to
    the next cell, and at the last one of a clamped axis to the one before, so that a kernel which
    starts on the cells learns.

    Returns:
        The factors [..., size], differentiable, and their slopes: d factor / d position.
    """
    moves = position.isfinite()
    position = torch.where(moves, position, -2.0)
    low = position.floor()
    if clamp:
        held = position.clamp(0, size - 1)
        low = held.floor().clamp(max=max(size - 2, 0))
        finite, moves = moves, moves & (held == position)
        position = held
    cell = torch.arange(size, device=position.device)
    fraction = (position - low).unsqueeze(-1)
    here = cell == low.unsqueeze(-1)
    above = cell == (low + 1).unsqueeze(-1)
    factor = here * (1 - fraction) + above * fraction
    if clamp:
        factor = factor * finite.unsqueeze(-1)
        above = above if size > 1 else here  # a single cell has no slope
    return factor, (above.to(factor.dtype) - here.to(factor.dtype)) * moves.unsqueeze(-1)


class _Part(NamedTuple):
    """Some rows of an image's output, M positions, and all that these read.

    Channel c of the input is number c // R of rotation group c % R.
    """

    image: int
    rows: slice
    table: Tensor  # [H·W·G, C/G], the image's pixels
    samples: Located
    bags: Bags  # of a sample's corners, in the order [M, K, G]
    columns: Tensor  # [M, R, K, C/R], the samples
    y: tuple[Tensor, Tensor]  # factors and slopes [M, R, K, S_h] of the scope's rows
    x: tuple[Tensor, Tensor]  # [M, R, K, S_w]

    def spread(self, matrix: Tensor) -> Tensor:
        """The samples, summed over the kernel's points into cells: [groups, M, C/groups · S]."""
        cells = self._factors().mT @ self.columns  # [M, R, S, C/R]
        cells = cells.permute(0, 3, 1, 2)
        return cells.reshape(len(cells), matrix.shape[0], -1).transpose(0, 1)

    def gather(self, grad: Tensor) -> Tensor:
        """The gradient of `spread` in its order within: [M, R, S, C/R]."""
        rotations, scope = self.columns.shape[1], self.y[0].shape[3] * self.x[0].shape[3]
        grad = grad.transpose(0, 1).reshape(grad.shape[1], -1, rotations, scope)
        return grad.permute(0, 2, 3, 1)

    def offset_gradient(self, grad_spread: Tensor) -> Tensor:
        """[R·K·2, rows, W_out] of the kernel's offsets."""
        grad = (self.columns @ grad_spread.mT).unflatten(-1, (self.y[0].shape[3], -1))
        pair = (
            torch.einsum("mrkhw,mrkh,mrkw->rkm", grad, self.y[1], self.x[0]),
            torch.einsum("mrkhw,mrkh,mrkw->rkm", grad, self.y[0], self.x[1]),
        )
        rows = self.rows.stop - self.rows.start
        return torch.stack(pair, 2).flatten(0, 2).unflatten(1, (rows, -1))

    def sample_gradient(self, grad_spread: Tensor) -> Tensor:
        """Of the bags' sums."""
        grad = self._factors() @ grad_spread
        return grad.permute(0, 2, 3, 1).reshape(-1, self.table.shape[1])

    def input_offset_gradient(self, grad_samples: Tensor) -> Tensor:
        """[G·K·2, rows, W_out] of the samples' offsets."""
        dot = sum_bags_backward_weight(grad_samples, self.table, self.bags)
        n, rows, width, groups, points = self.samples.mask.shape
        dot = dot.view(n, rows, width, points, groups, 4).transpose(3, 4)
        y, x, _ = self.samples.gradients(dot, 1.0)
        return torch.stack((y, x), 3)[0].flatten(0, 2)

    def _factors(self) -> Tensor:
        """[M, R, K, S] of a point's cells."""
        return (self.y[0].unsqueeze(-1) * self.x[0].unsqueeze(-2)).flatten(-2)


def _parts(input, offset, weight, input_offset, geometry, clamp) -> Iterator[_Part]:
    kernel, stride, padding, dilation = map(tuple, geometry)
    n, channels, _, _ = input.shape
    out_h, out_w = offset.shape[2:]
    scope = tuple(weight.shape[2:])
    points = kernel[0] * kernel[1]
    rotations = offset.shape[1] // (2 * points)
    groups = 1 if input_offset is None else input_offset.shape[1] // (2 * points)
    dtype = compute_dtype(input)
    cells = scope[0] * scope[1]
    position = channels * (points + 2 * cells) + 2 * rotations * points * cells  # in elements
    step = max(1, MOST_ELEMENTS // (position * out_w))
    for image in range(n):
        table = to_rows(input[image : image + 1], groups, dtype)
        rest = scope_grid(kernel, scope).positions((1, 1), table)
        for first in range(0, out_h, step):
            rows = slice(first, min(first + step, out_h))
            start = (first * stride[0] - padding[0], -padding[1])
            samples, bags = _samples(
                input[image : image + 1],
                None if input_offset is None else input_offset[image : image + 1, :, rows],
                Grid(kernel, stride, start, dilation),
                (rows.stop - first, out_w),
            )
            columns = sum_bags(table, bags).view(-1, points, channels // rotations, rotations)
            own = offset[image, :, rows].unflatten(0, (rotations, points, 2)).to(dtype)
            y, x = own.permute(2, 3, 4, 0, 1).flatten(1, 2)  # [M, R, K] each
            yield _Part(
                image,
                rows,
                table,
                samples,
                bags,
                columns.permute(0, 3, 1, 2),
                read_scope(rest[0] + y, scope[0], clamp),
                read_scope(rest[1] + x, scope[1], clamp),
            )


def _samples(image, offset, grid, size):
    """Of an image [1, C, H, W]: where they lie and a bag of four corners for each."""
    if offset is None:
        y = x = image.new_zeros(()).expand(1, 1, grid.num_points, *size)
    else:
        y, x = offset.unflatten(1, (-1, grid.num_points, 2)).unbind(3)
    samples = locate(image, Deltas(y, x, None), grid)
    row, weight = (t.transpose(3, 4).reshape(-1) for t in (samples.row, samples.weight))
    lengths = torch.full((row.numel() // 4,), 4, device=image.device)
    return samples, make_bags(row, weight, lengths, samples.row.shape[3] * image[0, 0].numel())


def _matrix(weight: Tensor, input: Tensor) -> Tensor:
    """[groups, C_in/groups · S, C_out/groups]."""
    groups = input.shape[1] // weight.shape[1]
    return weight.to(compute_dtype(input)).reshape(groups, weight.shape[0] // groups, -1).mT
