from .deform_resnet import DeformResNet, DeformResNeXt
from .depthwise import DeformMobileNetV2, ResNet50DW
from .intern_image import FlashInternImage, InternImage
from .small_cnn import SmallCNN
from .timm_backbone import TimmBackbone

__all__ = [
    "DeformMobileNetV2",
    "DeformResNeXt",
    "DeformResNet",
    "FlashInternImage",
    "InternImage",
    "ResNet50DW",
    "SmallCNN",
    "TimmBackbone",
]
