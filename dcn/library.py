"""What all operators share: registration with PyTorch's dispatcher, and argument checks."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def define(
    name: str,
    schema: str,
    reference: Callable,
    fake: Callable,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
    autocast_exempt: tuple[str, ...] = (),
) -> None:
    """Register the operator `dcn::name`.

    `reference` serves every device that no kernel has been registered for. With `backward` the
    operator is differentiable, once, and runs in the autocast dtype where autocast is on;
    arguments named in `autocast_exempt` keep theirs.
    """
    qualname = f"dcn::{name}"
    torch.library.define(qualname, schema)
    torch.library.impl(qualname, "CompositeExplicitAutograd")(reference)
    torch.library.register_fake(qualname)(fake)
    if backward is None:
        torch.library.register_autograd(qualname, _no_double_backward)
    else:
        torch.library.register_autograd(qualname, backward, setup_context=setup_context)
    overload = getattr(torch.ops.dcn, name).default
    # A backward operator takes what the forward one saw, but what it calls must not be cast either.
    exempt = [
        backward is None or argument.name in autocast_exempt
        for argument in overload._schema.arguments
    ]
    for device_type, key in _AUTOCAST_KEYS.items():
        torch.library.impl(qualname, key)(_autocast(overload, device_type, exempt))


_AUTOCAST_KEYS = {
    "cpu": "AutocastCPU",
    "cuda": "AutocastCUDA",
    "xpu": "AutocastXPU",
    "mps": "AutocastMPS",
}


def _autocast(overload: Callable, device_type: str, exempt: list[bool]) -> Callable:
    def kernel(*args):
        dtype = torch.get_autocast_dtype(device_type)
        cast = [
            arg
            if keep or not isinstance(arg, Tensor) or arg.dtype == torch.float64
            else arg.to(dtype)
            for arg, keep in zip(args, exempt, strict=True)
        ]
        with torch.autocast(device_type, enabled=False):
            return overload(*cast)

    return kernel


def _no_double_backward(ctx, *grads):
    raise NotImplementedError("dcn operators are differentiable once: no double backward")


def pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    """An int or a pair of ints as a pair; raises where it is neither, or below `least`."""
    values = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(values) != 2 or not all(isinstance(v, int) for v in values):
        raise TypeError(f"{name}: expected an int or two, got {value!r}")
    if min(values) < least:
        raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    return values


def check_tensors(optional: tuple[str, ...] = (), **tensors: tuple[Tensor | None, int]) -> None:
    """Check name=(tensor, number of dimensions) against the first one's dtype and device.

    Those named in `optional` may be None.

    Raises:
        TypeError: no dense tensor, or a dtype that is not supported or not the first one's.
        NotImplementedError: a tensor has a tangent of forward-mode AD.
        ValueError: another number of dimensions, or another device.
    """
    first_name, (first, _) = next(iter(tensors.items()))
    for name, (tensor, dims) in tensors.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise TypeError(f"{name}: expected a dense tensor, got a {kind} one")
        if _has_tangent(tensor):
            raise NotImplementedError(f"{name}: dcn operators have no forward-mode derivative")
        if tensor.dim() != dims:
            raise ValueError(f"{name}: expected {dims} dimensions, got shape {tuple(tensor.shape)}")
        if tensor.device != first.device:
            raise ValueError(f"{name}: is on {tensor.device}, {first_name} on {first.device}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
        if tensor.dtype != first.dtype and not is_autocast_enabled(first):
            raise TypeError(f"{name}: is {tensor.dtype}, {first_name} is {first.dtype}")


def _has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode AD is on for it; PyTorch would drop the tangent without a word."""
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


def is_autocast_enabled(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device; False where the device knows no autocast."""
    device_type = tensor.device.type
    return device_type in _AUTOCAST_KEYS and torch.is_autocast_enabled(device_type)


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raises ValueError where the shape differs."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")


def check_conv(
    input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, output: Tensor
) -> tuple[int, int]:
    """What kernels rely on, also when called below the public function: (groups, deform_groups).

    Raises:
        ValueError: shapes that do not fit together.
    """
    n, c_in = input.shape[:2]
    c_out, group_in, kh, kw = weight.shape
    groups, deform_groups = c_in // max(group_in, 1), offset.shape[1] // max(2 * kh * kw, 1)
    if min(groups, deform_groups, c_out) < 1 or c_in % deform_groups or c_out % groups:
        raise ValueError(
            f"{c_in} channels do not fit weight {tuple(weight.shape)}, offset {tuple(offset.shape)}"
        )
    out = tuple(output.shape[2:])
    check_shape("weight", weight, (c_out, c_in // groups, kh, kw))
    check_shape("offset", offset, (n, 2 * deform_groups * kh * kw, *out))
    check_shape("output", output, (n, c_out, *out))
    if mask is not None:
        check_shape("mask", mask, (n, deform_groups * kh * kw, *out))
    return groups, deform_groups


def check_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output: Tensor,
    output_size: list[int],
) -> None:
    """What kernels rely on, also when called below the public function.

    Raises:
        ValueError: shapes that do not fit together.
    """
    count = rois.shape[0]
    check_shape("rois", rois, (count, 5))
    check_shape("output", output, (count, input.shape[1], *output_size))
    if offset is not None:
        check_shape("offset", offset, (count, 2, *output_size))
    if mask is not None:
        check_shape("mask", mask, (count, 1, *output_size))
