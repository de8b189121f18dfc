"""Kernels that depend on the input: deformable kernels and conditional convolution."""

from .cond_conv import CondConv2d
from .function import local_deform_kernel
from .module import DeformKernelConv2d, GlobalDeformKernel2d, LocalDeformKernel2d

__all__ = [
    "CondConv2d",
    "DeformKernelConv2d",
    "GlobalDeformKernel2d",
    "LocalDeformKernel2d",
    "local_deform_kernel",
]
