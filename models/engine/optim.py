"""Mixed precision beyond mmengine's ``AmpOptimWrapper``, and the offsets' learning rate."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from mmengine.utils import apply_to
from torch import nn

from dcn import DeformConv2d, DeformKernelConv2d, DeformRoIPool, LocalDeformKernel2d

from .errors import EngineError


def amp_dtype(name: str) -> torch.dtype:
    """What ``--amp`` means: 'bf16', 'fp16', or 'auto' (bf16 where the device has it).

    Raises:
        EngineError: the device does not compute in it.
    """
    cuda = torch.cuda.is_available()
    has_bf16 = not cuda or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        name = "bf16" if has_bf16 else "fp16"
    if name == "fp16" and not cuda:
        raise EngineError("--amp fp16 needs a GPU; --amp bf16 runs on a CPU")
    if name == "bf16" and not has_bf16:
        raise EngineError(f"--amp bf16: {torch.cuda.get_device_name()} has none; --amp fp16 runs")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[name]


@contextmanager
def mixed_precision(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`; what the detection heads of `model` return is float32.

    mmcv's NMS knows no bfloat16 on the CPU, and 16 bits do not hold a coordinate.
    """
    heads = [m for m in model.modules() if isinstance(m, BaseDenseHead | BBoxHead)]
    hooks = [head.register_forward_hook(_to_float32) for head in heads]
    try:
        with autocast(dtype=dtype):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def with_slow_offsets(cfg: dict, model: nn.Module) -> dict:
    """The `cfg` of an optimizer wrapper, with the rates that the papers' offsets of `model` have.

    They are a tenth for deformable convolutions (arXiv 1811.11168, section 3.2), and for those of
    local deformable kernels, which at the full rate learn worse from scratch (docs/results). They
    are a hundredth for DCNv1's RoI pooling, whose only layer predicts the offsets (the authors'
    code). mdpool's have the full rate. A layer that one of the config's `custom_keys` names has
    that share of what the key gives it. A key that names `conv_offset`, `offset_conv`,
    `rotation_conv` or `offset_fc` leaves those layers as they are.

    Raises:
        EngineError: `paramwise_cfg` is no dict.
    """
    paramwise = cfg.get("paramwise_cfg") or {}
    if not isinstance(paramwise, dict):
        raise EngineError(f"optim_wrapper.paramwise_cfg: expected a dict, got {paramwise!r}")
    given = paramwise.get("custom_keys") or {}
    shares = {}
    for name, module in model.named_modules():
        name = name.removeprefix("module.")
        if isinstance(module, DeformConv2d):
            shares[f"{name}.conv_offset"] = 0.1
        elif isinstance(module, LocalDeformKernel2d):
            shares[f"{name}.rotation_conv"] = 0.1
            if isinstance(module, DeformKernelConv2d):
                shares[f"{name}.offset_conv"] = 0.1
        elif (
            isinstance(module, DeformRoIPool)
            and not module.modulated
            and len(module.offset_fc) == 1
        ):
            shares[f"{name}.offset_fc"] = 0.01
    keys = {}
    for layer, share in shares.items():
        if not any(layer.rsplit(".", 1)[1] in key for key in given):
            settings = given.get(max((k for k in given if k in layer), key=len, default=None), {})
            keys[layer] = {**settings, "lr_mult": share * settings.get("lr_mult", 1.0)}
    if not keys:
        return cfg
    cfg = copy.deepcopy(cfg)
    cfg["paramwise_cfg"] = {**paramwise, "custom_keys": {**given, **keys}}
    return cfg


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """bfloat16 autocast on any device, the CPU included; its range needs no loss scaling.

    What the detection heads return is float32, as :func:`mixed_precision` says.
    """

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), mixed_precision(model, torch.bfloat16):
            yield


def _to_float32(module, args, output):
    return apply_to(output, torch.is_tensor, torch.Tensor.float)
