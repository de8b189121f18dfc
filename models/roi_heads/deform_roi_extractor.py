"""RoI features by plain or deformable RoI pooling (arXiv 1811.11168, section 3.2)."""

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor, nn
from torchvision.ops import roi_pool

from dcn import DeformRoIPool, deform_roi_pool


class RoIPool(nn.Module):
    """Fast R-CNN's pooling (arXiv 1504.08083): the maxima of bins that begin and end on pixels."""

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Tensor, rois: Tensor, spatial_scale: float) -> Tensor:
        # 16 bits do not hold a coordinate, and torchvision wants one dtype.
        pooled = roi_pool(input.float(), rois.float(), self.output_size, spatial_scale)
        return pooled.to(input.dtype)


class RoIAlign(nn.Module):
    """Plain pooling: `dcn.deform_roi_pool` with neither offset nor mask."""

    def __init__(self, output_size: int, sampling_ratio: int) -> None:
        super().__init__()
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor, spatial_scale: float) -> Tensor:
        return deform_roi_pool(
            input,
            rois,
            self.output_size,
            spatial_scale=spatial_scale,
            sampling_ratio=self.sampling_ratio,
        )


# What each pooling is in the authors' code, where a config does not say otherwise.
DPOOL = dict(sampling_ratio=4, modulated=False, fc_channels=())
MDPOOL = dict(sampling_ratio=2, modulated=True)


@MODELS.register_module()
class DeformRoIExtractor(SingleRoIExtractor):
    """Pools every RoI from one feature map, chosen by the RoI's size where there are several (FPN).

    Args:
        pool: 'roipool' (Fast R-CNN's, unaligned), 'align' (RoIAlign), 'dpool' (deformable RoI
            pooling, DCNv1: one fully connected layer predicts the offsets) or 'mdpool' (modulated,
            DCNv2: three).
        out_channels: channels of the feature maps.
        featmap_strides: stride of each map, in pixels of the input.
        output_size: bins per side.
        sampling_ratio: samples per side of a bin; 0 takes as many as the bin has pixels. None is
            4 for 'dpool' and 2 for 'mdpool', as in the authors' code, and 0 for 'align'.
        finest_scale: RoIs below twice this size (pixels of the input) go to the first map.
        deform: settings of 'dpool' and 'mdpool', which the others ignore, so that `pool` alone
            switches:

            - `fc_channels`, `shared_fc`, `gamma`: as in `dcn.DeformRoIPool`;
            - `per_level` (bool): whether every map has a branch of its own. False shares one, so
              that an RoI and its crop are pooled alike when mimicking. True is the layout of
              mmdetection's checkpoints, and of DCNv1's FPN by its authors.

            mmdetection's weights take `per_level=True`, and `shared_fc=False` for 'mdpool' or
            `fc_channels=1024` for 'dpool'.

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
        sampling_ratio: int | None = None,
        finest_scale: int = 56,
        deform: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        given = {} if sampling_ratio is None else dict(sampling_ratio=sampling_ratio)
        deform = dict(deform or {})
        self.per_level = deform.pop("per_level", False) and pool in ("dpool", "mdpool")
        match pool:
            case "roipool":
                layer = dict(type=RoIPool)
            case "align":
                layer = dict(type=RoIAlign, sampling_ratio=0) | given
            case "dpool" | "mdpool":
                own = DPOOL if pool == "dpool" else MDPOOL
                layer = dict(type=DeformRoIPool, in_channels=out_channels) | own | given | deform
            case _:
                expected = "'roipool', 'align', 'dpool' or 'mdpool'"
                raise ValueError(f"pool: expected {expected}, got {pool!r}")
        layer["output_size"] = output_size
        super().__init__(layer, out_channels, featmap_strides, finest_scale, init_cfg)

    def build_roi_layers(self, layer_cfg: dict, featmap_strides: list[int]) -> nn.ModuleList:
        kind, settings = layer_cfg["type"], {k: v for k, v in layer_cfg.items() if k != "type"}
        count = len(featmap_strides) if self.per_level else 1
        return nn.ModuleList([kind(**settings) for _ in range(count)])

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
            self.roi_layers[i if self.per_level else 0](feats[i], rois[index], 1 / stride)
            for i, (index, stride) in enumerate(zip(by_level, self.featmap_strides, strict=True))
        ]
        # From `levels` and not `by_level`, so that torch.export knows how many rows there are.
        count = rois.shape[0]
        order = (levels * count + torch.arange(count, device=rois.device)).argsort()
        return torch.cat(pooled)[order.argsort()]
