"""Detectors for runtimes without Python: written, read again and compared."""

from .export_detector import ExportDetector
from .exported_detector import Difference, ExportedDetector, compare
from .exported_model import ExportedModel
from .exporting import FORMATS, OPSET, export, pad_images, trace, use_exported

__all__ = [
    "FORMATS",
    "OPSET",
    "Difference",
    "ExportDetector",
    "ExportedDetector",
    "ExportedModel",
    "compare",
    "export",
    "pad_images",
    "trace",
    "use_exported",
]
