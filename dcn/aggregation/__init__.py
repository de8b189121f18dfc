"""Deformable aggregation: DCNv3 and DCNv4."""

from .function import dcnv3, dcnv4
from .module import DCNv3, DCNv4

__all__ = ["DCNv3", "DCNv4", "dcnv3", "dcnv4"]
