from .deform_resnet import DeformResNet, DeformResNeXt
from .timm_backbone import TimmBackbone

__all__ = ["DeformResNeXt", "DeformResNet", "TimmBackbone"]
