from .deform_roi_extractor import DeformRoIExtractor
from .sampled_roi_head import SampledRoIHead, SampledRoIs

__all__ = ["DeformRoIExtractor", "SampledRoIHead", "SampledRoIs"]
