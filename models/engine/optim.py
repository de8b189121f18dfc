"""Mixed precision where mmengine's ``AmpOptimWrapper`` does not go."""

from contextlib import contextmanager

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from mmengine.utils import apply_to


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """bfloat16 autocast on any device, the CPU included; its range needs no loss scaling.

    What the detection heads return is float32: mmcv's NMS knows no bfloat16 on the CPU.
    """

    @contextmanager
    def optim_context(self, model):
        heads = [m for m in model.modules() if isinstance(m, (BaseDenseHead, BBoxHead))]
        hooks = [head.register_forward_hook(_to_float32) for head in heads]
        try:
            with super().optim_context(model), autocast(dtype=torch.bfloat16):
                yield
        finally:
            for hook in hooks:
                hook.remove()


def _to_float32(module, args, output):
    return apply_to(output, torch.is_tensor, torch.Tensor.float)
