"""Deformable RoI pooling, plain (DCNv1) and modulated (DCNv2)."""

from .function import deform_roi_pool, roi_align
from .module import DeformRoIPool

__all__ = ["DeformRoIPool", "deform_roi_pool", "roi_align"]
