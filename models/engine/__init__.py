"""Training-time pieces on top of mmengine. Importing it makes checkpoint loading safe."""

from .checkpoint import find_resumable, load_weights
from .errors import CheckpointError, EngineError, NonFiniteError
from .hooks import CheckpointHook, EpochSeedHook, LastValidationHook, NonFiniteHook
from .offsets import OffsetStatisticsHook
from .optim import BFloat16OptimWrapper
from .pictures import MimicPictureHook
from .runner import Runner

__all__ = [
    "BFloat16OptimWrapper",
    "CheckpointError",
    "CheckpointHook",
    "EngineError",
    "EpochSeedHook",
    "LastValidationHook",
    "MimicPictureHook",
    "NonFiniteError",
    "NonFiniteHook",
    "OffsetStatisticsHook",
    "Runner",
    "find_resumable",
    "load_weights",
]
