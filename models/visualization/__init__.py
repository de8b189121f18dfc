"""Pictures of what a detector sees and finds."""

from .boxes import draw_boxes, side_by_side
from .crops import draw_crops
from .visualizer import BoxVisualizer

__all__ = ["BoxVisualizer", "draw_boxes", "draw_crops", "side_by_side"]
