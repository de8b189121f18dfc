from mmdet.registry import MODELS
from torchvision.models.convnext import LayerNorm2d

from .dc5_neck import DC5Neck

__all__ = ["DC5Neck"]

# A norm over the channels of [N, C, H, W]: FPN(norm_cfg=dict(type='LN2d')) is ViTDet's, to the key.
MODELS.register_module("LN2d", module=LayerNorm2d)
