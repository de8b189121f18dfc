"""`torch.compile` of what a detector computes in shapes that those of its images decide."""

import torch
from mmengine.logging import print_log
from torch import nn

from .errors import EngineError

MAPS = ("backbone", "neck", "rpn_head")


def compile_maps(model: nn.Module, **options) -> None:
    """Compile, in place, a model's backbone and, if it has them, its neck and RPN head.

    What follows has shapes that depend on values (proposals, NMS, the choice of RoIs), at which
    the graph of a whole training step breaks over a hundred times. It stays as it is.

    The state dict, and hooks on these three modules, stay as they are too. Hooks on modules inside
    of them run only if they are there when a graph is compiled, or in the stance "force_eager" of
    `torch.compiler.set_stance`.

    Args:
        options: as of `torch.compile`, such as `mode` or `dynamic`. By default, a second size of
            images is compiled once more, for all sizes (landscape and portrait apart, in some
            layers). TensorFlow's padding (timm's `tf_` networks) nests a rounding per stride, of
            which that takes very long: such networks want images of one size.

    Raises:
        EngineError: the model has no backbone, or `torch.compile` does not take an option.
    """
    parts = [part for name in MAPS if (part := getattr(model, name, None)) is not None]
    if not hasattr(model, "backbone"):
        raise EngineError(f"compile: {type(model).__name__} has no backbone to be compiled")
    try:
        for part in parts:
            # Not part.compile(): hooks would be compiled into it, and those of an evaluation branch
            # on values and come and go without notice.
            part.forward = torch.compile(part.forward, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EngineError(f"compile: {str(error).splitlines()[0]}") from error
    names = ", ".join(name for name in MAPS if getattr(model, name, None) is not None)
    print_log(f"compiled when first called, which takes minutes: {names}", logger="current")
