"""The layer `DeformRoIPool`."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..checks import pair
from ..deformable import Deformable, Samples
from .function import check_gamma, deform_roi_pool


class DeformRoIPool(nn.Module, Deformable):
    """Deformable RoI pooling that predicts its own offsets (and masks, when modulated).

    The RoIs are pooled plainly first; fully connected layers on those features yield the offsets
    and mask logits of a second, deformed pooling (arXiv 1811.11168, section 3.2). The last layers
    start at zero (Δp = 0, Δm = 0.5), the others from a Gaussian of standard deviation 0.01.
    DCNv1's branch is the last layer alone (`modulated=False, fc_channels=()`).

    Args:
        output_size: ph × pw, an int or a pair.
        in_channels: C.
        spatial_scale, sampling_ratio, gamma: as in `deform_roi_pool`.
        modulated: DCNv2 (True) or DCNv1 (False).
        fc_channels: widths of the hidden layers; an int stands for two of them, () for none.
        shared_fc: True is the paper's branch, `offset_fc`: two hidden layers, then one of 3·ph·pw
            (offsets, then mask logits) or, not modulated, 2·ph·pw. False is mmcv's layout, for
            its checkpoints: masks come from a branch of their own, `mask_fc`, with the first of
            the hidden layers. Without modulation the two are the same.

    Shapes: [N, C, H, W] and RoIs [K, 5] -> [K, C, ph, pw]. A call may give a `spatial_scale` of its
    own, so that the levels of a feature pyramid share one branch.

    Raises:
        ValueError: a width below 1, an empty output_size, or a gamma that is not finite.
    """

    sampled = "rois"

    def __init__(
        self,
        output_size: int | tuple[int, int],
        in_channels: int,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
        modulated: bool = True,
        fc_channels: int | Sequence[int] = 1024,
        shared_fc: bool = True,
    ) -> None:
        super().__init__()
        self.output_size = pair("output_size", output_size, 1)
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        check_gamma(gamma)
        self.gamma = gamma
        self.modulated = modulated
        bins = self.output_size[0] * self.output_size[1]
        hidden = (fc_channels,) * 2 if isinstance(fc_channels, int) else tuple(fc_channels)
        if any(width < 1 for width in hidden):
            raise ValueError(f"fc_channels: expected widths from 1 up, or (), got {fc_channels}")
        widths = (in_channels * bins, *hidden)
        share_masks = modulated and shared_fc
        self.offset_fc = _mlp(*widths, (3 if share_masks else 2) * bins)
        self.mask_fc = _mlp(*widths[:2], bins) if modulated and not shared_fc else None

    def predict(
        self, input: Tensor, rois: Tensor, spatial_scale: float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Offsets and masks, as `deform_roi_pool` takes them."""
        plain = self._pool(input, rois, spatial_scale).flatten(1)
        prediction = self.offset_fc(plain).unflatten(1, (-1, *self.output_size))
        if self.mask_fc is not None:
            mask = self.mask_fc(plain).unflatten(1, (1, *self.output_size)).sigmoid()
            return prediction, mask
        if self.modulated:
            return prediction[:, :2], prediction[:, 2:].sigmoid()
        return prediction, None

    def samples(self, input: Tensor, rois: Tensor, spatial_scale: float | None = None) -> Samples:
        """The centres of the bins, in pixels of the image: [K, 1, 1, ph, pw]."""
        offset, mask = self.predict(input, rois, spatial_scale)
        scale = self.spatial_scale if spatial_scale is None else spatial_scale
        rois = rois.float()
        size = (rois[:, 3:5] - rois[:, 1:3]).view(-1, 2, 1, 1)  # width, height
        x1, y1 = rois[:, 1, None, None], rois[:, 2, None, None]
        rows, columns = ((torch.arange(n, device=rois.device) + 0.5) / n for n in self.output_size)
        rest_y, rest_x = y1 + rows[:, None] * size[:, 1], x1 + columns * size[:, 0]
        shift = self.gamma * offset.float() * size
        found = (rest_y + shift[:, 1], rest_x + shift[:, 0], mask, rest_y, rest_x)
        y, x, mask, rest_y, rest_x = (
            None if t is None else t.reshape(len(rois), 1, 1, *t.shape[-2:]) for t in found
        )
        image = (input.shape[2] / scale, input.shape[3] / scale)
        return Samples(y, x, mask, rest_y, rest_x, (0.0, 0.0), image)

    def forward(self, input: Tensor, rois: Tensor, spatial_scale: float | None = None) -> Tensor:
        offset, mask = self.predict(input, rois, spatial_scale)
        return self._pool(input, rois, spatial_scale, offset, mask)

    def _pool(
        self,
        input: Tensor,
        rois: Tensor,
        spatial_scale: float | None,
        offset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        scale = self.spatial_scale if spatial_scale is None else spatial_scale
        geometry = (scale, self.sampling_ratio, self.gamma)
        return deform_roi_pool(input, rois, self.output_size, offset, mask, *geometry)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, gamma={self.gamma}, modulated={self.modulated}"
        )


def _mlp(*channels: int) -> nn.Sequential:
    """Linear layers with ReLU between; the last one starts at zero."""
    layers = [nn.Linear(c_in, c_out) for c_in, c_out in pairwise(channels)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(layers[-1].weight)
    modules: list[nn.Module] = [layers[0]]
    for layer in layers[1:]:
        modules += [nn.ReLU(inplace=True), layer]
    return nn.Sequential(*modules)
