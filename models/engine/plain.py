"""What mmengine puts into a checkpoint beside tensors, as plain values.

``torch.load(weights_only=True)`` reads plain values as they are. For older checkpoints, where
mmengine pickled its histories with numpy's arrays and numbers, :data:`STAND_INS` read those
pickles: they take numbers, and the bytes of numbers, and call nothing that a file names.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def to_plain(value, name, known=None):
    """``value`` with numpy's values as Python's or tensors and each HistoryBuffer as a dict.

    Args:
        value: What is to be saved: dicts, sequences, tensors, numbers, strings, None.
        name (str): What errors call it.
        known (dict, optional): What came of parts that are met again, by their identity.

    Raises:
        TypeError: it holds an object that could not be read again; the message names its key.
    """
    known = {} if known is None else known
    if id(value) not in known:
        known[id(value)] = value, _to_plain(value, name, known)  # kept, so that no id comes twice
    return known[id(value)][1]


def _to_plain(value, name, known):
    if isinstance(value, HistoryBuffer):
        values, counts = (torch.from_numpy(np.asarray(part)) for part in value.data)
        return {"values": values, "counts": counts, "max_length": value.max_length}
    if isinstance(value, Mapping):
        return {key: to_plain(inner, f"{name}.{key}", known) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        inner = [to_plain(inner, f"{name}[{i}]", known) for i, inner in enumerate(value)]
        return type(value)(inner) if type(value) in (tuple, set) else inner
    if isinstance(value, _Array):
        value = value.values
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if isinstance(value, _DType):
        return value.numpy.str
    for kinds, plain in (
        ((bool, np.bool_), bool),
        ((int, np.integer), int),
        ((float, np.floating), float),
        (str, str),
    ):
        if isinstance(value, kinds):
            return plain(value)
    if value is None or isinstance(value, torch.Tensor | bytes):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which no checkpoint can hold safely")


def is_plain(value):
    """Whether :func:`to_plain` can take it; lists that hold themselves it cannot."""
    try:
        to_plain(value, "")
    except (TypeError, RecursionError):
        return False
    return True


def is_history(value):
    """Whether it is a HistoryBuffer, or what :func:`to_plain` made of one."""
    if not isinstance(value, dict):
        return isinstance(value, HistoryBuffer)
    values, counts, length = (value.get(key) for key in ("values", "counts", "max_length"))
    tensors = all(isinstance(part, torch.Tensor) and part.dim() == 1 for part in (values, counts))
    return tensors and len(values) == len(counts) and type(length) is int


def from_plain(log_scalars):
    """The histories of a message hub by name, each a HistoryBuffer again; others are left out."""
    return {
        name: HistoryBuffer(*value.data, value.max_length)
        if isinstance(value, _History)
        else HistoryBuffer(
            value["values"].cpu().numpy(), value["counts"].cpu().numpy(), value["max_length"]
        )
        for name, value in log_scalars.items()
        if is_history(value)
    }


class _DType:
    """In place of numpy.dtype: numbers only."""

    def __init__(self, code, align=False, copy=False):
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL numpy.dtype({code!r})")
        self.numpy = np.dtype(code)

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])

    def read(self, data):
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("Unsupported global: GLOBAL numpy data that is not bytes")
        return np.frombuffer(data, self.numpy).astype(self.numpy.newbyteorder("="), copy=False)


class _Array:
    """In place of numpy.ndarray: made by ``_reconstruct``, filled with the state that follows."""

    values = np.zeros(0)

    def __init__(self, *arguments):
        raise pickle.UnpicklingError("Unsupported global: GLOBAL numpy.ndarray, called")

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        self.values = dtype.read(data).reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(kind, *arguments):
    return _Array.__new__(_Array)


def _scalar(dtype, data):
    return dtype.read(data)[0].item()


class _History(HistoryBuffer):
    """In place of HistoryBuffer: filled with two arrays."""

    def __init__(self, *arguments):
        raise pickle.UnpicklingError("Unsupported global: GLOBAL HistoryBuffer, called")

    def __setstate__(self, state):
        values, counts = state["_log_history"].values, state["_count_history"].values
        HistoryBuffer.__init__(self, values, counts, state["max_length"])


def _method(owner, name):
    """In place of getattr, by which a HistoryBuffer pickled its methods: nobody needs them."""


STAND_INS = [
    (_History, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_Array, "numpy.ndarray"),
    (_DType, "numpy.dtype"),
    (_method, "builtins.getattr"),
    *(
        (function, f"numpy.{core}.multiarray.{name}")  # numpy 1 and 2
        for function, name in ((_reconstruct, "_reconstruct"), (_scalar, "scalar"))
        for core in ("core", "_core")
    ),
]


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy's arrays, which torch.load does not take, by their stand-ins."""

    def find_class(self, module, name):
        known = {called: stand_in for stand_in, called in STAND_INS if called.startswith("numpy.")}
        known |= {"_codecs.encode": _bytes, "collections.OrderedDict": OrderedDict}
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")
        return known[f"{module}.{name}"]


def _bytes(text, encoding):
    """In place of codecs.encode, by which protocol 2 has bytes."""
    return text.encode("latin1")
