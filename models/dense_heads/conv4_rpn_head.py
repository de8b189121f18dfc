"""The RPN of the paper's DC5 network (arXiv 1811.11168, section 2.2)."""

from mmdet.models.dense_heads import RPNHead
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class Conv4RPNHead(RPNHead):
    """mmdet's RPN head on conv4, the last of the maps that `DC5Neck` returns."""

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        return super().forward(x[-1:])
