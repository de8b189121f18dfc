"""Deformable RoI pooling, plain (DCNv1) and modulated (DCNv2)."""

from .function import deform_roi_pool
from .module import DeformRoIPool

__all__ = ["DeformRoIPool", "deform_roi_pool"]
