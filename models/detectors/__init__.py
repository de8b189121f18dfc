from .mimic import FeatureMimic
from .mimic_faster_rcnn import MimicFasterRCNN

__all__ = ["FeatureMimic", "MimicFasterRCNN"]
