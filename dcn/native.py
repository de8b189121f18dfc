"""Loads the compiled CPU kernels of csrc/, and adds them to the operators.

The kernels are a plain C library: they are built without PyTorch and run with any. Where PyTorch
uses GNU's OpenMP, they share its thread pool.
"""

import ctypes
import hashlib
import warnings
from pathlib import Path

import torch

from .grid import Deltas
from .grid import Grid as GridOfKernel
from .registration import OPERATORS

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_DIMS = ctypes.c_int64 * 6


class Tensor(ctypes.Structure):
    """`Tensor` of csrc/arguments.h."""

    _fields_ = (("data", ctypes.c_void_p), ("size", _DIMS), ("stride", _DIMS))


class Grid(ctypes.Structure):
    """`Grid` of csrc/arguments.h."""

    _fields_ = (
        ("kernel", ctypes.c_int64 * 2),
        ("stride", ctypes.c_int64 * 2),
        ("by_column", ctypes.c_int64),
        ("without_centre", ctypes.c_int64),
        ("start", ctypes.c_double * 2),
        ("step", ctypes.c_double * 2),
        ("scale", ctypes.c_double),
    )


class Samples(ctypes.Structure):
    """`Deltas` of csrc/arguments.h."""

    _fields_ = (("y", Tensor), ("x", Tensor), ("mask", Tensor))


class Call(ctypes.Structure):
    """`Call` of csrc/arguments.h; what kernels take has more fields."""

    _fields_ = (("dtype", ctypes.c_int64), ("threads", ctypes.c_int64))


def tensor(values: torch.Tensor | None) -> Tensor:
    """It must outlive the call."""
    if values is None:
        return Tensor()
    return Tensor(values.data_ptr(), _DIMS(*values.shape), _DIMS(*values.stride()))


def deltas(views: Deltas | None) -> Samples:
    return Samples() if views is None else Samples(*map(tensor, views))


def grid(points: GridOfKernel) -> Grid:
    return Grid(
        points.kernel,
        points.stride,
        points.by_column,
        points.without_centre,
        points.start,
        points.step,
        points.scale,
    )


def fingerprint(sources: Path) -> str:
    """What setup.py builds into the kernels: a digest of what they are made of."""
    digest = hashlib.sha256()
    for file in sorted([*sources.glob("*.h"), *sources.glob("*.cpp")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _load() -> ctypes.CDLL:
    """The kernels; ImportError says why there are none."""
    # Beside this file and nowhere else: another copy of dcn may be installed.
    file = Path(__file__).with_name("_kernels.so")
    if not file.exists():
        raise ImportError("they have not been built")
    try:
        loaded = ctypes.CDLL(str(file))
    except OSError as error:
        raise ImportError(str(error)) from error
    loaded.dcn_sources.restype = loaded.dcn_capability.restype = ctypes.c_char_p
    loaded.dcn_limit_vectors.argtypes = [ctypes.c_int64]
    sources = Path(__file__).parent / "csrc"  # an installed package may be without
    if sources.is_dir() and loaded.dcn_sources().decode() != fingerprint(sources):
        raise ImportError("they were built from other sources than these")
    return loaded


def call(kernel: str, arguments: Call, dtype: torch.dtype) -> None:
    """Runs a kernel of csrc/arguments.h for images of that dtype."""
    arguments.dtype, arguments.threads = _TYPES[dtype], torch.get_num_threads()
    if getattr(kernels, f"dcn_{kernel}")(ctypes.byref(arguments)) != 0:
        raise MemoryError("dcn: no memory for the kernel's buffers")


def add_kernels() -> None:
    """To all operators, if there are any."""
    if kernels is not None:
        for operator in OPERATORS.values():
            own = operator.implementation("cpu")
            operator.add_kernels("cpu", own.forward, own.backward)


try:
    kernels = _load()
except ImportError as error:
    kernels = None
    warnings.warn(
        f"dcn: no compiled kernels for the CPU ({error}), so its operators run there in plain "
        "PyTorch, slower. To build them, with a C++ compiler installed: "
        "pip install --force-reinstall --no-deps . (or -e .) in dcn's repository",
        stacklevel=2,
    )
