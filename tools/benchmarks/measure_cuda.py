"""Time and peak memory of functions on a GPU that compute the same thing, side by side."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

DEVICE = "cuda"
# 10 to 20 ms of a GPU, in which the host enqueues a call.
SLEEP_CYCLES = 20_000_000
# More than the L2 cache of any GPU.
FLUSH_BYTES = 256 * 2**20
WARM_UP = 3


class Timing(NamedTuple):
    """Of every repeat."""

    ms: list[float]  # from the call's first kernel to its last
    host_us: list[float]  # until the call returned, everything enqueued
    late: list[bool]  # the GPU had begun before everything was enqueued: ms has some of the host's


def available() -> bool:
    return torch.cuda.is_available()


def attempt(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """What it returns, or what it failed with, by name."""
    try:
        return function(), None
    except Exception as error:  # a type that is not supported, out of memory, a kernel's compiler
        return None, f"{type(error).__name__}: {error}"


def warm_up(function: Callable) -> None:
    """Until nothing is left to compile, to tune or to allocate, and whatever fails has failed."""
    for _ in range(WARM_UP):
        function()
    torch.cuda.synchronize()


def times(functions: dict[str, Callable], repeats: int) -> dict[str, Timing]:
    """Of warm functions, in turns, each with nothing of its own left in the L2 cache.

    The GPU sleeps until a call is enqueued as a whole, so that its time is the GPU's and not
    Python's.
    """
    flush = torch.zeros(FLUSH_BYTES, dtype=torch.uint8, device=DEVICE)
    result = {name: Timing([], [], []) for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            torch.cuda._sleep(SLEEP_CYCLES)
            flush.sum()  # read, as what is written would still be on its way out
            start.record()
            called = time.perf_counter()
            function()
            returned = time.perf_counter()
            end.record()
            result[name].late.append(start.query())
            end.synchronize()
            result[name].ms.append(start.elapsed_time(end))
            result[name].host_us.append((returned - called) * 1e6)
    return result


def peak_extra_memory(
    function: Callable[[], Iterable[Tensor | None]],
) -> tuple[float, tuple[Tensor | None, ...]]:
    """Megabytes (10^6 bytes) that a call allocates at its worst beyond what it returns; and that.

    Of PyTorch's allocator, which Triton's kernels and cuDNN use as well.
    """
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = tuple(function())
    peak = torch.cuda.max_memory_allocated()
    returned = sum(t.numel() * t.element_size() for t in results if t is not None)
    return max(0.0, peak - before - returned) / 1e6, results
