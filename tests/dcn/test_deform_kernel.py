"""dcn.local_deform_kernel against a slow loop, convolutions and its contract."""

from itertools import product
from math import floor, prod
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dcn
from dcn.deform_kernel import definition

each = pytest.mark.parametrize


class Case(NamedTuple):
    c_in: int = 4
    c_out: int = 4
    kernel: tuple[int, int] = (3, 3)
    scope: tuple[int, int] = (4, 4)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    rotations: int = 1
    deform_groups: int = 0
    clamp: bool = False
    n: int = 2

    def tensors(self, dtype=torch.float64) -> dict[str, Tensor]:
        gen = torch.Generator().manual_seed(5)
        probe = torch.zeros(1, 1, *self.kernel)
        size = F.conv2d(torch.zeros(1, 1, 4, 5), probe, None, *self[4:7]).shape[2:]
        points = 2 * prod(self.kernel)
        shapes = dict(
            input=(self.n, self.c_in, 4, 5),
            offset=(self.n, points * self.rotations, *size),
            weight=(self.c_out, self.c_in // self.groups, *self.scope),
            bias=(self.c_out,),
        )
        if self.deform_groups:
            shapes["input_offset"] = (self.n, points * self.deform_groups, *size)
        return {k: torch.randn(s, generator=gen).double().to(dtype) for k, s in shapes.items()}

    def run(self, input, offset, weight, bias, input_offset=None) -> Tensor:
        args = (input, offset, weight, self.kernel, bias, *self[4:7])
        return dcn.local_deform_kernel(*args, input_offset=input_offset, clamp=self.clamp)


CASES = {
    "plain": Case(c_out=3, n=1),
    "uneven": Case(2, 2, (3, 2), (4, 5), (2, 1), (0, 2), (1, 2)),
    "depthwise": Case(groups=4, scope=(5, 5)),
    "groups_and_rotations": Case(c_out=6, groups=2, rotations=2),
    "rotation_of_each_channel": Case(groups=4, rotations=4, clamp=True),
    "small_scope": Case(2, 2, scope=(2, 1), clamp=True),
    "moving_samples": Case(c_out=2, rotations=2, deform_groups=2),
}


def read(planes: Tensor, y: float, x: float) -> Tensor:
    """Of planes [..., H, W], bilinearly, zero outside."""
    total, (h, w) = planes.new_zeros(planes.shape[:-2]), planes.shape[-2:]
    for i, j in product((floor(y), floor(y) + 1), (floor(x), floor(x) + 1)):
        if 0 <= i < h and 0 <= j < w:
            total += planes[..., i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


def slowly(case: Case, input, offset, weight, bias, input_offset=None) -> Tensor:
    kh, kw = case.kernel
    out = bias.view(1, -1, 1, 1).repeat(len(input), 1, *offset.shape[2:])
    per_group, group_out = case.c_in // case.groups, case.c_out // case.groups
    indices = map(range, (len(input), *offset.shape[2:], kh, kw, case.c_in))
    for n, p, q, i, j, c in product(*indices):
        k, (g, own) = i * kw + j, divmod(c, per_group)
        at = [p * case.stride[0] - case.padding[0] + i * case.dilation[0]]
        at += [q * case.stride[1] - case.padding[1] + j * case.dilation[1]]
        if input_offset is not None:
            d = c // (case.c_in // case.deform_groups) * kh * kw + k
            at = [a + input_offset[n, 2 * d + axis, p, q].item() for axis, a in enumerate(at)]
        r = (c % case.rotations * kh * kw + k) * 2
        cell = [
            point + offset[n, r + axis, p, q].item() + (case.scope[axis] - case.kernel[axis]) / 2
            for axis, point in enumerate((i, j))
        ]
        if case.clamp:
            cell = [min(max(a, 0), s - 1) for a, s in zip(cell, case.scope, strict=True)]
        to = slice(g * group_out, (g + 1) * group_out)
        out[n, to, p, q] += read(weight[to, own], *cell) * read(input[n, c], *at)
    return out


@each("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients(case, monkeypatch):
    tensors = case.tensors()
    expected = slowly(case, **tensors)
    torch.testing.assert_close(case.run(**tensors), expected, rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(definition, "MOST_ELEMENTS", 1)  # a row at a time
    laid = {k: t.mT.contiguous().mT if t.dim() == 4 else t for k, t in tensors.items()}
    laid["input"] = laid["input"].contiguous(memory_format=torch.channels_last)
    out = case.run(**laid)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    leaves = [t.requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(case.run, leaves, fast_mode=True)


@each("name", ["groups_and_rotations", "moving_samples"])
def test_opcheck(name):
    case, tensors = CASES[name], CASES[name].tensors()
    args = [t.requires_grad_() for t in tensors.values()] + [None] * (5 - len(tensors))
    args += [*case[2:3], *case[4:7], case.clamp]
    grad = torch.randn_like(torch.ops.dcn.local_deform_kernel(*args))
    torch.library.opcheck(torch.ops.dcn.local_deform_kernel.default, args)
    args = [grad, *(a.detach() if isinstance(a, Tensor) else a for a in args)]
    mask = [True] * 4 + [len(tensors) == 5]
    backward = torch.ops.dcn.local_deform_kernel_backward.default
    torch.library.opcheck(backward, (*args, mask), test_utils=("test_schema", "test_faketensor"))


@each("clamp", [False, True])
@each("scope", [3, 4, 5])
def test_zero_offsets_are_a_convolution_with_the_centre(scope, clamp):
    """Between cells, that is with the mean of four."""
    case = Case(scope=(scope, scope), clamp=clamp)
    tensors = case.tensors()
    tensors["offset"].zero_()
    centre = tensors["weight"]
    centre = F.avg_pool2d(centre, 2, 1) if scope == 4 else F.pad(centre, [(3 - scope) // 2] * 4)
    expected = F.conv2d(tensors["input"], centre, tensors["bias"], padding=1)
    torch.testing.assert_close(case.run(**tensors), expected)


def test_offsets_on_the_cells_learn():
    """By the slope to the next cell, and at the last one, if clamped, to the one before."""
    for clamp, size in product((False, True), (3, 5)):
        case = Case(scope=(size, size), clamp=clamp)
        tensors = case.tensors()
        offset = tensors["offset"].zero_().requires_grad_()
        at_rest = case.run(**tensors)
        at_rest.sum().backward()
        for point, step in ((4, 1e-6), (8, -1e-6 if clamp and size == 3 else 1e-6)):
            moved = offset.detach().clone()
            moved[:, 2 * point] = step
            slope = (case.run(**{**tensors, "offset": moved}) - at_rest).sum(1) / step
            torch.testing.assert_close(offset.grad[:, 2 * point], slope, rtol=1e-5, atol=1e-5)


@each("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@each("name", ["offset", "input_offset"])
@each("clamp", [False, True])
def test_absurd_offsets(value, name, clamp):
    case = Case(deform_groups=1, clamp=clamp)
    leaves = case.tensors(torch.float32)
    leaves[name].fill_(value)
    out = case.run(**{k: t.requires_grad_() for k, t in leaves.items()})
    out.sum().backward()
    assert out.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())
    reads_the_last_cell = name == "offset" and clamp and value == 1e30
    nothing = leaves["bias"].view(1, -1, 1, 1).expand_as(out)
    assert torch.equal(out, nothing) != reads_the_last_cell


@each("dtype", [torch.float16, torch.bfloat16])
@each("wide_offsets", [False, True])
def test_16_bits(dtype, wide_offsets):
    case = Case(rotations=2, deform_groups=1)
    narrow = {
        k: t.float() if wide_offsets and "offset" in k else t
        for k, t in case.tensors(dtype).items()
    }
    wide = {k: t.float().requires_grad_() for k, t in narrow.items()}
    out = case.run(**{k: t.requires_grad_() for k, t in narrow.items()})
    expected = case.run(**wide)
    torch.testing.assert_close(out, expected.to(dtype))
    for values in (out, expected):
        values.sum().backward()
    for k, t in narrow.items():
        torch.testing.assert_close(t.grad, wide[k].grad.to(t.dtype))


def zeros(*shape: int, dtype=torch.float64) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


BAD = [
    ("input", None, TypeError),
    ("offset", zeros(2, 18, 4, 5, dtype=torch.int), TypeError),
    ("offset", zeros(2, 54, 4, 5), ValueError),
    ("offset", zeros(2, 18, 4, 4), ValueError),
    ("input_offset", zeros(2, 18, 3, 5), ValueError),
    ("weight", zeros(4, 3, 4, 4), ValueError),
    ("bias", zeros(3), ValueError),
    ("kernel_size", 2.5, TypeError),
    ("stride", 0, ValueError),
]


@each(("name", "value", "error"), BAD)
def test_bad_arguments(name, value, error):
    arguments = {**Case().tensors(), "kernel_size": 3, "padding": 1, name: value}
    with pytest.raises(error, match=f"^{name}: "):
        dcn.local_deform_kernel(**arguments)
