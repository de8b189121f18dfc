"""Registers Triton kernels for NVIDIA GPUs with PyTorch's dispatcher.

Triton compiles them when they are first called, and is imported no earlier.
"""

import functools
import importlib
import importlib.util
import subprocess
import warnings
from collections.abc import Callable

import torch

# Of each operator, the module and the function here.
OPERATORS = {
    "deform_conv2d": ("deform_conv", "forward"),
    "deform_conv2d_backward": ("deform_conv", "backward"),
    "deform_roi_pool": ("deform_roi_pool", "forward"),
    "deform_roi_pool_backward": ("deform_roi_pool", "backward"),
}


def operator(name: str) -> Callable:
    """The kernels of an operator; they run on the device of its first tensor."""
    module, function = OPERATORS[name]

    def call(*args):
        # Triton launches on the current device.
        with torch.cuda.device_of(args[0]):
            package = __name__ if not args[0].is_cuda or launches() else "dcn.reference"
            return getattr(importlib.import_module(f"{package}.{module}"), function)(*args)

    return call


@functools.cache
def launches() -> bool:
    """Whether Triton can launch kernels: a C compiler builds what it launches them with, once."""
    from triton.runtime import driver

    try:
        driver.active.get_current_device()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        warnings.warn(
            f"dcn: Triton cannot launch kernels here ({error}), so its operators run on the GPU in "
            "plain PyTorch, slower. Triton needs a C compiler and Python's headers (Debian, "
            "Ubuntu: apt install gcc python3-dev)",
            stacklevel=2,
        )
        return False
    return True


if importlib.util.find_spec("triton") is not None and torch.version.hip is None:
    for _name in OPERATORS:
        torch.library.impl(f"dcn::{_name}", "cuda")(operator(_name))
elif torch.version.cuda is not None:
    warnings.warn(
        "dcn: Triton is not installed, so its operators run on a GPU in plain PyTorch, slower. "
        "To install what this PyTorch was released with: pip install triton",
        stacklevel=2,
    )
