"""Deformable operators for PyTorch: DCNv1 to DCNv4, RoI pooling, deformable kernels."""

from . import gpu, native
from .aggregation import DCNv3, DCNv4, dcnv3, dcnv4
from .conv_offset import ConvOffset2D
from .deform_conv import DeformConv2d, deform_conv2d
from .deform_kernel import (
    CondConv2d,
    DeformKernelConv2d,
    GlobalDeformKernel2d,
    LocalDeformKernel2d,
    local_deform_kernel,
)
from .layers import LAYERS
from .roi_pool import DeformRoIPool, deform_roi_pool, roi_align

__all__ = [
    "LAYERS",
    "CondConv2d",
    "ConvOffset2D",
    "DCNv3",
    "DCNv4",
    "DeformConv2d",
    "DeformKernelConv2d",
    "DeformRoIPool",
    "GlobalDeformKernel2d",
    "LocalDeformKernel2d",
    "dcnv3",
    "dcnv4",
    "deform_conv2d",
    "deform_roi_pool",
    "local_deform_kernel",
    "roi_align",
]
__version__ = "0.1.0"

native.add_kernels()
gpu.add_kernels()
