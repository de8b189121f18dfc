"""Pictures of what a detector sees and finds."""

from .boxes import draw_boxes, side_by_side
from .visualizer import BoxVisualizer

__all__ = ["BoxVisualizer", "draw_boxes", "side_by_side"]
