"""Calls the compiled CPU kernels of csrc/; registers them with PyTorch's dispatcher.

The kernels are a plain C library: they are built without PyTorch and run with any. They share its
thread pool, as both use OpenMP.
"""

import ctypes
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .library import check_conv, check_roi_pool, check_shape
from .reference.deform_roi_pool import image_index
from .reference.sampling import compute_dtype, like, memory_format

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_SIZE, _DATA = ctypes.c_int64, ctypes.c_void_p
_SIZES2, _SIZES4 = _SIZE * 2, _SIZE * 4


def _fields(kind: type, *names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names]


class _DeformConv2d(ctypes.Structure):
    """`DeformConv2d` of csrc/arguments.h."""

    _fields_ = (
        _fields(_SIZE, "dtype", "threads", "n", "c_in", "h", "w", "c_out", "kh", "kw")
        + _fields(_SIZE, "out_h", "out_w", "groups", "deform_groups")
        + _fields(_SIZES2, "stride", "padding", "dilation")
        + [("input", _DATA), ("offset", _DATA), ("offset_stride", _SIZES4)]
        + [("mask", _DATA), ("mask_stride", _SIZES4), ("weight", _DATA), ("bias", _DATA)]
        + [("output", _DATA), ("output_stride", _SIZES4), ("grad_input", _DATA)]
        + [("grad_offset", _DATA), ("grad_offset_stride", _SIZES4)]
        + [("grad_mask", _DATA), ("grad_mask_stride", _SIZES4), ("grad_weight", _DATA)]
    )


class _DeformRoIPool(ctypes.Structure):
    """`DeformRoIPool` of csrc/arguments.h."""

    _fields_ = (
        _fields(_SIZE, "dtype", "threads", "c", "h", "w", "rois", "pooled_h", "pooled_w")
        + _fields(_SIZE, "sampling_ratio")
        + _fields(ctypes.c_double, "spatial_scale", "gamma")
        + _fields(_DATA, "input", "index", "boxes", "offset", "mask", "output")
        + _fields(_SIZES4, "output_stride")
        + _fields(_DATA, "grad_input", "grad_offset", "grad_mask")
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
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise ImportError(str(error)) from error
    library.dcn_sources.restype = library.dcn_capability.restype = ctypes.c_char_p
    sources = Path(__file__).parent / "csrc"  # an installed package may be without
    if sources.is_dir() and library.dcn_sources().decode() != fingerprint(sources):
        raise ImportError("they were built from other sources than these")
    return library


def _call(kernel: Callable, arguments: ctypes.Structure) -> None:
    if kernel(ctypes.byref(arguments)) != 0:
        raise MemoryError("dcn: no memory for the kernel's buffers")


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Shapes as in `dcn.deform_conv2d`, which checks them."""
    if input.dtype == torch.float16:
        wide = (_cast(t, torch.float32) for t in (input, offset, weight, bias, mask))
        out = deform_conv2d(*wide, stride, padding, dilation)
        return out.half().contiguous(memory_format=memory_format(input))
    shape = (input.shape[0], weight.shape[0], *offset.shape[2:])
    out = torch.empty(shape, dtype=input.dtype, memory_format=memory_format(input))
    image, offset, weight, bias, mask = _operands(input, offset, weight, bias, mask)
    arguments = _conv_arguments(image, offset, weight, mask, out, stride, padding, dilation)
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
        arguments.bias = _pointer(bias)
    _call(library.dcn_deform_conv2d_forward, arguments)
    return out


def deform_conv2d_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, offset, weight and mask (empty without a mask)."""
    if input.dtype == torch.float16:
        wide = (_cast(t, torch.float32) for t in (grad, input, offset, weight, mask))
        grad_input, *grads = deform_conv2d_backward(*wide, stride, padding, dilation)
        grads = (
            g.half() if t is None else like(g, t)
            for g, t in zip(grads, (offset, weight, mask), strict=True)
        )
        return (grad_input.half().contiguous(memory_format=memory_format(input)), *grads)
    grad = grad.to(input.dtype)
    image, wide_offset, rows, _, wide_mask = _operands(input, offset, weight, None, mask)
    arguments = _conv_arguments(
        image, wide_offset, rows, wide_mask, grad, stride, padding, dilation
    )
    grad_input = torch.zeros_like(image, dtype=rows.dtype)
    grad_weight = torch.zeros_like(rows)
    grad_offset = torch.empty_like(wide_offset)
    grad_mask = rows.new_empty(0) if mask is None else torch.empty_like(wide_mask)
    arguments.grad_input = _pointer(grad_input)
    arguments.grad_weight = _pointer(grad_weight)
    arguments.grad_offset = _pointer(grad_offset)
    arguments.grad_offset_stride[:] = grad_offset.stride()
    if mask is not None:
        arguments.grad_mask = _pointer(grad_mask)
        arguments.grad_mask_stride[:] = grad_mask.stride()
    _call(library.dcn_deform_conv2d_backward, arguments)
    grad_input = grad_input.to(input.dtype).contiguous(memory_format=memory_format(input))
    return (
        grad_input,
        like(grad_offset, offset),
        like(grad_weight, weight),
        grad_mask.to(grad.dtype) if mask is None else like(grad_mask, mask),
    )


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """Shapes as in `dcn.deform_roi_pool`, which checks them."""
    geometry = (output_size, spatial_scale, sampling_ratio, gamma)
    if input.dtype == torch.float16:
        wide = (_cast(t, torch.float32) for t in (input, rois, offset, mask))
        return deform_roi_pool(*wide, *geometry).half()
    out = input.new_empty(rois.shape[0], input.shape[1], *output_size)
    check_roi_pool(input, rois, offset, mask, out, output_size)
    tensors = _roi_tensors(input, rois, offset, mask)
    arguments = _roi_arguments(*tensors, out, *geometry)
    _call(library.dcn_deform_roi_pool_forward, arguments)
    return out


def deform_roi_pool_backward(
    grad: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, offset and mask (empty without them). RoIs get none."""
    geometry = (output_size, spatial_scale, sampling_ratio, gamma)
    if input.dtype == torch.float16:
        wide = (_cast(t, torch.float32) for t in (grad, input, rois, offset, mask))
        grad_input, *grads = (g.half() for g in deform_roi_pool_backward(*wide, *geometry))
        return (grad_input.contiguous(memory_format=memory_format(input)), *grads)
    grad = grad.to(input.dtype)
    dtype = compute_dtype(input)
    check_roi_pool(input, rois, offset, mask, grad, output_size)
    tensors = _roi_tensors(input, rois, offset, mask)
    arguments = _roi_arguments(*tensors, grad, *geometry)
    grad_input = torch.zeros_like(tensors[0], dtype=dtype)
    grad_offset, grad_mask = (
        grad.new_empty(0) if t is None else torch.empty(t.shape, dtype=dtype)
        for t in (offset, mask)
    )
    arguments.grad_input = _pointer(grad_input)
    arguments.grad_offset = _pointer(None if offset is None else grad_offset)
    arguments.grad_mask = _pointer(None if mask is None else grad_mask)
    _call(library.dcn_deform_roi_pool_backward, arguments)
    return (
        grad_input.to(input.dtype).contiguous(memory_format=memory_format(input)),
        grad_offset.to(input.dtype),
        grad_mask.to(input.dtype),
    )


def _operands(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """In the layouts and dtypes that the kernels want; a copy only of what is not in them."""
    dtype = compute_dtype(input)
    return (
        input.contiguous(memory_format=torch.channels_last),
        offset.to(dtype),
        weight.to(dtype).contiguous(memory_format=torch.channels_last),
        None if bias is None else bias.to(dtype).contiguous(),
        _cast(mask, dtype),
    )


def _conv_arguments(
    image: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    output: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> _DeformConv2d:
    """`output` is the gradient in the backward pass. The tensors must outlive the call."""
    groups, deform_groups = check_conv(image, offset, weight, mask, output)
    n, c_in, h, w = image.shape
    c_out, _, kh, kw = weight.shape
    out = output.shape[2:]
    return _DeformConv2d(
        dtype=_DTYPES[image.dtype],
        threads=torch.get_num_threads(),
        n=n,
        c_in=c_in,
        h=h,
        w=w,
        c_out=c_out,
        kh=kh,
        kw=kw,
        out_h=out[0],
        out_w=out[1],
        groups=groups,
        deform_groups=deform_groups,
        stride=_SIZES2(*stride),
        padding=_SIZES2(*padding),
        dilation=_SIZES2(*dilation),
        input=_pointer(image),
        offset=_pointer(offset),
        offset_stride=_SIZES4(*offset.stride()),
        mask=_pointer(mask),
        mask_stride=_SIZES4(*(mask.stride() if mask is not None else ())),
        weight=_pointer(weight),
        output=_pointer(output),
        output_stride=_SIZES4(*output.stride()),
    )


def _roi_tensors(
    input: Tensor, rois: Tensor, offset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Input, image indices, boxes, offset and mask as the kernels want them."""
    dtype = compute_dtype(input)
    return (
        input.contiguous(memory_format=torch.channels_last),
        image_index(rois, input.shape[0]),
        rois[:, 1:].to(dtype).contiguous(),
        None if offset is None else offset.to(dtype).contiguous(),
        None if mask is None else mask.to(dtype).contiguous(),
    )


def _roi_arguments(
    image: Tensor,
    index: Tensor,
    boxes: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output: Tensor,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> _DeformRoIPool:
    """`output` is the gradient in the backward pass. The tensors must outlive the call."""
    return _DeformRoIPool(
        dtype=_DTYPES[image.dtype],
        threads=torch.get_num_threads(),
        c=image.shape[1],
        h=image.shape[2],
        w=image.shape[3],
        rois=boxes.shape[0],
        pooled_h=output_size[0],
        pooled_w=output_size[1],
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
        gamma=gamma,
        input=_pointer(image),
        index=_pointer(index),
        boxes=_pointer(boxes),
        offset=_pointer(offset),
        mask=_pointer(mask),
        output=_pointer(output),
        output_stride=_SIZES4(*output.stride()),
    )


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


try:
    library = _load()
except ImportError as error:
    library = None
    warnings.warn(
        f"dcn: no compiled kernels for the CPU ({error}), so its operators run there in plain "
        "PyTorch, slower. To build them, with a C++ compiler installed: "
        "pip install --force-reinstall --no-deps . (or -e .) in dcn's repository",
        stacklevel=2,
    )
else:
    for _kernel in (
        deform_conv2d,
        deform_conv2d_backward,
        deform_roi_pool,
        deform_roi_pool_backward,
    ):
        torch.library.impl(f"dcn::{_kernel.__name__}", "cpu")(_kernel)
