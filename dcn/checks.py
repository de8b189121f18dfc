"""Checks of arguments, whose errors name the argument, what it was and what was expected."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import wrap_torch_function

from .registration import autocast_dtype

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def integer(name: str, value: int, least: int, most: int) -> int:
    """Also of NumPy's types.

    Raises:
        TypeError: no int.
        ValueError: below `least` or above `most`.
    """
    if not _is_integer(value):
        raise TypeError(f"{name}: expected an int, got {_shown(value)}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {value!r}")
    return value if isinstance(value, int) else int(value)


def number(name: str, value: float) -> float:
    """Finite.

    Raises:
        TypeError: no real number.
        ValueError: not finite.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {_shown(value)}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return value


def pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    """An int or a pair of ints, also of NumPy's types, as a pair.

    Raises:
        TypeError: neither.
        ValueError: below `least`, or from 2**31 up.
    """
    values = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(values) != 2 or not all(map(_is_integer, values)):
        raise TypeError(f"{name}: expected an int or two, got {_shown(value)}")
    if min(values) < least:
        raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    if max(values) >= 2**31:
        raise ValueError(f"{name}: expected less than 2**31, got {value!r}")
    return tuple(v if isinstance(v, int) else int(v) for v in values)  # a SymInt stays one


def _is_integer(value: object) -> bool:
    # The first question is a tenth of the time of the second.
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def _shown(value: object) -> str:
    return "a tensor" if isinstance(value, Tensor) else repr(value)  # not its elements


@wrap_torch_function(lambda input, channels: (input,))
def check_map(input: Tensor, channels: int) -> Tensor:
    """[N, channels, H, W] and not empty, but for N; returns it.

    Raises:
        TypeError, NotImplementedError: as `check_tensors`.
        ValueError: of another shape.
    """
    check_tensors(input=(input, 4))
    if input.shape[1] != channels or 0 in input.shape[2:]:
        raise ValueError(
            f"input: expected [N, {channels}, H, W] with pixels, got shape {tuple(input.shape)}"
        )
    return input


def check_tensors(
    optional: tuple[str, ...] = (),
    float32: tuple[str, ...] = (),
    **tensors: tuple[Tensor | None, int],
) -> None:
    """Check name=(tensor, number of dimensions) against the first one's dtype and device.

    Those named in `optional` may be None, those in `float32` may be of that dtype whatever the
    first one's is. Dtypes are what autocast makes of them, where it is on.

    Raises:
        TypeError: no dense tensor, or a dtype that is not supported or not the first one's.
        NotImplementedError: a tensor has a tangent of forward-mode AD, or is differentiated by
            torch.func.
        ValueError: another number of dimensions, or another device.
    """
    first_name, (first, _) = next(iter(tensors.items()))
    forward_mode = forward_ad._current_level >= 0
    eager = not torch.compiler.is_compiling()
    for name, (tensor, dims) in tensors.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise TypeError(f"{name}: expected a dense tensor, got a {kind} one")
        # PyTorch would drop the tangent without a word.
        if forward_mode and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{name}: dcn operators have no forward-mode derivative")
        if eager and torch._C._functorch.is_gradtrackingtensor(tensor):
            raise NotImplementedError(
                f"{name}: dcn operators have no gradient by torch.func; torch.autograd.grad has"
            )
        if tensor.dim() != dims:
            raise ValueError(f"{name}: expected {dims} dimensions, got shape {tuple(tensor.shape)}")
        if tensor.device != first.device:
            raise ValueError(f"{name}: is on {tensor.device}, {first_name} on {first.device}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
        if tensor.dtype == first.dtype or (name in float32 and tensor.dtype == torch.float32):
            continue
        dtype, expected = autocast_dtype(tensor), autocast_dtype(first)
        if dtype != expected:
            or_float32 = " (or float32)" if name in float32 else ""
            raise TypeError(f"{name}: is {dtype}, {first_name} is {expected}{or_float32}")


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raises ValueError where the shape differs."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")
