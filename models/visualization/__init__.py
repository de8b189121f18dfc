"""Pictures of what a detector sees and finds."""

from .boxes import draw_boxes, side_by_side

__all__ = ["draw_boxes", "side_by_side"]
