from .mimic import FeatureMimic
from .mimic_two_stage import MimicTwoStageDetector, calls_of

__all__ = ["FeatureMimic", "MimicTwoStageDetector", "calls_of"]
