"""Deformable aggregation: DCNv3 and DCNv4."""

from .function import dcnv3, dcnv4

__all__ = ["dcnv3", "dcnv4"]
