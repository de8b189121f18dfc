"""Which kernels run on an NVIDIA GPU: Triton's, or the definition where those cannot.

Triton compiles them when they are first called, and is imported no earlier.
"""

import functools
import importlib.util
import os
import subprocess
import warnings
from collections.abc import Callable

import torch

from ..registration import OPERATORS, Operator

# Compute capabilities below this run the definition; tests compile the kernels from here to 12.0.
OLDEST = (7, 5)

# Passes of operators of which a kernel has failed.
_failed: set[tuple[str, str]] = set()


class KernelError(RuntimeError):
    """A kernel could not be compiled or launched."""


def kernels(operator: Operator) -> tuple[Callable, Callable]:
    """The forward and the backward pass; they run on the device of their first tensor.

    Once one of them fails to compile or to launch, a warning says so and the definition runs.
    """
    return _kernel(operator, "forward"), _kernel(operator, "backward")


def _kernel(operator: Operator, direction: str) -> Callable:
    def call(*args):
        # Triton launches on the current device.
        with torch.cuda.device_of(args[0]):
            device = args[0].get_device() if args[0].is_cuda else None
            failed = (operator.name, direction) in _failed
            if not failed and (device is None or (supports(device) and launches())):
                try:
                    return getattr(operator.implementation("gpu"), direction)(*args)
                except KernelError as error:
                    what = f"the {direction} pass of {operator.name} has failed ({error})"
                    _replaced_by_the_definition(what, error)
                    _failed.add((operator.name, direction))
            return getattr(operator.implementation("definition"), direction)(*args)

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


def add_kernels() -> None:
    """To all operators that have some."""
    if importlib.util.find_spec("triton") is not None and torch.version.hip is None:
        for operator in filter(lambda operator: operator.has("gpu"), OPERATORS.values()):
            operator.add_kernels("cuda", *kernels(operator))
    elif torch.version.cuda is not None:
        warnings.warn(
            "dcn: Triton is not installed, so its operators run on a GPU in plain PyTorch, slower. "
            "To install what this PyTorch was released with: pip install triton",
            stacklevel=2,
        )
