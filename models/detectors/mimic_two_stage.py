"""Two-stage detectors that can be trained with R-CNN feature mimicking."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from .mimic import FeatureMimic, batch_statistics


@MODELS.register_module()
class MimicTwoStageDetector(TwoStageDetector):
    """mmdet's two-stage detector, with `mimic` trained by R-CNN feature mimicking.

    (arXiv 1811.11168, section 3.3.) RoIs that the second stage trains on are cropped from the
    padded, normalised input, resized, and sent through the same backbone, neck, RoI pooling (with
    an RoI that covers the crop) and box head, all crops of a batch in one pass. f is what the box
    head's classifier sees: a cosine loss aligns f_RCNN, of the crops, with f_FRCNN, of the same
    RoIs in the detector, and an auxiliary classifier predicts their classes from f_RCNN. Gradients
    flow into both.

    It takes the configs of Faster, Mask and Cascade R-CNN and of others whose box head classifies
    with a layer called `fc_cls`; of a cascade, the last stage mimics. Masks take no part.

    A crop is pooled from the map that the RoI extractor takes for an RoI of its size: in a pyramid,
    for 224 pixels, the map of stride 16.

    BatchNorms that are being trained normalise the crops by the crops' own statistics, separately
    in each process, and do not add them to their running statistics, which stay those of the
    images. Those whose statistics are frozen (norm_eval), as the authors' are, are the same for
    both.

    Mimicking adds nothing to inference. A detector without it loads a checkpoint trained with it
    and leaves the auxiliary classifier (`mimic.*`) unused.

    Args:
        mimic: None for mmdet's detector, or a dict of arguments of `FeatureMimic`: num_rois,
            crop_size, on, with_gt, loss_mimic, loss_cls. `dict()` is the paper's.

    All other arguments are those of mmdet's class.

    Raises:
        TypeError: `mimic` has another key.
        ValueError: it has a value out of range; the RoI head samples no proposals, has no box head
            with an `fc_cls`, or adds features of the whole image; or the backbone trains BatchNorms
            and recomputes activations (with_cp).
    """

    def __init__(self, *args, mimic: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.mimic = None
        if mimic is None:
            return
        head = self.box_head
        if not hasattr(getattr(head, "fc_cls", None), "in_features"):
            raise ValueError(
                "mimic: needs a box head that classifies with a layer called fc_cls, as "
                f"Shared2FCBBoxHead does, got {type(head).__name__}"
            )
        for name in ("with_semantic", "with_glbctx"):
            if getattr(self.roi_head, name, False):
                raise ValueError(
                    f"mimic: {type(self.roi_head).__name__}.{name}: its box head sees features of "
                    "the whole image, which crops do not have"
                )
        if "sampling_results" not in inspect.signature(self.roi_head.bbox_loss).parameters:
            kind = type(self.roi_head).__name__
            raise ValueError(f"mimic: needs an RoI head that samples proposals, got {kind}")
        backbone = self.backbone
        if getattr(backbone, "with_cp", False) and not getattr(backbone, "norm_eval", True):
            raise ValueError(
                "mimic: with_cp computes the crops anew in the backward pass, and their statistics "
                "would be added to the images'; use norm_eval=True or with_cp=False"
            )
        self.mimic = FeatureMimic(head.fc_cls.in_features, head.num_classes, **mimic)

    @property
    def box_head(self) -> nn.Module | None:
        """The RoI head's box head; of a cascade, the last."""
        head = getattr(self.roi_head, "bbox_head", None)
        return head[-1] if isinstance(head, nn.ModuleList) else head

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """The detector's losses and, with mimicking, what `FeatureMimic.loss` returns."""
        if self.mimic is None:
            return super().loss(batch_inputs, batch_data_samples)
        with (
            calls_of(self.roi_head, "bbox_loss") as sampled,
            calls_of(self.box_head.fc_cls, "forward") as classified,
        ):
            losses = super().loss(batch_inputs, batch_data_samples)
        features = next(iter(classified[-1].values()))
        results = sampled[-1]["sampling_results"]
        shapes = [sample.img_shape[:2] for sample in batch_data_samples]
        return losses | self._mimic_losses(batch_inputs, shapes, results, features)

    def _mimic_losses(
        self,
        images: Tensor,
        shapes: list[tuple[int, int]],
        sampled: list[SamplingResult],
        features: Tensor,
    ) -> dict:
        """Of the RoIs that the box head was trained on, [R, ...], and their features [R, C]."""
        rois = bbox2roi([result.priors for result in sampled])
        background = self.mimic.num_classes
        labels, is_gt = [], []
        for result in sampled:
            negatives = len(result.neg_priors)
            labels += [
                result.pos_gt_labels,
                result.pos_gt_labels.new_full((negatives,), background),
            ]
            is_gt += [result.pos_is_gt, result.pos_is_gt.new_zeros(negatives)]
        labels, is_gt = torch.cat(labels), torch.cat(is_gt).bool()
        chosen = self.mimic.sample(rois[:, 0], labels, is_gt)
        f_frcnn = features[chosen]
        f_rcnn = f_frcnn
        if len(chosen):
            f_rcnn = self._crop_features(self.mimic.crop(images, rois[chosen], shapes))
        return self.mimic.loss(f_rcnn, f_frcnn, labels[chosen], len(shapes))

    def _crop_features(self, crops: Tensor) -> Tensor:
        """[K, 3, size, size] -> f_RCNN, [K, C]."""
        whole = crops.new_zeros(len(crops), 5, dtype=torch.float32)
        whole[:, 0] = torch.arange(len(crops))
        whole[:, 3:] = crops.shape[-1]
        with batch_statistics(self):
            return self.features_of(self.extract_feat(crops), whole)

    def features_of(self, maps: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        """What the box head's classifier sees of RoIs [K, 5] on these maps: [K, C]."""
        stages = self.roi_head.bbox_head
        stage = (len(stages) - 1,) if isinstance(stages, nn.ModuleList) else ()
        with calls_of(self.box_head.fc_cls, "forward") as classified:
            self.roi_head._bbox_forward(*stage, maps, rois)
        return next(iter(classified[-1].values()))


@contextmanager
def calls_of(owner: object, name: str) -> Iterator[list[dict[str, Any]]]:
    """The calls of a method of `owner` within the block: each one's arguments by name."""
    method, own = getattr(owner, name), vars(owner).get(name)
    signature = inspect.signature(method)
    calls = []

    @wraps(method)
    def noted(*args, **kwargs):
        calls.append(signature.bind(*args, **kwargs).arguments)
        return method(*args, **kwargs)

    setattr(owner, name, noted)
    try:
        yield calls
    finally:
        if own is None:
            delattr(owner, name)  # of the instance: the class's shows again
        else:
            setattr(owner, name, own)
