"""Deformable operators for PyTorch: convolution, RoI pooling, DCNv3's and DCNv4's aggregation."""

from . import gpu, native
from .aggregation import DCNv3, DCNv4, dcnv3, dcnv4
from .deform_conv import DeformConv2d, deform_conv2d
from .layers import LAYERS
from .roi_pool import DeformRoIPool, deform_roi_pool, roi_align

__all__ = [
    "LAYERS",
    "DCNv3",
    "DCNv4",
    "DeformConv2d",
    "DeformRoIPool",
    "dcnv3",
    "dcnv4",
    "deform_conv2d",
    "deform_roi_pool",
    "roi_align",
]
__version__ = "0.1.0"

native.add_kernels()
gpu.add_kernels()
