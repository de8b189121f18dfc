"""ONNX of dcn's operators, as translations that `torch.onnx.export` takes.

Needs the package onnxscript. Everything is written in standard operators:

- `deform_conv2d` is DeformConv (opset 19), or, for runtimes without it, GridSample and a 1×1
  convolution;
- `deform_roi_pool` is RoIAlign, by RoIs of one bin each where bins move;
- `dcnv3` and `dcnv4` are a depthwise `deform_conv2d` by ones;
- `local_deform_kernel` writes its kernels out, and samples moving inputs by GridSample.

`ConvOffset2D`, `GlobalDeformKernel2d` and `CondConv2d` are plain PyTorch and need none.

An offset that is not finite and an RoI whose corners are in the wrong order mean what the runtime
makes of them; so do, with a sampling ratio of 0, RoIs of no area or far larger than the map. Where
the ratio is 0 and bins move, those of a whole number of pixels may have a sample more per side.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from onnxscript import ir
from onnxscript import opset19 as op

from .aggregation.definition import grid_of as aggregation_grid
from .deform_conv.definition import grid_of_kernel
from .deform_kernel.definition import scope_grid
from .grid import Grid

# The first opset with DeformConv, and the first in which it, GridSample and RoiAlign take bfloat16.
FIRST_OPSET, BFLOAT16_OPSET = 19, 22
_FLOAT64 = torch.empty(0, dtype=torch.float64)


def translations(opset_version: int, deform_conv: bool = True) -> dict[Callable, Callable]:
    """What the argument `custom_translation_table` of `torch.onnx.export` takes, by operator.

    Maps have to have fixed heights and widths; the batch and the number of RoIs may be dynamic.

    Args:
        opset_version: the same that `torch.onnx.export` is given.
        deform_conv: False writes deformable convolutions in operators that are older than
            DeformConv, for runtimes that do not know it.

    Raises:
        ValueError: the opset has no DeformConv; or, while exporting, a model in bfloat16 of which
            the opset's operators know nothing.

    Example:
        >>> torch.onnx.export(
        ...     DeformConv2d(8, 8, 3, padding=1).eval(), (torch.rand(1, 8, 32, 32),), "layer.onnx",
        ...     opset_version=20, custom_translation_table=dcn.onnx.translations(20), dynamo=True)
    """
    if opset_version < FIRST_OPSET:
        raise ValueError(
            f"opset_version: {opset_version} has no DeformConv, which came with {FIRST_OPSET}"
        )
    convolution = _deform_conv2d if deform_conv else _deform_conv2d_by_samples
    table = {
        "deform_conv2d": convolution,
        "deform_roi_pool": _deform_roi_pool,
        "deform_aggregation": _deform_aggregation(convolution),
        "local_deform_kernel": _local_deform_kernel,
    }
    return {
        getattr(torch.ops.dcn, name).default: _checked(name, translate, opset_version)
        for name, translate in table.items()
    }


def _checked(name: str, translate: Callable, opset_version: int) -> Callable:
    def call(input, *rest):
        if input.dtype == ir.DataType.BFLOAT16 and opset_version < BFLOAT16_OPSET:
            raise ValueError(
                f"dcn.{name}: bfloat16 needs opset {BFLOAT16_OPSET}, got opset {opset_version}"
            )
        return translate(input, *rest)

    return call


def _deform_conv2d(input, offset, weight, bias, mask, stride, padding, dilation):
    c_out, group_in, kh, kw = weight.shape
    return op.DeformConv(
        input,
        weight,
        op.CastLike(offset, input),
        # Always, as TensorRT tells the mask by the number of inputs.
        _constant(np.zeros(c_out), input) if bias is None else bias,
        None if mask is None else op.CastLike(mask, input),
        kernel_shape=[kh, kw],
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=input.shape[1] // group_in,
        offset_group=offset.shape[1] // (2 * kh * kw),
    )


def _deform_conv2d_by_samples(input, offset, weight, bias, mask, stride, padding, dilation):
    (c_out, group_in, kh, kw), (_, channels, *size) = weight.shape, input.shape
    out, points = offset.shape[2:], kh * kw
    groups = offset.shape[1] // (2 * points)
    grid = grid_of_kernel((kh, kw), stride, padding, dilation)
    image = _reshape(op.CastLike(input, offset), -1, channels // groups, *size)
    samples = _samples(image, _x_y(offset, points), grid, size, out, offset)
    samples = _reshape(samples, -1, groups, channels // groups, points, *out)
    if mask is not None:
        mask = _reshape(op.CastLike(mask, offset), -1, groups, 1, points, *out)
        samples = op.Mul(samples, mask)
    columns = op.CastLike(_reshape(samples, -1, channels * points, *out), input)
    weight = _reshape(weight, c_out, group_in * points, 1, 1)
    return op.Conv(columns, weight, bias, group=channels // group_in)


def _deform_roi_pool(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma):
    (ph, pw), channels = output_size, input.shape[1]
    image = op.Cast(op.Gather(rois, _constant(0), axis=1), to=ir.DataType.INT64)
    corner, end = (op.Slice(rois, [first], [first + 2], [1]) for first in (1, 3))
    settings = dict(
        coordinate_transformation_mode="half_pixel",
        spatial_scale=spatial_scale,
        sampling_ratio=sampling_ratio,  # OpenVINO takes none to be 1
    )
    values = op.CastLike(input, rois)  # 16 bits do not hold a coordinate
    if offset is None:
        boxes = op.Concat(corner, end, axis=1)
        settings |= dict(output_height=ph, output_width=pw)
        pooled = op.RoiAlign(values, boxes, image, **settings)
    else:
        # All samples of a bin move alike: it is pooled as an RoI of its own, of one bin.
        size = _reshape(op.Sub(end, corner), -1, 2, 1, 1)  # (x, y)
        bin_size = op.Mul(size, _constant(np.reshape([1 / pw, 1 / ph], (2, 1, 1)), rois))
        number = _constant(np.stack(np.meshgrid(np.arange(pw), np.arange(ph))), rois)
        shift = op.Mul(op.Mul(op.CastLike(offset, rois), size), _constant(gamma, rois))
        start = op.Add(_reshape(corner, -1, 2, 1, 1), op.Add(op.Mul(bin_size, number), shift))
        boxes = op.Concat(start, op.Add(start, bin_size), axis=1)
        boxes = _reshape(op.Transpose(boxes, perm=[0, 2, 3, 1]), -1, 4)
        image = _reshape(op.Expand(_reshape(image, -1, 1), _constant([1, ph * pw])), -1)
        pooled = op.RoiAlign(values, boxes, image, output_height=1, output_width=1, **settings)
        pooled = op.Transpose(_reshape(pooled, -1, ph, pw, channels), perm=[0, 3, 1, 2])
    if mask is not None:
        pooled = op.Mul(pooled, op.CastLike(mask, rois))
    return op.CastLike(pooled, input)


def _deform_aggregation(deform_conv: Callable) -> Callable:
    """As a depthwise convolution by ones."""

    def translate(
        input,
        offset,
        mask,
        kernel,
        stride,
        padding,
        dilation,
        offset_scale,
        without_centre,
        groups,
    ):
        (n, *size, channels), out = input.shape, offset.shape[1:3]
        points = kernel[0] * kernel[1]
        own = points - without_centre
        if mask is None:  # DCNv4: offsets and then weights of each group, and padding at the end
            packed = op.Slice(offset, [0], [3 * groups * own], [3])
            packed = _reshape(packed, -1, *out, groups, 3 * own)
            x_y = op.Slice(packed, [0], [2 * own], [4])
            mask = op.Slice(packed, [2 * own], [3 * own], [4])
        else:
            x_y = offset
        x_y = _reshape(x_y, -1, *out, groups, own, 2)
        mask = _reshape(mask, -1, *out, groups, own, 1)
        if without_centre:
            x_y, mask = _with_centre(x_y, own), _with_centre(mask, own)
        # Points follow each other by column here, and by row in a convolution.
        x_y = _reshape(x_y, -1, *out, groups, kernel[1], kernel[0], 2)
        x_y = op.Transpose(x_y, perm=[0, 3, 5, 4, 6, 1, 2])
        mask = _reshape(mask, -1, *out, groups, kernel[1], kernel[0])
        mask = op.Transpose(mask, perm=[0, 3, 5, 4, 1, 2])
        # The kernel is scaled around its centre, with the offsets.
        geometry = (kernel, stride, padding, dilation)
        scaled = aggregation_grid(*geometry, offset_scale, False).positions((1, 1), _FLOAT64)
        rest = grid_of_kernel(*geometry).positions((1, 1), _FLOAT64)
        moved = [
            along.view(kernel[1], kernel[0]).T - at_rest.view(*kernel)
            for along, at_rest in zip(scaled, rest, strict=True)
        ]
        y_x = op.Gather(op.Mul(x_y, _constant(offset_scale, offset)), _constant([1, 0]), axis=4)
        y_x = op.Add(y_x, _constant(torch.stack(moved, -1)[..., None, None], offset))
        summed = deform_conv(
            _typed(op.Transpose(input, perm=[0, 3, 1, 2]), (n, channels, *size), input),
            _typed(
                _reshape(y_x, -1, groups * points * 2, *out), (n, groups * points * 2, *out), offset
            ),
            _typed(
                _constant(np.ones((channels, 1, *kernel)), input), (channels, 1, *kernel), input
            ),
            None,
            _reshape(mask, -1, groups * points, *out),
            stride,
            padding,
            dilation,
        )
        return op.Transpose(summed, perm=[0, 2, 3, 1])

    return translate


def _with_centre(values, points: int):
    """Zeros for the middle one of a kernel's points, which are in the last dimension but one."""
    first, last = (
        op.Slice(values, [start], [start + points // 2], [4]) for start in (0, points // 2)
    )
    return op.Concat(op.Pad(first, _constant([0] * 10 + [1, 0])), last, axis=4)


def _local_deform_kernel(
    input, offset, weight, bias, input_offset, kernel, stride, padding, dilation, clamp
):
    (_, channels, *size), out = input.shape, offset.shape[2:]
    c_out, group_in, *scope = weight.shape
    points, cells, positions = kernel[0] * kernel[1], scope[0] * scope[1], out[0] * out[1]
    rotations = offset.shape[1] // (2 * points)
    if input_offset is None:
        columns = _windows(input, kernel, stride, padding, dilation, out)
    else:
        groups = input_offset.shape[1] // (2 * points)
        grid = grid_of_kernel(kernel, stride, padding, dilation)
        image = _reshape(op.CastLike(input, input_offset), -1, channels // groups, *size)
        columns = _samples(image, _x_y(input_offset, points), grid, size, out, input_offset)
    # Channel c is number c // R of rotation group c % R.
    columns = _reshape(columns, -1, channels // rotations, rotations, points, positions)
    columns = op.CastLike(columns, offset)
    own = _reshape(offset, -1, rotations, points, 2, positions)
    rest = scope_grid(kernel, scope).positions((1, 1), _FLOAT64)
    factors = []  # of the scope's rows and of its columns, [N, R, S, K, H_out·W_out]
    for axis, length in enumerate(scope):
        at = op.Add(
            op.Slice(own, [axis], [axis + 1], [3]), _constant(rest[axis].view(-1, 1, 1), offset)
        )
        at = _reshape(at, -1, rotations, 1, points, positions)
        if clamp:
            at = op.Clip(at, _constant(0, offset), _constant(length - 1, offset))
        cell = _constant(np.arange(length)[:, None, None], offset)
        factors.append(op.Relu(op.Sub(_constant(1, offset), op.Abs(op.Sub(at, cell)))))
    if (group_in, c_out) != (1, channels):
        spread = op.Einsum(*factors, columns, equation="nrhkp,nrwkp,nqrkp->nqrhwp")
        spread = op.CastLike(_reshape(spread, -1, channels * cells, *out), input)
        weight = _reshape(weight, c_out, group_in * cells, 1, 1)
        return op.Conv(spread, weight, bias, group=channels // group_in)
    # The kernels of a depthwise convolution are few enough to be written out.
    rows, along_rows = (
        _reshape(factor, -1, rotations, *shape, points * positions)
        for factor, shape in zip(factors, ((scope[0], 1), (1, scope[1])), strict=True)
    )
    factors = _reshape(op.Mul(rows, along_rows), -1, rotations, cells, points * positions)
    weight = op.Transpose(
        _reshape(op.CastLike(weight, offset), -1, rotations, cells), perm=[1, 0, 2]
    )
    kernels = op.MatMul(weight, factors)  # [N, R, C/R, K·H_out·W_out]
    kernels = _reshape(kernels, -1, rotations, channels // rotations, points, positions)
    columns = op.Transpose(columns, perm=[0, 2, 1, 3, 4])
    summed = op.ReduceSum(op.Mul(kernels, columns), _constant([3]), keepdims=0)
    summed = _reshape(op.Transpose(summed, perm=[0, 2, 1, 3]), -1, channels, *out)
    summed = op.CastLike(summed, input)
    return summed if bias is None else op.Add(summed, _reshape(bias, -1, 1, 1))


def _samples(image, x_y, grid: Grid, size: Sequence[int], out: Sequence[int], like):
    """Of images [M, C, H, W], (H, W) = `size`, at the offsets [M, K, H_out, W_out, 2], (x, y):
    [M, C, K·H_out, W_out].
    """
    y, x = grid.positions(out, _FLOAT64)  # [H_out, K], [W_out, K]
    y, x = torch.broadcast_tensors(y.mT[:, :, None], x.mT[:, None])
    # In a GridSample, -1 and 1 are the outer edges, half a pixel beyond the outer centres.
    unit = torch.tensor([2 / size[1], 2 / size[0]], dtype=torch.float64)
    rest = (torch.stack((x, y), -1) + 0.5) * unit - 1
    at = op.Add(op.Mul(x_y, _constant(unit, like)), _constant(rest, like))
    at = _reshape(at, -1, grid.num_points * out[0], out[1], 2)
    return op.GridSample(image, at, align_corners=0, padding_mode="zeros")


def _x_y(offset, points: int):
    """[N, G·K·2, H, W], (dy, dx) of a point, as [N·G, K, H, W, 2], (dx, dy)."""
    pairs = _reshape(offset, -1, points, 2, *offset.shape[2:])
    return op.Transpose(op.Gather(pairs, _constant([1, 0]), axis=2), perm=[0, 1, 3, 4, 2])


def _windows(input, kernel, stride, padding, dilation, out):
    """What a kernel reads, without offsets: [N, C, K, H_out, W_out]."""
    padded = op.Pad(input, _constant([0, 0, *padding, 0, 0, *padding]))
    windows = []
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            first = [row * dilation[0], column * dilation[1]]
            last = [f + s * (n - 1) + 1 for f, s, n in zip(first, stride, out, strict=True)]
            window = op.Slice(padded, first, last, [2, 3], list(stride))
            windows.append(op.Unsqueeze(window, [2]))
    return op.Concat(*windows, axis=2)


def _typed(value, shape: Sequence[int], like):
    """What the translation of a convolution asks of its arguments."""
    value.shape, value.dtype = ir.Shape(shape), like.dtype
    return value


def _reshape(tensor, *shape: int):
    return op.Reshape(tensor, _constant(shape))


def _constant(values, like=None):
    """Whole numbers, or of the dtype of `like`."""
    dtype = np.int64 if like is None else like.dtype.numpy()
    return op.Constant(value=ir.tensor(np.asarray(values).astype(dtype)))
