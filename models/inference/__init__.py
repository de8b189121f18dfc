"""Running trained detectors on pictures."""

from .detector import Detections, Detector
from .files import detect_files

__all__ = ["Detections", "Detector", "detect_files"]
