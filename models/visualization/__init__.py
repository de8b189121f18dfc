"""Pictures of what a detector sees and finds, and the numbers in them."""

from .annotated import annotations_of, validation_set
from .boxes import draw_boxes, side_by_side
from .crops import draw_crops
from .embedding import Embedding, draw_embedding, embedding
from .offset_fields import OffsetField, draw_offset_fields, offset_fields
from .on_object import draw_on_object, on_object, summarise
from .receptive_field import ReceptiveField, draw_receptive_fields, receptive_field
from .sampling import SamplingPoints, deformable_layers, draw_points, sampling_points
from .visualizer import BoxVisualizer

__all__ = [
    "BoxVisualizer",
    "Embedding",
    "OffsetField",
    "ReceptiveField",
    "SamplingPoints",
    "annotations_of",
    "deformable_layers",
    "draw_boxes",
    "draw_crops",
    "draw_embedding",
    "draw_offset_fields",
    "draw_on_object",
    "draw_points",
    "draw_receptive_fields",
    "embedding",
    "offset_fields",
    "on_object",
    "receptive_field",
    "sampling_points",
    "side_by_side",
    "summarise",
    "validation_set",
]
