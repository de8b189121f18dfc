"""Which tile sizes a kernel runs with.

They are timed once for each kind of call, by Triton's autotuner, which keeps what it found in
Triton's cache on disk.
"""

import threading
import warnings
import zlib
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import KernelError

# Configurations by kind of call: a call past the autotuner takes less of the host's time.
_chosen: dict[tuple, triton.Config] = {}
# An autotuner keeps what it works on in itself.
_timing = threading.Lock()


def tile(num_warps: int, num_stages: int = 1, **blocks: int) -> triton.Config:
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages)


def tuned(
    *configs: triton.Config, key: tuple[str, ...], reset_to_zero: tuple[str, ...] = ()
) -> Callable:
    """Decorates a kernel; `key` names the arguments that a choice among `configs` depends on.

    The first one is to run on every GPU, with float64 the last one.
    """
    return triton.autotune(
        list(configs), list(key), reset_to_zero=list(reset_to_zero), cache_results=True
    )


def launch(
    kernel: triton.runtime.Autotuner, grid: Callable[[dict], tuple], arguments: dict, **more
) -> None:
    """Runs a tuned kernel with those of the arguments that it names, and with `more`.

    A fixed configuration serves where none is timed: under
    `torch.use_deterministic_algorithms(True)`, as timings are not the same twice; while a CUDA
    graph is captured before a call of the kind was timed; for float64, which nobody trains in; and
    in Triton's interpreter.
    """
    taken = _taken(kernel, arguments, more)
    dtypes = [a.dtype for a in taken.values() if isinstance(a, Tensor)]
    kind = (kernel, *(taken[name] for name in kernel.keys), *dtypes)
    is_float64 = torch.float64 in dtypes
    config = kernel.configs[-1 if is_float64 else 0]
    if not (
        is_float64 or torch.are_deterministic_algorithms_enabled() or triton.knobs.runtime.interpret
    ):
        if kind not in _chosen and not torch.cuda.is_current_stream_capturing():
            with _timing:
                try:
                    _start(kernel, grid, taken)
                    _chosen[kind] = kernel.best_config
                    return
                except RuntimeError as error:
                    if not _out_of_memory(error):
                        raise
                _chosen[kind] = config
            warnings.warn(
                "dcn: no memory is left to time tile sizes in, so a kernel runs with a fixed one",
                stacklevel=2,
            )
            for name in kernel.reset_to_zero:  # what was timed has added to it
                taken[name].zero_()
        config = _chosen.get(kind, config)
    _start(kernel.fn, grid, taken | config.all_kwargs())


def run(kernel: triton.runtime.JITFunction, grid: tuple, arguments: dict, **more) -> None:
    """Runs a kernel that is not tuned with those of the arguments that it names, and `more`."""
    _start(kernel, grid, _taken(kernel, arguments, more))


def _start(kernel: triton.runtime.KernelInterface, grid: Callable | tuple, taken: dict) -> None:
    """Raises KernelError where the kernel fails to compile or to launch."""
    try:
        kernel[grid](**taken)
    except Exception as error:
        if _out_of_memory(error):
            raise
        raise KernelError(f"{type(error).__name__}: {error}") from error


def _out_of_memory(error: Exception) -> bool:
    """PyTorch's allocator has a class for it, the driver only a message."""
    return "out of memory" in str(error)


def _taken(kernel: triton.runtime.KernelInterface, arguments: dict, more: dict) -> dict:
    return {name: arguments[name] for name in kernel.arg_names if name in arguments} | more


def call_kind(tensor: Tensor, count: int) -> int:
    """A number for calls that are timed once: of sizes within a factor of two, on one model of GPU.

    Triton's own keys know a GPU's capability alone.
    """
    model = torch.cuda.get_device_name(tensor.device) if tensor.is_cuda else "interpreter"
    return zlib.crc32(f"{model}, {triton.next_power_of_2(count)}".encode()) >> 1


def index_dtype(*tensors: Tensor | None) -> tl.dtype:
    """What numbers the elements of all of them.

    Of a slice, those between its own as well; of an expanded tensor, those of a copy.
    """
    largest = 0
    for t in tensors:
        if t is not None:
            steps = zip(t.shape, t.stride(), strict=True)
            extent = 1 + sum((size - 1) * stride for size, stride in steps)
            largest = max(largest, extent, t.numel())
    return tl.int32 if largest < 2**31 else tl.int64


def dot_precision(tensor: Tensor) -> str:
    """How float32 is multiplied: as `torch.backends.cudnn` says that convolutions are to.

    Three products of TF32 are as exact as float32, to a bit or two, and run on tensor cores.
    """
    if tensor.dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "tf32x3"


def multiprocessors(tensor: Tensor) -> int:
    if not tensor.is_cuda:
        return 1  # Triton's interpreter
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count
