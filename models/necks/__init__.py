from .dc5_neck import DC5Neck

__all__ = ["DC5Neck"]
