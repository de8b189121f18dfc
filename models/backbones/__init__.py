from .deform_resnet import DeformResNet, DeformResNeXt

__all__ = ["DeformResNeXt", "DeformResNet"]
