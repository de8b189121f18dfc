"""Deformable convolution, plain (DCNv1) and modulated (DCNv2)."""

from .function import deform_conv2d
from .module import DeformConv2d

__all__ = ["DeformConv2d", "deform_conv2d"]
