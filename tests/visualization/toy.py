"""A model whose backbone a test chooses, behind as much of a Detector as is asked for."""

from types import SimpleNamespace

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.functional import interpolate


class Toy(BaseModel):
    """Finds `boxes` [N, 4], the better ones first, whatever it sees."""

    def __init__(self, backbone: nn.Module, boxes: list, pool: nn.Module | None, divisor: int):
        super().__init__(ImgDataPreprocessor(pad_size_divisor=divisor))
        self.backbone = backbone
        self.pool = pool
        self.boxes = torch.tensor(boxes).reshape(-1, 4).float()
        self.rois = None

    def forward(self, inputs: Tensor, data_samples: list, mode: str = "tensor"):
        found = self.backbone(inputs)
        if self.pool is not None:
            self.pool(found, self.rois)
        scores = torch.linspace(0.9, 0.5, len(self.boxes))
        data_samples[0].pred_instances = InstanceData(bboxes=self.boxes, scores=scores)
        return data_samples


def toy(backbone, boxes=(), pool=None, scale=(1, 1), divisor=1):
    """Its images are arrays, or zeros of a size (H, W); the model sees them enlarged by `scale`."""
    model = Toy(backbone, [*boxes], pool, divisor).eval()

    def prepare(pictures):
        arrays = [p if isinstance(p, np.ndarray) else np.zeros((*p, 3), np.uint8) for p in pictures]
        inputs = [
            interpolate(
                torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float(),
                scale_factor=tuple(map(float, scale[::-1])),
            )[0]
            for array in arrays
        ]
        samples = [DetDataSample(metainfo=dict(scale_factor=scale)) for _ in arrays]
        return arrays, dict(inputs=inputs, data_samples=samples)

    return SimpleNamespace(model=model, prepare=prepare, classes=("a", "b"))
