"""Deformable operators for PyTorch: modulated deformable convolution and deformable RoI pooling."""

from . import cpu  # noqa: F401  # registers the compiled kernels
from .deform_conv import DeformConv2d, deform_conv2d
from .deform_roi_pool import DeformRoIPool, deform_roi_pool

__all__ = ["DeformConv2d", "DeformRoIPool", "deform_conv2d", "deform_roi_pool"]
