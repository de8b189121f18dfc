"""RoI features by RoIAlign or deformable RoI pooling (arXiv 1811.11168, section 3.2)."""

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor, nn

from dcn import DeformRoIPool, deform_roi_pool


class RoIAlign(nn.Module):
    """Plain pooling: `dcn.deform_roi_pool` with neither offset nor mask."""

    def __init__(self, output_size: int, spatial_scale: float, sampling_ratio: int) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return deform_roi_pool(
            input,
            rois,
            self.output_size,
            spatial_scale=self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
        )


@MODELS.register_module()
class DeformRoIExtractor(SingleRoIExtractor):
    """Pools every RoI from one feature map, chosen by the RoI's size where there are several (FPN).

    Args:
        pool: 'align' (RoIAlign), 'dpool' (deformable RoI pooling, DCNv1) or 'mdpool' (modulated,
            DCNv2).
        out_channels: channels of the feature maps.
        featmap_strides: stride of each map, in pixels of the input.
        output_size: bins per side.
        sampling_ratio: samples per side of a bin; 0 takes as many as the bin has pixels.
        finest_scale: RoIs below twice this size (pixels of the input) go to the first map.
        deform: arguments of `dcn.DeformRoIPool` for 'dpool' and 'mdpool': gamma, fc_channels,
            shared_fc (False for the layout of mmdetection's checkpoints). Every map has its own
            branch, as in mmdetection. 'align' ignores them, so that `pool` alone switches.

    Shapes: maps [N, C, H_i, W_i] and RoIs [K, 5] (batch index, x1, y1, x2, y2; input pixels)
    -> [K, C, output_size, output_size].

    Raises:
        ValueError: an unknown `pool`.
    """

    def __init__(
        self,
        pool: str,
        out_channels: int,
        featmap_strides: list[int],
        output_size: int = 7,
        sampling_ratio: int = 0,
        finest_scale: int = 56,
        deform: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        layer = dict(output_size=output_size, sampling_ratio=sampling_ratio)
        if pool == "align":
            layer.update(type=RoIAlign)
        elif pool in ("dpool", "mdpool"):
            modulated = pool == "mdpool"
            layer.update(type=DeformRoIPool, in_channels=out_channels, modulated=modulated)
            layer.update(deform or {})
        else:
            raise ValueError(f"pool: expected 'align', 'dpool' or 'mdpool', got {pool!r}")
        super().__init__(layer, out_channels, featmap_strides, finest_scale, init_cfg)

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        # mmdet's method casts the RoIs to the maps' dtype, and 16 bits do not hold a coordinate.
        levels = self.map_roi_levels(rois, len(feats))
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        by_level = [(levels == i).nonzero().squeeze(1) for i in range(len(feats))]
        # A map without RoIs is pooled too: its parameters stay in the graph, as DDP expects.
        pooled = [
            layer(feat, rois[index])
            for layer, feat, index in zip(self.roi_layers, feats, by_level, strict=True)
        ]
        return torch.cat(pooled)[torch.cat(by_level).argsort()]
