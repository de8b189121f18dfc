"""Faster R-CNN that can be trained with R-CNN feature mimicking."""

import torch
from mmdet.models.detectors import FasterRCNN
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from torch import Tensor

from ..roi_heads import SampledRoIHead, SampledRoIs
from .mimic import FeatureMimic, batch_statistics


@MODELS.register_module()
class MimicFasterRCNN(FasterRCNN):
    """mmdet's Faster R-CNN, with `mimic` trained by R-CNN feature mimicking.

    (arXiv 1811.11168, section 3.3.) RoIs that the second stage trains on are cropped from the
    padded, normalised input, resized, and sent through the same backbone, neck, RoI pooling (with
    an RoI that covers the crop) and fully connected layers, all crops of a batch in one pass. A
    cosine loss aligns their features f_RCNN with the detector's features f_FRCNN of the same RoIs,
    and an auxiliary classifier predicts their classes. Gradients flow into both features.

    A crop is pooled from the map that the RoI extractor takes for an RoI of its size: in a pyramid,
    for 224 pixels, the map of stride 16.

    BatchNorms that are being trained normalise the crops by the crops' own statistics, separately
    in each process, and do not add them to their running statistics, which stay those of the
    images. Those that are frozen, as in the paper, are the same for both.

    Mimicking adds nothing to inference. A detector without it loads a checkpoint trained with it
    and leaves the auxiliary classifier (`mimic.*`) unused.

    Args:
        mimic: None for mmdet's Faster R-CNN, or a dict of arguments of `FeatureMimic`: num_rois,
            crop_size, on, loss_mimic, loss_cls. `dict()` is the paper's.

    All other arguments are those of mmdet's class.

    Raises:
        TypeError: `mimic` has another key.
        ValueError: it has a value out of range, the RoI head is another than mmdet's
            StandardRoIHead with shared fully connected layers, or the backbone trains BatchNorms
            and recomputes activations (with_cp).
    """

    def __init__(self, *args, roi_head: dict, mimic: dict | None = None, **kwargs) -> None:
        if mimic is None:
            super().__init__(*args, roi_head=roi_head, **kwargs)
            self.mimic = None
            return
        kind = roi_head["type"]
        if (MODELS.get(kind) if isinstance(kind, str) else kind) is not StandardRoIHead:
            raise ValueError(f"mimic: needs a StandardRoIHead, got {kind}")
        roi_head = ConfigDict(roi_head, type=SampledRoIHead)
        super().__init__(*args, roi_head=roi_head, **kwargs)
        backbone = self.backbone
        if getattr(backbone, "with_cp", False) and not getattr(backbone, "norm_eval", True):
            raise ValueError(
                "mimic: with_cp computes the crops anew in the backward pass, and their statistics "
                "would be added to the images'; use norm_eval=True or with_cp=False"
            )
        head = self.roi_head.bbox_head
        self.mimic = FeatureMimic(head.cls_last_dim, head.num_classes, **mimic)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """The losses of Faster R-CNN and, with mimicking, what `FeatureMimic.loss` returns."""
        losses = super().loss(batch_inputs, batch_data_samples)
        if self.mimic is not None:
            sampled = losses.pop("sampled")
            losses.update(self._mimic_losses(batch_inputs, batch_data_samples, sampled))
        return losses

    def _mimic_losses(self, images: Tensor, samples: SampleList, sampled: SampledRoIs) -> dict:
        chosen = self.mimic.sample(sampled.rois[:, 0], sampled.labels)
        f_frcnn = self.roi_head.fc_features(sampled.pooled[chosen])
        if len(chosen):
            shapes = [sample.img_shape[:2] for sample in samples]
            crops = self.mimic.crop(images, sampled.rois[chosen], shapes)
            whole = sampled.rois.new_zeros(len(crops), 5)
            whole[:, 0] = torch.arange(len(crops))
            whole[:, 3:] = self.mimic.crop.size
            with batch_statistics(self):
                maps = self.extract_feat(crops)
            f_rcnn = self.roi_head.fc_features(self.roi_head.pool(maps, whole))
        else:
            f_rcnn = f_frcnn
        return self.mimic.loss(f_rcnn, f_frcnn, sampled.labels[chosen], len(samples))
