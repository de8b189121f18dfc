"""Time, peak memory and difference of functions that compute the same thing, side by side."""

import ctypes
import gc
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import collect_env

import dcn


def times(functions: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every repeat, after one that is not counted.

    The functions take turns, so that what else the machine does hits all of them alike.
    """
    result = {name: [] for name in functions}
    for i in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if i > 0:
                result[name].append((time.perf_counter() - start) * 1e3)
    return result


def peak_extra_memory(
    function: Callable[[], Iterable[Tensor | None]],
) -> tuple[float, tuple[Tensor | None, ...]]:
    """Megabytes (10^6 bytes) that a call needs at its worst beyond what it returns; and that.

    The growth of the process's peak resident memory (Linux), which also sees what does not come
    from PyTorch's allocator.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # pages that malloc kept would be used without being seen
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    results = tuple(function())
    peak = _status("VmHWM")
    returned = sum(t.numel() * t.element_size() for t in results if t is not None)
    return max(0.0, (peak - before) * 1024 - returned) / 1e6, results


def _status(key: str) -> int:
    """Of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise RuntimeError(f"no {key} in /proc/self/status")


def largest_difference(actual: Iterable[Tensor | None], expected: Iterable[Tensor | None]) -> float:
    """Largest |difference| of any tensor, as a share of that tensor's largest |value|.

    Not a number, where any is.
    """
    shares = [0.0]
    for a, e in zip(actual, expected, strict=True):
        if a is None or e is None or e.numel() == 0:
            continue
        scale = e.abs().max().item() or 1.0
        shares.append((a.to(e.dtype) - e).abs().max().item() / scale)
    return torch.tensor(shares, dtype=torch.float64).max().item()


def machine() -> dict:
    """What the figures hold for."""
    cpu = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = f"{line.split(':')[1].strip()}, {cpu}"
            break
    gpu = torch.cuda.is_available()
    return {
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "driver": collect_env.get_nvidia_driver_version(collect_env.run) if gpu else None,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "dcn_vectors": dcn.cpu.library and dcn.cpu.library.dcn_capability().decode(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
