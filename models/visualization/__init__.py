"""Pictures of what a detector sees and finds."""

from .boxes import draw_boxes, side_by_side
from .crops import draw_crops
from .sampling import SamplingPoints, deformable_layers, draw_points, sampling_points
from .visualizer import BoxVisualizer

__all__ = [
    "BoxVisualizer",
    "SamplingPoints",
    "deformable_layers",
    "draw_boxes",
    "draw_crops",
    "draw_points",
    "sampling_points",
    "side_by_side",
]
