"""Registers Triton kernels for NVIDIA GPUs with PyTorch's dispatcher.

Triton compiles them when they are first called, and is imported no earlier.
"""

import functools
import importlib
import importlib.util
import os
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


# Compute capabilities below this run the definition; tests compile the kernels from here to 12.0.
OLDEST = (7, 5)

# Operators of which a kernel has failed.
_failed: set[str] = set()


class KernelError(RuntimeError):
    """A kernel could not be compiled or launched."""


def operator(name: str) -> Callable:
    """The kernels of an operator; they run on the device of its first tensor.

    Once one of them fails to compile or to launch, a warning says so and the definition runs.
    """
    module, function = OPERATORS[name]

    def of(package: str) -> Callable:
        return getattr(importlib.import_module(f"{package}.{module}"), function)

    def call(*args):
        # Triton launches on the current device.
        with torch.cuda.device_of(args[0]):
            device = args[0].get_device() if args[0].is_cuda else None
            if name not in _failed and (device is None or (supports(device) and launches())):
                try:
                    return of(__name__)(*args)
                except KernelError as error:
                    _replaced_by_the_definition(f"{name} has failed ({error})", error)
                    _failed.add(name)
            return of("dcn.reference")(*args)

    return call


@functools.cache
def supports(device: int) -> bool:
    """Whether a GPU is of a compute capability that the kernels are compiled for."""
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        gpu = "{} has compute capability {}.{}".format(
            torch.cuda.get_device_name(device), *capability
        )
        _replaced_by_the_definition("{}, and the kernels need {}.{}".format(gpu, *OLDEST))
    return capability >= OLDEST


@functools.cache
def launches() -> bool:
    """Whether Triton can launch kernels: a C compiler builds what it launches them with, once."""
    from triton.runtime import driver

    try:
        driver.active.get_current_device()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        _replaced_by_the_definition(
            f"Triton cannot launch kernels here ({error}). It needs a C compiler and Python's "
            "headers (Debian, Ubuntu: apt install gcc python3-dev)",
            error,
        )
        return False
    return True


def _replaced_by_the_definition(reason: str, error: Exception | None = None) -> None:
    """Warns that the definition runs on the GPU; DCN_STRICT=1 makes an error of it."""
    if os.environ.get("DCN_STRICT") == "1":
        raise KernelError(reason) from error
    warnings.warn(f"dcn: {reason}; plain PyTorch runs instead, slower", stacklevel=2)


if importlib.util.find_spec("triton") is not None and torch.version.hip is None:
    for _name in OPERATORS:
        torch.library.impl(f"dcn::{_name}", "cuda")(operator(_name))
elif torch.version.cuda is not None:
    warnings.warn(
        "dcn: Triton is not installed, so its operators run on a GPU in plain PyTorch, slower. "
        "To install what this PyTorch was released with: pip install triton",
        stacklevel=2,
    )
