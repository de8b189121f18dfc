"""Training-time pieces on top of mmengine. Importing it makes checkpoint loading safe."""

from .checkpoint import find_resumable, load_weights
from .errors import CheckpointError, EngineError, NonFiniteError
from .hooks import (
    CheckpointHook,
    DataCheckHook,
    EpochSeedHook,
    MissedValidationHook,
    NonFiniteHook,
)
from .metrics import Accuracy
from .offsets import OffsetStatisticsHook
from .optim import BFloat16OptimWrapper, mixed_precision
from .options import check_options, merge_options
from .pictures import MimicPictureHook
from .runner import Runner
from .screen import LogProcessor

__all__ = [
    "Accuracy",
    "BFloat16OptimWrapper",
    "CheckpointError",
    "CheckpointHook",
    "DataCheckHook",
    "EngineError",
    "EpochSeedHook",
    "LogProcessor",
    "MimicPictureHook",
    "MissedValidationHook",
    "NonFiniteError",
    "NonFiniteHook",
    "OffsetStatisticsHook",
    "Runner",
    "check_options",
    "find_resumable",
    "load_weights",
    "merge_options",
    "mixed_precision",
]
