"""(Modulated) deformable RoI pooling in plain PyTorch (arXiv 1811.11168, equation 2).

y(k) = sum_j x(p_kj + Δp_k) · Δm_k / n_k
"""

import torch
from torch import Tensor

from ..checks import check_shape
from ..layout import compute_dtype, like
from ..sampling import (
    Axis,
    Bags,
    corner_index,
    edge_padded_axis,
    from_rows,
    make_bags,
    outer,
    sum_bags,
    sum_bags_backward_table,
    sum_bags_backward_weight,
    to_rows,
)


def forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """Shapes as in `dcn.deform_roi_pool`."""
    check_shapes(input, rois, offset, mask, output_size)
    pooling = _Pooling(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma)
    rows = to_rows(input, 1, compute_dtype(input))
    out = sum_bags(rows, pooling.bags).view(rois.shape[0], *output_size, input.shape[1])
    return out.permute(0, 3, 1, 2).to(input.dtype).contiguous()


def backward(
    grad: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of input, offset and mask, those that `output_mask` asks for. RoIs get none."""
    check_shapes(input, rois, offset, mask, output_size, grad)
    pooling = _Pooling(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma)
    rows = to_rows(input, 1, compute_dtype(input))
    grad_out = grad.permute(0, 2, 3, 1).to(rows.dtype).reshape(-1, input.shape[1])
    grad_input = grad_offset = grad_mask = None
    if output_mask[0]:
        grad_rows = sum_bags_backward_table(grad_out, pooling.bags, rows.shape[0])
        grad_input = from_rows(grad_rows, input)
    if output_mask[1] or output_mask[2]:
        dot = sum_bags_backward_weight(grad_out, rows, pooling.bags).view(-1, 4)
        if output_mask[1]:
            grad_offset = like(pooling.grad_offset(dot), offset)
        if output_mask[2]:
            grad_mask = like(pooling.grad_mask(dot), mask)
    return grad_input, grad_offset, grad_mask


def check_shapes(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: list[int],
    grad: Tensor | None = None,
) -> None:
    """What every kernel relies on.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if 0 in input.shape[1:]:
        raise ValueError(f"input: only the batch may be empty, got shape {tuple(input.shape)}")
    count = rois.shape[0]
    check_shape("rois", rois, (count, 5))
    if offset is not None:
        check_shape("offset", offset, (count, 2, *output_size))
    if mask is not None:
        check_shape("mask", mask, (count, 1, *output_size))
    if grad is not None:
        check_shape("grad", grad, (count, input.shape[1], *output_size))


class _Pooling:
    """The samples of every bin, and their weights. T samples in all, bins ordered (RoI, y, x)."""

    def __init__(
        self,
        input: Tensor,
        rois: Tensor,
        offset: Tensor | None,
        mask: Tensor | None,
        output_size: list[int],
        spatial_scale: float,
        sampling_ratio: int,
        gamma: float,
    ) -> None:
        n, _, h, w = input.shape
        self.shape = (rois.shape[0], *output_size)
        pooled_h, pooled_w = output_size
        num_bins = pooled_h * pooled_w
        dtype = compute_dtype(input)
        image = image_index(rois, n)
        x1, y1, x2, y2 = (rois[:, 1:].to(dtype) * spatial_scale - 0.5).unbind(1)
        roi_w, roi_h = x2 - x1, y2 - y1
        bin_w, bin_h = roi_w / pooled_w, roi_h / pooled_h
        self.shift = torch.stack((roi_w, roi_h), 1) * gamma  # of a bin, per unit of offset

        grid_h = _samples_per_bin(bin_h, sampling_ratio, h)
        grid_w = _samples_per_bin(bin_w, sampling_ratio, w)
        samples = (grid_h * grid_w).repeat_interleave(num_bins)  # [K·bins]
        self.samples = samples
        self.bin = torch.repeat_interleave(samples)  # [T]
        within = torch.arange(self.bin.numel(), device=input.device)
        within = within - (samples.cumsum(0) - samples)[self.bin]
        roi = self.bin // num_bins
        bin_y, bin_x = self.bin % num_bins // pooled_w, self.bin % pooled_w
        step_y = bin_y + ((within // grid_w[roi]).to(dtype) + 0.5) / grid_h[roi]
        step_x = bin_x + ((within % grid_w[roi]).to(dtype) + 0.5) / grid_w[roi]
        y, x = y1[roi] + step_y * bin_h[roi], x1[roi] + step_x * bin_w[roi]
        if offset is not None:
            delta = offset.to(dtype) * self.shift[:, :, None, None]
            delta_x, delta_y = delta.permute(1, 0, 2, 3).reshape(2, -1)
            y, x = y + delta_y[self.bin], x + delta_x[self.bin]

        self.y: Axis = edge_padded_axis(y, h)
        self.x: Axis = edge_padded_axis(x, w)
        # Each sample's share of its bin's mean, and the bin's modulation.
        self.share = 1 / samples.to(dtype)[self.bin]
        self.modulation = mask.to(dtype).reshape(-1)[self.bin] if mask is not None else None
        weight = outer(self.y.weight, self.x.weight) * self._scale()
        index = corner_index(self.y, self.x, w) + (image[roi] * (h * w)).unsqueeze(-1)
        self.bags: Bags = make_bags(index.view(-1), weight.view(-1), samples * 4, n * h * w)

    def grad_offset(self, dot: Tensor) -> Tensor:
        """[T, 4] dot products of corner and bin gradient -> [K, 2, ph, pw]."""
        grad_x = (dot * outer(self.y.weight, self.x.slope) * self._scale()).sum(1)
        grad_y = (dot * outer(self.y.slope, self.x.weight) * self._scale()).sum(1)
        grad = torch.stack((self._sum_bins(grad_x), self._sum_bins(grad_y)), 1)
        # An RoI of non-finite size sampled nothing: its gradient is zero, not zero times infinity.
        return grad * self.shift.nan_to_num(0, 0, 0)[:, :, None, None]

    def grad_mask(self, dot: Tensor) -> Tensor:
        """[T, 4] dot products of corner and bin gradient -> [K, 1, ph, pw]."""
        value = (dot * outer(self.y.weight, self.x.weight)).sum(1) * self.share
        return self._sum_bins(value).unsqueeze(1)

    def _scale(self) -> Tensor:
        scale = self.share if self.modulation is None else self.share * self.modulation
        return scale.unsqueeze(-1)

    def _sum_bins(self, value: Tensor) -> Tensor:
        """[T] -> [K, ph, pw]."""
        total = value.new_zeros(self.samples.numel())
        return total.index_add_(0, self.bin, value).view(self.shape)


def image_index(rois: Tensor, num_images: int) -> Tensor:
    """The RoIs' batch indices as int64; ValueError where one names no image of the batch."""
    image = rois[:, 0]
    bad = ~((image >= 0) & (image < num_images))
    if bad.any():
        k = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"rois[{k}, 0] is {float(image[k])}: expected a batch index from 0 to {num_images - 1}"
        )
    return image.long()


def _samples_per_bin(bin_size: Tensor, sampling_ratio: int, size: int) -> Tensor:
    """Samples per side of a bin, for every RoI: int64 [K].

    Adaptively (sampling_ratio 0), a bin over twice the map's size gets none and reads zero, so that
    an absurd RoI does not exhaust the memory.
    """
    if sampling_ratio > 0:
        return torch.full_like(bin_size, sampling_ratio, dtype=torch.long)
    return torch.where(bin_size <= 2 * size, bin_size, 0).ceil().clamp(min=0).long()
