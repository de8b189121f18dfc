from .conv4_rpn_head import Conv4RPNHead

__all__ = ["Conv4RPNHead"]
