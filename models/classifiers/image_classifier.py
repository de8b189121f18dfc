"""A classifier of whole images."""

import re

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A backbone, global average pooling of its last feature map, and a linear layer.

    It pre-trains backbones and compares layers. A detector takes the backbone's weights by
    `backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE, prefix='backbone.')`.

    Args:
        backbone: config of a module that returns its feature maps as a sequence.
        in_channels: channels of the last one.
        num_classes: at least 2.
        frozen: a regular expression; parameters that it finds in their names are not trained.
        data_preprocessor: config, as of every mmengine model.
        init_cfg: as of every mmengine module.

    Raises:
        ValueError: `in_channels` or `num_classes` is out of range, or `frozen` is no expression or
            finds no name; in the forward pass, another `mode`, or the backbone has another number
            of channels.
    """

    def __init__(
        self,
        backbone: dict,
        in_channels: int,
        num_classes: int,
        frozen: str | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        for name, value, least in (
            ("in_channels", in_channels, 1),
            ("num_classes", num_classes, 2),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected an integer from {least} up, got {value!r}")
        self.num_classes = num_classes
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(in_channels, num_classes)
        if frozen is not None:
            try:
                found = [p for name, p in self.named_parameters() if re.search(frozen, name)]
            except (re.error, TypeError) as error:
                raise ValueError(f"frozen: {frozen!r} is no regular expression: {error}") from error
            if not found:
                raise ValueError(f"frozen: no parameter has a name with {frozen!r}")
            for parameter in found:
                parameter.requires_grad = False

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """What the linear layer sees of normalised images [N, C, H, W]: [N, in_channels]."""
        maps = self.backbone(inputs)[-1]
        if maps.shape[1] != self.head.in_features:
            raise ValueError(
                f"in_channels: {self.head.in_features}, but the backbone's last map has "
                f"{maps.shape[1]} channels"
            )
        return maps.mean((2, 3))

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[BaseDataElement] | None = None,
        mode: str = "tensor",
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Classify normalised images [N, C, H, W].

        Args:
            data_samples: one per image; 'loss' needs their `gt_label`, 'predict' sets their
                `pred_label` and `pred_scores` [num_classes], which sum to one.
            mode: 'tensor' returns the logits [N, num_classes], 'loss' the cross-entropy `loss_cls`
                and the accuracy `acc` in percent, 'predict' the samples.
        """
        logits = self.head(self.extract_feat(inputs))
        if mode == "tensor":
            return logits
        if mode == "loss":
            labels = torch.tensor(
                [sample.gt_label for sample in data_samples], device=logits.device
            )
            right = (logits.argmax(1) == labels).float()
            return dict(loss_cls=F.cross_entropy(logits, labels), acc=100 * right.mean())
        if mode == "predict":
            for sample, scores in zip(data_samples, logits.softmax(1), strict=True):
                sample.pred_scores = scores
                sample.pred_label = int(scores.argmax())
            return data_samples
        raise ValueError(f"mode: expected 'tensor', 'loss' or 'predict', got {mode!r}")
