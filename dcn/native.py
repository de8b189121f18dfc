"""Loads the compiled CPU kernels of csrc/, and adds them to the operators.

The kernels are a plain C library: they are built without PyTorch and run with any. Where PyTorch
uses GNU's OpenMP, they share its thread pool.
"""

import ctypes
import hashlib
import struct
import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .grid import Deltas, Grid
from .registration import OPERATORS

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_DIMS = 6  # of `Tensor` in csrc/arguments.h
_NONE = (0,) * (1 + 2 * _DIMS)
_PADDING = [(0,) * (_DIMS - dims) for dims in range(_DIMS + 1)]


def call(kernel: str, dtype: torch.dtype, *fields: Tensor | Deltas | Grid | float | None) -> None:
    """Runs a kernel for images of that dtype.

    `fields` are those of its structure in csrc/arguments.h, in that order. Tensors are None where
    there are none, or where a gradient is not wanted. They must outlive the call.
    """
    values = [_TYPES[dtype], torch.get_num_threads()]
    for field in fields:
        values += _numbers(field)
    packed = _layout(kernel, tuple(map(type, values))).pack(*values)
    if getattr(kernels, f"dcn_{kernel}")(packed) != 0:  # the type is one of those it knows
        raise MemoryError("dcn: no memory for the kernel's buffers")


def _numbers(field: Tensor | Deltas | Grid | float | None) -> tuple[float, ...]:
    """All whole numbers and pointers have 64 bits, so there are no gaps between them."""
    if field is None:
        return _NONE
    if isinstance(field, Tensor):
        rest = _PADDING[field.dim()]
        return (field.data_ptr(), *field.shape, *rest, *field.stride(), *rest)
    if isinstance(field, Deltas):
        return (*_numbers(field.y), *_numbers(field.x), *_numbers(field.mask))
    if isinstance(field, Grid):
        return _grid_numbers(field)
    return (field,)


@lru_cache(maxsize=256)
def _grid_numbers(grid: Grid) -> tuple[float, ...]:
    flags = map(int, (grid.by_column, grid.without_centre, grid.clamped))
    return (*grid.kernel, *grid.stride, *flags, *map(float, (*grid.start, *grid.step, grid.scale)))


@lru_cache(maxsize=64)
def _layout(kernel: str, types: tuple[type, ...]) -> struct.Struct:
    layout = struct.Struct("".join("d" if kind is float else "q" for kind in types))
    if layout.size != getattr(kernels, f"dcn_{kernel}_size")():
        raise TypeError(f"{kernel}: the fields are not those of csrc/arguments.h")
    return layout


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


def add_kernels() -> None:
    """To all operators that have some, if they are built."""
    for operator in OPERATORS.values():
        if kernels is not None and operator.has("cpu"):
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
