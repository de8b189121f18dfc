"""Deformable aggregation in plain PyTorch (arXiv 2211.05778, equation 2; arXiv 2401.06197, 3.1).

y_g(p) = sum_k m_gk · x_g(p + s · (p_k + Δp_gk))
"""

from functools import lru_cache

import torch
from torch import Tensor

from ..checks import check_shape
from ..grid import Deltas, Grid
from ..layout import compute_dtype, like
from ..sampling import (
    from_rows,
    locate,
    make_bags,
    sum_bags,
    sum_bags_backward_table,
    sum_bags_backward_weight,
    to_rows,
)


def forward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    offset_scale: float,
    without_centre: bool,
    groups: int,
) -> Tensor:
    """Shapes as in `dcn.dcnv3`, or without a mask as in `dcn.dcnv4`."""
    of_grid = (kernel, stride, padding, dilation, offset_scale, without_centre)
    out, grid = check_shapes(input, offset, mask, *of_grid, groups), grid_of(*of_grid)
    _, rows, bags = _bags(input, offset, mask, groups, grid)
    return sum_bags(rows, bags).view(input.shape[0], *out, input.shape[3]).to(input.dtype)


def backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    offset_scale: float,
    without_centre: bool,
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of input, offset and mask, those that `output_mask` asks for."""
    of_grid = (kernel, stride, padding, dilation, offset_scale, without_centre)
    out, grid = check_shapes(input, offset, mask, *of_grid, groups), grid_of(*of_grid)
    check_shape("grad", grad, (input.shape[0], *out, input.shape[3]))
    of_input, of_offset, of_mask = output_mask
    samples, rows, bags = _bags(input, offset, mask, groups, grid)
    grad_out = grad.to(rows.dtype).reshape(-1, rows.shape[1])
    grad_input = grad_offset = grad_mask = None
    if of_input:
        grad_rows = sum_bags_backward_table(grad_out, bags, rows.shape[0])
        grad_input = like(from_rows(grad_rows, _image(input)).permute(0, 2, 3, 1), input)
    if of_offset or of_mask:
        dot = sum_bags_backward_weight(grad_out, rows, bags).view(samples.row.shape)
        found = samples.gradients(dot, grid.scale)
        grad_offset = torch.zeros_like(offset) if of_offset else None
        grad_mask = torch.empty_like(mask) if of_mask else None
        for view, values in zip(
            deltas_of(grad_offset, grad_mask, groups, grid), found, strict=True
        ):
            if view is not None:
                view.copy_(values)
    return grad_input, grad_offset, grad_mask


def check_shapes(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    offset_scale: float,
    without_centre: bool,
    groups: int,
) -> tuple[int, int]:
    """What every kernel relies on: (H_out, W_out). Sizes may be symbolic.

    Raises:
        ValueError: shapes that do not fit together.
    """
    n, h, w, c = input.shape
    points = kernel[0] * kernel[1] - without_centre
    if c == 0 or c % groups:
        raise ValueError(f"group: {groups} does not divide an input of {c} channels")
    out = tuple(
        (size + 2 * pad - step * (k - 1) - 1) // by + 1
        for size, k, by, pad, step in zip((h, w), kernel, stride, padding, dilation, strict=True)
    )
    if h * w >= 2**31:
        raise ValueError(f"input: {h}×{w} pixels are more than 32 bits can number")
    if h == 0 or w == 0 or min(out) <= 0:
        raise ValueError(
            f"input: {h}×{w} pixels are too few for a kernel of {tuple(kernel)} with pad "
            f"{tuple(padding)} and dilation {tuple(dilation)}"
        )
    if mask is None:
        check_shape("offset_mask", offset, (n, *out, packed_channels(groups, points)))
    else:
        check_shape("offset", offset, (n, *out, 2 * groups * points))
        check_shape("mask", mask, (n, *out, groups * points))
    return out


def packed_channels(groups: int, points: int) -> int:
    """Of DCNv4's offsets and weights: three per point, padded at the end to a multiple of 8."""
    return -(-3 * groups * points // 8) * 8


def grid_of(
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    offset_scale: float,
    without_centre: bool,
) -> Grid:
    """The kernel's points are scaled like the offsets, from its centre."""
    pairs = map(tuple, (kernel, stride, padding, dilation))
    return _grid(*pairs, offset_scale, without_centre)


@lru_cache(maxsize=256)
def _grid(kernel, stride, padding, dilation, offset_scale, without_centre) -> Grid:
    centre = [step * (k - 1) // 2 for k, step in zip(kernel, dilation, strict=True)]
    start = (c - c * offset_scale - pad for c, pad in zip(centre, padding, strict=True))
    step = (by * offset_scale for by in dilation)
    return Grid(
        kernel,
        stride,
        tuple(start),
        tuple(step),
        offset_scale,
        by_column=True,
        without_centre=without_centre,
    )


def deltas_of(offset: Tensor | None, mask: Tensor | None, groups: int, grid: Grid) -> Deltas:
    """Of DCNv3's offsets [N, H, W, G·K·2], (dx, dy) of a point, and masks [N, H, W, G·K]; without a
    mask of DCNv4's [N, H, W, ·], 2·K offsets and then K weights of a group. Or of gradients.
    """
    points = grid.num_points
    x = y = None
    if offset is not None:
        n, h, w, channels = offset.shape
        pairs = offset
        if channels != 2 * groups * points:
            own = offset[..., : 3 * groups * points].view(n, h, w, groups, 3 * points)
            pairs, mask = own[..., : 2 * points], own[..., 2 * points :]
        x, y = pairs.view(n, h, w, groups, points, 2).permute(0, 3, 4, 1, 2, 5).unbind(5)
    if mask is not None:
        mask = mask.view(*mask.shape[:3], groups, points).permute(0, 3, 4, 1, 2)
    return Deltas(y, x, mask)


def _image(input: Tensor) -> Tensor:
    """[N, H, W, C] as [N, C, H, W]."""
    return input.permute(0, 3, 1, 2)


def _bags(input, offset, mask, groups, grid):
    """A bag of all points of a sample's group: where they lie, the table, the bags."""
    samples = locate(_image(input), deltas_of(offset, mask, groups, grid), grid)
    rows = to_rows(_image(input), groups, compute_dtype(input))
    entries = samples.row.shape[-2] * 4
    lengths = torch.full((samples.row.numel() // max(entries, 1),), entries, device=input.device)
    bags = make_bags(samples.row.reshape(-1), samples.weight.reshape(-1), lengths, rows.shape[0])
    return samples, rows, bags
