"""The RoI head of a detector that trains with feature mimicking."""

from typing import NamedTuple

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from torch import Tensor


class SampledRoIs(NamedTuple):
    """The RoIs that a detector's second stage was trained on in this iteration."""

    rois: Tensor  # [R, 5]: index of the image in the batch, x1, y1, x2, y2 in its pixels
    labels: Tensor  # [R]: class 0..C-1, or C for background
    pooled: Tensor  # [R, channels, 7, 7]: their pooled features


@MODELS.register_module()
class SampledRoIHead(StandardRoIHead):
    """mmdet's RoI head, which also hands out the RoIs that it sampled.

    `loss` returns them as `'sampled'` among the losses: a `SampledRoIs` that the detector takes
    out. Everything else is mmdet's, including the parameters.

    Raises:
        ValueError: the bounding box head has anything but shared fully connected layers before
            its classifier (mmdet's Shared2FCBBoxHead has two).
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        head = self.bbox_head
        own = ("num_shared_convs", "num_cls_convs", "num_cls_fcs")
        if not getattr(head, "num_shared_fcs", 0) or any(getattr(head, name) for name in own):
            raise ValueError(
                "mimic: needs a bbox_head whose classifier follows shared fully connected layers "
                f"directly (Shared2FCBBoxHead), got {type(head).__name__}"
            )

    def bbox_loss(self, x: tuple[Tensor, ...], sampling_results: list[SamplingResult]) -> dict:
        results = super().bbox_loss(x, sampling_results)
        background = self.bbox_head.num_classes
        labels = [
            torch.cat([r.pos_gt_labels, r.pos_gt_labels.new_full((len(r.neg_priors),), background)])
            for r in sampling_results
        ]
        results["loss_bbox"]["sampled"] = SampledRoIs(
            bbox2roi([r.priors for r in sampling_results]), torch.cat(labels), results["bbox_feats"]
        )
        return results

    def pool(self, x: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        """Feature maps and RoIs [K, 5] -> pooled features [K, channels, 7, 7]."""
        pooled = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        return self.shared_head(pooled) if self.with_shared_head else pooled

    def fc_features(self, pooled: Tensor) -> Tensor:
        """Pooled features [K, channels, 7, 7] -> [K, fc_out_channels], what the classifier sees."""
        head = self.bbox_head
        features = (head.avg_pool(pooled) if head.with_avg_pool else pooled).flatten(1)
        for fc in head.shared_fcs:
            features = head.relu(fc(features))
        return features
