"""How mmdet's hooks, inferencer and tools draw."""

import mmcv
import numpy as np
import torch
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import BaseDataElement, InstanceData

from .boxes import draw_boxes, side_by_side


@VISUALIZERS.register_module()
class BoxVisualizer(DetLocalVisualizer):
    """mmdet's visualizer that draws boxes with `draw_boxes`, annotated beside found.

    What a classifier says of an image is drawn as a box around it. Masks and segmentations are not
    drawn.
    """

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: DetDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        pred_score_thr: float = 0.3,
        step: int = 0,
    ) -> None:
        """Draw a sample's `gt_instances` and those `pred_instances` that score enough.

        Args:
            image: [H, W, 3], RGB, values up to 255.

        The others are those of mmdet's method.
        """
        image = image.clip(0, 255).astype(np.uint8)
        if data_sample is not None and "gt_label" in data_sample:
            data_sample = _boxed(data_sample, image)
        panels = {}
        if draw_gt and data_sample is not None and "gt_instances" in data_sample:
            panels["annotated"] = self._draw(image, data_sample.gt_instances)
        if draw_pred and data_sample is not None and "pred_instances" in data_sample:
            found = data_sample.pred_instances
            found = found[found.scores >= pred_score_thr]
            panels[f"found, score ≥ {pred_score_thr:g}"] = self._draw(image, found)
        drawn = side_by_side(panels) if panels else image
        self.set_image(drawn)
        if show:
            self.show(drawn, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(drawn[..., ::-1], out_file)
        else:
            self.add_image(name, drawn, step)

    def _draw(self, image: np.ndarray, instances: InstanceData) -> np.ndarray:
        instances = instances.cpu()
        boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
        scores = instances.scores.tolist() if "scores" in instances else None
        return draw_boxes(
            image, boxes, instances.labels.tolist(), scores, self.dataset_meta["classes"]
        )


def _boxed(sample: BaseDataElement, image: np.ndarray) -> DetDataSample:
    """A classifier's sample (see `ImageClassifier`) as a detector's, of one box."""
    height, width = image.shape[:2]
    box = torch.tensor([[0.0, 0.0, width - 1, height - 1]])
    boxed = DetDataSample(
        gt_instances=InstanceData(bboxes=box, labels=torch.tensor([sample.gt_label]))
    )
    if "pred_label" in sample:
        label, scores = sample.pred_label, sample.pred_scores
        boxed.pred_instances = InstanceData(
            bboxes=box, labels=torch.tensor([label]), scores=scores[label, None].cpu()
        )
    return boxed
