from .mimic import FeatureMimic
from .mimic_two_stage import MimicTwoStageDetector

__all__ = ["FeatureMimic", "MimicTwoStageDetector"]
