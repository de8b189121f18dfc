"""Time, peak memory and difference of functions that compute the same thing, side by side."""

import argparse
import ctypes
import gc
import importlib
import platform
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from types import ModuleType

import torch
from torch import Tensor
from torch.utils import collect_env

import dcn

WARM_UP = {"cpu": 1, "cuda": 3}
# 10 to 20 ms of a GPU, in which the host enqueues a call.
SLEEP_CYCLES = 20_000_000
# More than the L2 cache of any GPU.
FLUSH_BYTES = 256 * 2**20

# What it returns are tensors, if anything.
Call = Callable[[], Iterable[Tensor] | None]


def host_clock(call: Call) -> dict[str, float]:
    start = time.perf_counter()
    call()
    return {"ms": (time.perf_counter() - start) * 1e3}


def second_clock(call: Call) -> dict[str, float]:
    """Of short calls, the second: the first one pays for what another call left of memory."""
    call()
    return host_clock(call)


def gpu_clock(call: Call) -> dict[str, float]:
    """The GPU's own time, of a call that finds nothing in the L2 cache.

    The GPU sleeps until the whole call is enqueued, so that its time does not include Python's.
    `host_us` is how long enqueueing took; `late` is 1 if the GPU woke before that, so that its time
    does include some of Python's.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP_CYCLES)
    flush_cache()
    start.record()
    called = time.perf_counter()
    call()
    returned = time.perf_counter()
    end.record()
    late = start.query()
    end.synchronize()
    return {
        "ms": start.elapsed_time(end),
        "host_us": (returned - called) * 1e6,
        "late": float(late),
    }


def flush_cache() -> None:
    # Read, as what is written would still be on its way out.
    torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda").sum()


def side_by_side(calls: dict[str, Call], repeats: int, device: str, clock=host_clock) -> dict:
    """Figures of each call, or its `error`.

    Medians of what `clock(call)` reads, all of its times (`ms_all`), and the extra memory in MB.
    The calls take turns, so that what else the machine does affects all of them alike; this is why
    neither `torch.utils.benchmark.Timer` nor `triton.testing.do_bench` measures them, which repeat
    one call at a time.
    """
    figures = {}
    for name, call in calls.items():  # until nothing is left to compile, to tune or to allocate
        error = attempt(call, WARM_UP[device])[1]
        figures[name] = {} if error is None else {"error": error}
    readings = {name: [] for name, found in figures.items() if not found}
    for _ in range(repeats):
        for name, taken in readings.items():
            taken.append(clock(calls[name]))
    for name, taken in readings.items():
        figures[name] = {key: median(reading[key] for reading in taken) for key in taken[0]}
        figures[name]["ms_all"] = [reading["ms"] for reading in taken]
        figures[name]["mb"] = peak_extra_memory(calls[name], device)
    return figures


def attempt(call: Call, times: int = 1) -> tuple[Iterable[Tensor] | None, str | None]:
    """What the call returns, and None or the name and text of the exception that it raises."""
    try:
        for _ in range(times):
            result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result, None
    except Exception as error:  # an unsupported type, out of memory, a kernel's compiler
        return None, f"{type(error).__name__}: {error}"


def peak_extra_memory(call: Call, device: str) -> float:
    """Megabytes (10^6 bytes) that a call needs at its peak beyond what it returns.

    On a CPU, by the growth of the process's peak resident memory (Linux), which includes what does
    not come from PyTorch's allocator; on a GPU, by PyTorch's allocator, which Triton's kernels and
    cuDNN use as well.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = call()
        peak = torch.cuda.max_memory_allocated()
    else:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # pages that malloc kept would be used without being seen
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        results = call()
        peak = _resident("VmHWM")
    returned = sum(tensor.nbytes for tensor in results or ())
    return max(0, peak - before - returned) / 1e6


def _resident(key: str) -> int:
    """Bytes, of /proc/self/status."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def largest_difference(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Largest |difference| of any tensor, as a share of that tensor's largest |value|.

    Not a number, where any is.
    """
    pairs = zip(actual, expected, strict=True)
    shares = [(a - e).abs().max().item() / (e.abs().max().item() or 1.0) for a, e in pairs]
    return torch.tensor(shares, dtype=torch.float64).max().item()


def mmcv_operators() -> ModuleType | None:
    """`mmcv.ops`; None where mmcv is not installed, or without its compiled operators."""
    try:
        compiled = importlib.import_module("mmcv._ext").__file__
    except ImportError:
        return None
    # models/mmcv_ext.py may stand in for them.
    return None if compiled.endswith(".py") else importlib.import_module("mmcv.ops")


def positive(text: str) -> int:
    """The value of an option."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def machine() -> dict:
    """What the figures hold for."""
    cpu = platform.machine()
    if model := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
        cpu = f"{model[1]}, {cpu}"
    gpu = torch.cuda.is_available()
    return {
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "driver": collect_env.get_nvidia_driver_version(collect_env.run) if gpu else None,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "dcn_vectors": dcn.native.kernels and dcn.native.kernels.dcn_capability().decode(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
