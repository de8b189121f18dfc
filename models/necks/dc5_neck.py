"""What lies between conv5 and RoI pooling in the paper's DC5 network."""

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


@MODELS.register_module()
class DC5Neck(BaseModule):
    """A 1×1 convolution with ReLU on conv5 for the RoI head, and conv4 as it is for the RPN.

    In the authors' code it is `conv_new_1` (faster_rcnn/symbols/resnet_v1_101_rcnn_dcn.py), and its
    weights start from a Gaussian of standard deviation 0.01.

    Args:
        in_channels: channels of conv5.
        out_channels: channels of the map that RoIs are pooled from.

    Shapes: conv4 [N, C_4, H, W] and conv5 [N, in_channels, H, W], both of stride 16
    -> [N, out_channels, H, W] and conv4. RoI extractors take the first, `Conv4RPNHead` the last.
    """

    def __init__(
        self, in_channels: int = 2048, out_channels: int = 256, init_cfg: dict | None = None
    ) -> None:
        init_cfg = init_cfg or dict(type="Normal", layer="Conv2d", std=0.01)
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        conv4, conv5 = inputs
        return self.relu(self.conv(conv5)), conv4
