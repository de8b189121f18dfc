"""R-CNN feature mimicking (arXiv 1811.11168, section 3.3)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from mmdet.models.losses import accuracy
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import clip_boxes_to_image, roi_align

SMALLEST_CROP = 64


@MODELS.register_module()
class MimicLoss(nn.Module):
    """The feature mimicking loss, Σ_b [1 − cos(f_RCNN(b), f_FRCNN(b))].

    (arXiv 1811.11168, equation 3.) Its gradient flows into both features.

    Args:
        reduction: 'sum' is the paper's: the sum over the RoIs of an image, averaged over the images
            of the batch. 'mean' is the mean over all RoIs of the batch.
        loss_weight: 0.1 in the paper.
    """

    def __init__(self, reduction: str = "sum", loss_weight: float = 0.1) -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise ValueError(f"loss_mimic: reduction: expected 'sum' or 'mean', got {reduction!r}")
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(self, f_rcnn: Tensor, f_frcnn: Tensor, num_images: int) -> Tensor:
        """Features of all RoIs of a batch, [K, C] and [K, C] -> the loss, computed in float32."""
        total = (1 - F.cosine_similarity(f_rcnn.float(), f_frcnn.float())).sum()
        return self.loss_weight * total / (num_images if self.reduction == "sum" else len(f_rcnn))


class CropRoIs(nn.Module):
    """Crops RoIs from images and resizes them, bilinearly.

    An RoI is clipped to its image and samples nothing outside it, so that a crop holds the image's
    own pixels and no padding of the batch.

    Args:
        size: side of the crops in pixels; they are square whatever the shape of the RoI.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor, rois: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Images [N, 3, H, W], RoIs [K, 5] in pixels and the images' unpadded (height, width)
        -> crops [K, 3, size, size], in the images' memory format.
        """
        crops = images.new_empty(len(rois), images.shape[1], self.size, self.size)
        for index, (image, (height, width)) in enumerate(zip(images, shapes, strict=True)):
            chosen = (rois[:, 0] == index).nonzero().squeeze(1)
            boxes = clip_boxes_to_image(rois[chosen, 1:].to(images), (height, width))
            own = image[None, :, :height, :width]  # without the padding of the batch
            crops[chosen] = roi_align(own, [boxes], self.size, sampling_ratio=1, aligned=True)
        if images.is_contiguous(memory_format=torch.channels_last):
            crops = crops.contiguous(memory_format=torch.channels_last)
        return crops


class FeatureMimic(nn.Module):
    """The parts of R-CNN feature mimicking that the detector does not have.

    These are the choice of Ω, the crops, the auxiliary classifier and the two losses, which
    `MimicTwoStageDetector` puts together.

    Args:
        in_channels: channels of the features that the classifiers see (1024 in the paper).
        num_classes: C, without the background.
        num_rois: RoIs per image, drawn at random; all of them if there are fewer.
        crop_size: side of the crops in pixels, at least 64. 224 in the paper; smaller is cheaper.
        on: 'foreground' (the paper's choice), 'background' or 'both': which of the RoIs that the
            detector's second stage trains on may be drawn. 'both' treats them alike, so the share
            of background is that of its sampler (three quarters in the paper).
        with_gt: whether the annotated boxes, which mmdet's sampler adds to the proposals, may be
            drawn too. The paper draws among the RPN's proposals.
        loss_mimic: config of the loss, default `dict(type='MimicLoss', loss_weight=0.1)`.
        loss_cls: config of the auxiliary classifier's loss, default `dict(type='CrossEntropyLoss',
            loss_weight=0.1)`; its mean over the crops.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_rois: int = 32,
        crop_size: int = 224,
        on: str = "foreground",
        with_gt: bool = False,
        loss_mimic: dict | None = None,
        loss_cls: dict | None = None,
    ) -> None:
        super().__init__()
        if on not in ("foreground", "background", "both"):
            raise ValueError(
                f"mimic: on: expected 'foreground', 'background' or 'both', got {on!r}"
            )
        for name, value, least in (
            ("num_rois", num_rois, 1),
            ("crop_size", crop_size, SMALLEST_CROP),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"mimic: {name}: expected an integer from {least} up, got {value!r}"
                )
        self.num_classes = num_classes
        self.num_rois = num_rois
        self.on = on
        self.with_gt = with_gt
        self.crop = CropRoIs(crop_size)
        self.fc_cls = nn.Linear(in_channels, num_classes + 1)
        self.loss_mimic = MODELS.build(dict(type="MimicLoss") | (loss_mimic or {}))
        self.loss_cls = MODELS.build(
            dict(type="CrossEntropyLoss", loss_weight=0.1) | (loss_cls or {})
        )
        self.init_weights()

    def init_weights(self) -> None:
        """As mmdet's box heads start their classifier."""
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.zeros_(self.fc_cls.bias)

    def sample(self, images: Tensor, labels: Tensor, is_gt: Tensor) -> Tensor:
        """Draw Ω: each RoI's image, label and whether it is an annotated box, all [R]
        -> indices of the chosen ones, [K].
        """
        foreground = labels < self.num_classes
        allowed = {
            "foreground": foreground,
            "background": ~foreground,
            "both": torch.ones_like(foreground),
        }[self.on]
        if not self.with_gt:
            allowed = allowed & ~is_gt
        drawn = [labels.new_empty(0)]
        for image in images.unique():
            candidates = (allowed & (images == image)).nonzero().squeeze(1)
            order = torch.randperm(len(candidates), device=candidates.device)
            drawn.append(candidates[order[: self.num_rois]])
        return torch.cat(drawn)

    def loss(
        self, f_rcnn: Tensor, f_frcnn: Tensor, labels: Tensor, num_images: int
    ) -> dict[str, Tensor]:
        """Both losses, and what is logged beside them.

        Args:
            f_rcnn: features of the crops, [K, in_channels].
            f_frcnn: features of the same RoIs in the detector, [K, in_channels].
            labels: classes of the RoIs, [K], 0..C; C is background.
            num_images: images in the batch.

        Returns:
            loss_mimic, loss_mimic_cls, mimic_cos (the mean cosine similarity) and mimic_acc
            (accuracy of the auxiliary classifier in percent). Without any RoI all are zero, but
            the classifier stays in the graph.
        """
        scores = self.fc_cls(f_rcnn)
        if not len(labels):
            zero = scores.sum() + f_rcnn.sum() + f_frcnn.sum()  # of nothing: zero
            still = zero.detach()
            return dict(loss_mimic=zero, loss_mimic_cls=zero, mimic_cos=still, mimic_acc=still)
        return dict(
            loss_mimic=self.loss_mimic(f_rcnn, f_frcnn, num_images),
            loss_mimic_cls=self.loss_cls(scores, labels),
            mimic_cos=F.cosine_similarity(f_rcnn.detach().float(), f_frcnn.detach().float()).mean(),
            mimic_acc=accuracy(scores, labels),
        )


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let the BatchNorms that are being trained use their input's statistics and record none.

    Running statistics stay those of the images. No process waits for another (SyncBatchNorm), since
    one may have no crop where others do.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        # In evaluation, PyTorch's normalise by the statistics of a batch where they have no others.
        norm.running_mean = norm.running_var = None
        norm.training = False
    try:
        yield
    finally:
        for norm, (mean, var) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, var
            norm.training = True
