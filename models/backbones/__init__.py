from .deform_resnet import DeformResNet, DeformResNeXt
from .intern_image import FlashInternImage, InternImage
from .timm_backbone import TimmBackbone

__all__ = ["DeformResNeXt", "DeformResNet", "FlashInternImage", "InternImage", "TimmBackbone"]
