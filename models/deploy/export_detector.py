"""A two-stage detector as one graph: images in, detections out."""

import torch
import torch.nn.functional as F
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor, nn
from torchvision.ops import nms

from ..engine.errors import EngineError


class ExportDetector(nn.Module):
    """Faster or Mask R-CNN in evaluation, for images of one size, with nothing left to Python.

    It computes what `detector.predict` does, and shares its layers; only of equal scores, as a flat
    image has them, others may come first. What depends on the data is how many boxes pass the score
    threshold and NMS, and nothing else; all shapes that leave are fixed. So `torch.export` can
    trace it, with any number of images.

    Args:
        detector: of mmdet, with an RPN and one RoI head.
        size: (height, width) of the images, in pixels, as they come from the test pipeline's
            resizing.
        preprocess: whether normalisation and padding are part of the graph.

    Shapes, for N images:

    - `images`: uint8 [N, 3, height, width], RGB; without `preprocess` float32, as the detector's
      `data_preprocessor` gives them, so of `padded_size`;
    - boxes float32 [N, D, 4], (x1, y1, x2, y2) in pixels of these images; scores float32 [N, D],
      falling; labels int64 [N, D]. D is the config's `max_per_img`, or how many boxes there are at
      all. Where fewer are found, the rest has scores of 0;
    - of Mask R-CNN also masks float32 [N, D, h, w], probabilities within the boxes.

    Raises:
        EngineError: a part of the detector that this class cannot state, by name.
    """

    def __init__(self, detector: nn.Module, size: tuple[int, int], preprocess: bool = True) -> None:
        super().__init__()
        check_parts(detector)
        self.detector = detector.eval()
        self.size = size
        divisor = detector.data_preprocessor.pad_size_divisor
        self.padded_size = tuple(-(-length // divisor) * divisor for length in size)
        self.preprocess = preprocess

    @property
    def output_names(self) -> list[str]:
        return ["boxes", "scores", "labels", *(["masks"] if self.detector.with_mask else [])]

    def example(self, batch: int = 1) -> Tensor:
        """Images of the right shape and dtype, for tracing."""
        device = next(self.parameters()).device
        if self.preprocess:
            return torch.zeros(batch, 3, *self.size, dtype=torch.uint8, device=device)
        return torch.zeros(batch, 3, *self.padded_size, device=device)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.preprocess:
            images = self.prepare(images)
        maps = self.detector.extract_feat(images)
        proposals, valid = self.proposals(maps)
        boxes, scores, labels = self.detections(maps, proposals, valid)
        if not self.detector.with_mask:
            return boxes, scores, labels
        masks = self.detector.roi_head._mask_forward(maps, _rois(boxes))["mask_preds"]
        of_label = labels.view(-1, 1, 1, 1).expand(-1, -1, *masks.shape[2:])
        if masks.shape[1] == 1:  # one for all classes
            of_label = torch.zeros_like(of_label)
        masks = masks.gather(1, of_label).sigmoid()
        return boxes, scores, labels, masks.view(*labels.shape, *masks.shape[2:])

    def prepare(self, images: Tensor) -> Tensor:
        """As `data_preprocessor` does it: normalised, then padded."""
        given = self.detector.data_preprocessor
        if not given._channel_conversion:  # from the BGR that OpenCV reads
            images = images.flip(1)
        images = images.float()
        if given._enable_normalize:
            images = (images - given.mean) / given.std
        below, beside = (p - s for p, s in zip(self.padded_size, self.size, strict=True))
        return F.pad(images, (0, beside, 0, below), value=float(given.pad_value))

    def proposals(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Boxes [N, P, 4], and which of them are proposals and not left over, [N, P]."""
        head = self.detector.rpn_head
        settings = head.test_cfg
        all_scores, all_deltas = head(maps)
        sizes = [tuple(scores.shape[2:]) for scores in all_scores]
        anchors = head.prior_generator.grid_priors(sizes, device=all_scores[0].device)
        boxes, scores, levels = [], [], []
        for level, (own, deltas) in enumerate(zip(all_scores, all_deltas, strict=True)):
            own = own.permute(0, 2, 3, 1).flatten(1).sigmoid()
            deltas = deltas.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
            limit = settings.get("nms_pre", -1)
            most = min(limit, own.shape[1]) if limit > 0 else own.shape[1]
            own, best = own.topk(most)
            deltas = deltas.gather(1, best[..., None].expand(-1, -1, 4))
            boxes.append(self._decode(head.bbox_coder, anchors[level][best], deltas))
            scores.append(own)
            levels.append(torch.full_like(best, level))
        boxes, scores, levels = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels, 1)
        least = settings.get("min_bbox_size", -1)
        if least >= 0:
            large = ((boxes[..., 2:] - boxes[..., :2]) > least).all(-1)
            scores = torch.where(large, scores, -1)  # they come last, and suppress none
        scores, kept = self._suppress(
            boxes.flatten(0, 1),
            scores.flatten(),
            levels.flatten(),
            torch.arange(scores.numel(), device=boxes.device),
            settings.nms.iou_threshold,
            torch.full_like(scores, -1),
            settings.max_per_img,
        )
        return boxes.gather(1, kept[..., None].expand(-1, -1, 4)), scores >= 0

    def detections(
        self, maps: tuple[Tensor, ...], proposals: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [N, D, 4], scores and labels [N, D]."""
        head, settings = self.detector.roi_head.bbox_head, self.detector.roi_head.test_cfg
        found = self.detector.roi_head._bbox_forward(maps, _rois(proposals))
        n, count = valid.shape
        classes = head.num_classes
        scores = found["cls_score"].softmax(-1)[:, :-1].view(n, count, classes)
        scores = torch.where(valid[..., None], scores, 0).flatten(1)  # [N, P·classes]
        deltas = found["bbox_pred"].view(n, count, -1, 4)
        boxes = proposals[:, :, None].expand_as(deltas)
        boxes = self._decode(head.bbox_coder, boxes, deltas).expand(-1, -1, classes, -1)
        boxes = boxes.flatten(1, 2)
        # Only candidates go through NMS, whose time is quadratic.
        candidate = (scores.flatten() > settings.score_thr).nonzero().squeeze(1)
        scores, kept = self._suppress(
            boxes.flatten(0, 1)[candidate],
            scores.flatten()[candidate],
            candidate % classes,
            candidate,
            settings.nms.iou_threshold,
            torch.zeros_like(scores),
            settings.max_per_img,
        )
        return boxes.gather(1, kept[..., None].expand(-1, -1, 4)), scores, kept % classes

    def _decode(self, coder: DeltaXYWHBBoxCoder, boxes: Tensor, deltas: Tensor) -> Tensor:
        """[..., 4] each; the result lies in the image."""
        decoded = coder.decode(boxes.reshape(-1, 4), deltas.reshape(-1, 4)).view(deltas.shape)
        height, width = self.size
        return torch.minimum(decoded.relu(), decoded.new_tensor([width, height, width, height]))

    def _suppress(
        self,
        boxes: Tensor,
        scores: Tensor,
        group: Tensor,
        place: Tensor,
        iou_threshold: float,
        scores_of_none: Tensor,
        most: int,
    ) -> tuple[Tensor, Tensor]:
        """NMS among the boxes [M, 4] of the same group and image.

        Args:
            scores, group: [M].
            place: [M], where a box belongs among all [N, L] of the images, flattened.
            scores_of_none: [N, L], what is left where no box is kept.

        Returns:
            The best `most` scores of every image, and where they are: [N, most] each.
        """
        n, length = scores_of_none.shape
        # Boxes of other groups and images do not overlap when they are moved apart. Along x would
        # do for groups, but torchvision's NMS takes a third less time if both sides are apart.
        image = place // length
        apart = torch.stack((group * (self.size[1] + 1), (group + image) * (self.size[0] + 1)), 1)
        # Two more, which are always kept and then dropped: in a trace, torchvision has NMS say that
        # it keeps two at least.
        more = boxes.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
        boxes = torch.cat((boxes + apart.repeat(1, 2), more))
        scores = torch.cat((scores, scores.new_full((2,), -1)))
        place = torch.cat((place, n * length + torch.arange(2, device=place.device)))
        kept = nms(boxes, scores, iou_threshold)
        left = F.pad(scores_of_none.flatten(), (0, 2)).scatter(0, place[kept], scores[kept])
        left = left[: n * length].view(n, length)
        return left.topk(min(most, length))


def check_parts(detector: nn.Module) -> None:
    """Raise EngineError, by name, for what `ExportDetector` cannot state."""

    def refuse(part: str, found: object, expected: str) -> None:
        raise EngineError(f"{part}: {found} cannot be exported; {expected} can")

    if not isinstance(detector, TwoStageDetector):
        refuse("model", type(detector).__name__, "Faster and Mask R-CNN")
    rpn, roi_head = detector.rpn_head, detector.roi_head
    if not isinstance(rpn, RPNHead):
        refuse("model.rpn_head", type(rpn).__name__, "RPNHead")
    if not rpn.use_sigmoid_cls:
        refuse("model.rpn_head.loss_cls", "softmax", "sigmoid")
    if type(roi_head) is not StandardRoIHead:
        refuse("model.roi_head", type(roi_head).__name__, "StandardRoIHead")
    if roi_head.bbox_head.custom_cls_channels:
        refuse("model.roi_head.bbox_head.loss_cls", "an activation of its own", "softmax")
    for part, head in (("model.rpn_head", rpn), ("model.roi_head", roi_head)):
        settings, most = dict(head.test_cfg.nms), head.test_cfg.max_per_img
        known = {"type", "iou_threshold", "class_agnostic", "split_thr"}
        if settings.get("type", "nms") != "nms" or settings.get("class_agnostic"):
            refuse(f"{part}.test_cfg.nms", settings, "type='nms' by class")
        if not set(settings) <= known:
            refuse(f"{part}.test_cfg.nms", settings, "type='nms' with an iou_threshold")
        if most < 1:
            refuse(f"{part}.test_cfg.max_per_img", most, "a number from 1 up")
        coder = getattr(head, "bbox_head", head).bbox_coder
        if not isinstance(coder, DeltaXYWHBBoxCoder):
            refuse(f"{part}.bbox_coder", type(coder).__name__, "DeltaXYWHBBoxCoder")
        if not coder.clip_border:
            refuse(f"{part}.bbox_coder.clip_border", False, "True")
    if not roi_head.bbox_head.with_reg:
        refuse("model.roi_head.bbox_head.with_reg", False, "True")
    if not isinstance(detector.data_preprocessor, DetDataPreprocessor):
        kind = type(detector.data_preprocessor).__name__
        refuse("model.data_preprocessor", kind, "DetDataPreprocessor")
    for name, module in detector.named_modules():
        if type(module).__module__.startswith("mmcv.ops"):
            refuse(f"model.{name}", f"mmcv's {type(module).__name__}", "dcn's layers")


def _rois(boxes: Tensor) -> Tensor:
    """[N, P, 4] -> [N·P, 5], with the number of the image first."""
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    image = image[:, None, None].expand(-1, boxes.shape[1], 1)
    return torch.cat((image, boxes), 2).flatten(0, 1)
