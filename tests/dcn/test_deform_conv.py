"""dcn.deform_conv2d and dcn.DeformConv2d against torchvision, mmcv and their own contract."""

import shutil
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

import dcn

torchvision_deform_conv2d = pytest.importorskip("torchvision.ops").deform_conv2d

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
on_devices = pytest.mark.parametrize("device", DEVICES)
modulated_or_not = pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])


class Case(NamedTuple):
    n: int = 2
    c_in: int = 4
    c_out: int = 6
    size: tuple[int, int] = (7, 9)
    kernel: tuple[int, int] = (3, 3)
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 1
    dilation: int | tuple[int, int] = 1
    groups: int = 1
    deform_groups: int = 1
    bias: bool = True

    @property
    def geometry(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def tensors(
        self,
        modulated: bool = True,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        reach: float = 2.5,
    ) -> dict[str, Tensor]:
        """Random arguments; `reach` is the standard deviation of the offsets in pixels."""
        gen = torch.Generator().manual_seed(7)
        points = self.deform_groups * self.kernel[0] * self.kernel[1]
        shape = (self.n, self.c_in, *self.size)
        regular = F.conv2d(
            torch.zeros(1, 1, *self.size), torch.zeros(1, 1, *self.kernel), **self.geometry
        )
        out = regular.shape[2:]
        tensors = {
            "input": torch.randn(shape, generator=gen, dtype=torch.float64),
            "offset": reach * torch.randn(self.n, 2 * points, *out, generator=gen).double(),
            "weight": torch.randn(
                self.c_out, self.c_in // self.groups, *self.kernel, generator=gen
            ).double(),
        }
        if self.bias:
            tensors["bias"] = torch.randn(self.c_out, generator=gen).double()
        if modulated:
            tensors["mask"] = torch.rand(self.n, points, *out, generator=gen).double()
        return {name: t.to(device, dtype) for name, t in tensors.items()}


CASES = {
    "plain": Case(),
    "no_bias": Case(bias=False),
    "one_image": Case(n=1),
    "stride": Case(n=3, stride=2),
    "uneven": Case(kernel=(3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 3)),
    "dilation": Case(padding=2, dilation=2),
    "kernel_1x1": Case(kernel=(1, 1), padding=0),
    "kernel_1x3": Case(kernel=(1, 3), padding=(0, 1)),
    "kernel_5x5": Case(n=1, c_in=2, kernel=(5, 5), padding=2),
    "groups": Case(groups=2),
    "depthwise": Case(c_out=8, groups=4),
    "narrow_groups": Case(c_in=16, c_out=16, groups=8, deform_groups=2),
    "deform_groups": Case(deform_groups=2),
    "groups_and_more_deform_groups": Case(groups=2, deform_groups=4),
    "more_groups_than_deform_groups": Case(c_out=8, groups=4, deform_groups=2),
    "one_pixel": Case(size=(1, 1)),
    "one_row": Case(size=(1, 6)),
    "kernel_larger_than_image": Case(size=(2, 3), kernel=(5, 5), padding=2),
    "one_channel": Case(c_in=1, c_out=1),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def grad_like(out: Tensor) -> Tensor:
    gen = torch.Generator().manual_seed(11)
    return torch.randn(out.shape, generator=gen, dtype=torch.float64).to(out)


def run(
    op, tensors: dict[str, Tensor], grad: Tensor | None = None, **geometry
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and the gradient of every tensor, for a random output gradient if none is given."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    out = op(**leaves, **geometry)
    out.backward(grad_like(out) if grad is None else grad)
    return out.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def assert_same(actual, expected, **tolerance) -> None:
    """Compare two results of `run`, naming the gradient that differs."""
    torch.testing.assert_close(actual[0], expected[0], **tolerance)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in actual[1].items():
        torch.testing.assert_close(
            grad, expected[1][name], **tolerance, msg=lambda m, name=name: f"grad of {name}: {m}"
        )


@on_devices
@modulated_or_not
@every_case
def test_equals_torchvision(case, modulated, device):
    tensors = case.tensors(modulated, device=device)
    assert_same(
        run(dcn.deform_conv2d, tensors, **case.geometry),
        run(torchvision_deform_conv2d, tensors, **case.geometry),
        rtol=1e-9,
        atol=1e-9,
    )


@on_devices
@modulated_or_not
def test_equals_torchvision_in_float32(modulated, device):
    case = Case(c_in=16, c_out=8, size=(20, 30), deform_groups=2)
    tensors = case.tensors(modulated, torch.float32, device)
    assert_same(
        run(dcn.deform_conv2d, tensors, **case.geometry),
        run(torchvision_deform_conv2d, tensors, **case.geometry),
        rtol=1e-4,
        atol=1e-4,
    )


@on_devices
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("most", [0, 1, 4], ids=["zero", "unit", "beyond"])
def test_integer_positions(most, padding, device):
    """On the grid, where offsets start, bilinear sampling has one-sided gradients only.

    Positions -1, H - 1 and H are among them, where the fade to zero begins and ends.
    """
    case = Case(size=(5, 6), padding=padding)
    tensors = case.tensors(device=device)
    gen = torch.Generator().manual_seed(3)
    shape = tensors["offset"].shape
    tensors["offset"] = torch.randint(-most, most + 1, shape, generator=gen).to(tensors["offset"])
    assert_same(
        run(dcn.deform_conv2d, tensors, **case.geometry),
        run(torchvision_deform_conv2d, tensors, **case.geometry),
        rtol=1e-9,
        atol=1e-9,
    )


@on_devices
@pytest.mark.parametrize("position", [-1.0, -0.25, 0.0, 2.5, 4.0, 4.25, 5.0])
def test_fades_out_over_the_last_pixel(position, device):
    """A single sample of a row 1, 2, ..., 5 that is zero outside."""
    row = torch.arange(1.0, 6, device=device).view(1, 1, 1, 5)
    offset = torch.tensor([0, position], device=device).view(1, 2, 1, 1)
    weight = torch.ones(1, 1, 1, 1, device=device)
    padded = [0.0, 1, 2, 3, 4, 5, 0, 0]
    low = int(position // 1)
    expected = padded[low + 1] + (position - low) * (padded[low + 2] - padded[low + 1])
    out = dcn.deform_conv2d(row, offset, weight, stride=(1, 5))
    assert out.item() == pytest.approx(expected)


@on_devices
@modulated_or_not
def test_far_outside_reads_zero(modulated, device):
    case = Case()
    tensors = case.tensors(modulated, device=device)
    tensors["offset"] = 30 * tensors["offset"].sign()
    out, grads = run(dcn.deform_conv2d, tensors, **case.geometry)
    assert torch.equal(out, tensors["bias"].view(1, -1, 1, 1).expand_as(out))
    for name in grads.keys() - {"bias"}:
        assert not grads[name].any(), name


def mmcv_deform_conv2d(input, offset, weight, bias=None, mask=None, groups=(1, 1), **geometry):
    from mmcv import ops

    args = [*(_pair(value) for value in geometry.values()), *groups]
    if mask is not None:
        return ops.modulated_deform_conv2d(input, offset, mask, weight, bias, *args)
    out = ops.deform_conv2d(input, offset, weight, *args)
    return out if bias is None else out + bias.view(-1, 1, 1)


@modulated_or_not
@pytest.mark.parametrize(
    "case",
    [
        Case(n=1, size=(5, 6)),
        Case(n=3, size=(5, 6), stride=2, padding=2, dilation=2),
        Case(n=1, size=(5, 6), groups=2, deform_groups=2),
    ],
    ids=["plain", "strided", "groups"],
)
def test_equals_mmcv(case, modulated, from_mmcv):
    def theirs():
        tensors = case.tensors(modulated, torch.float32)
        wide = {name: t.double() for name, t in tensors.items()}
        groups = (case.groups, case.deform_groups)
        return tensors, run(mmcv_deform_conv2d, wide, groups=groups, **case.geometry)

    tensors, expected = from_mmcv(theirs)
    wide = {name: t.double() for name, t in tensors.items()}
    actual = run(dcn.deform_conv2d, wide, **case.geometry)
    assert_same(actual, expected, rtol=1e-9, atol=1e-9)


@on_devices
@modulated_or_not
@pytest.mark.parametrize(
    "case",
    [
        Case(n=1, c_in=2, c_out=1, size=(2, 3), kernel=(2, 2), deform_groups=2),
        Case(c_in=2, c_out=2, size=(3, 3), kernel=(2, 1), stride=(1, 2), groups=2, bias=False),
    ],
    ids=["bias", "no_bias"],
)
def test_gradcheck(case, modulated, device, nondet_tol):
    tensors = case.tensors(modulated, device=device)
    # A position within 0.1 of the grid would be differentiated numerically across a kink.
    offset = tensors["offset"]
    tensors["offset"] = offset.floor() + (offset - offset.floor()).clamp(0.1, 0.9)
    leaves = tuple(t.requires_grad_() for t in tensors.values())

    def op(*args):
        return dcn.deform_conv2d(**dict(zip(tensors, args, strict=True)), **case.geometry)

    assert torch.autograd.gradcheck(op, leaves, fast_mode=True, nondet_tol=nondet_tol)


@on_devices
@modulated_or_not
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_16_bit_is_float64_rounded_once(dtype, modulated, device, interpreted):
    """Sums are taken in float32, so that only the results are rounded to 16 bits.

    On a GPU the samples are as well: tensor cores take 16 bits.
    """
    case = Case(c_in=8, deform_groups=2, stride=2)
    tensors = case.tensors(modulated, dtype, device)
    exact = {name: t.double() for name, t in tensors.items()}
    out, grads = run(dcn.deform_conv2d, tensors, **case.geometry)
    exact_out, exact_grads = run(
        torchvision_deform_conv2d, exact, grad_like(out).double(), **case.geometry
    )
    pairs = [(out, exact_out), *((grads[name], exact_grads[name]) for name in tensors)]
    for actual, expected in pairs:
        assert actual.dtype == dtype
        eps = torch.finfo(dtype).eps
        of_samples = eps if device == "cuda" or interpreted else 1e-5
        torch.testing.assert_close(
            actual.double(), expected, rtol=eps, atol=of_samples * expected.abs().max().item()
        )


def relaid(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return tensor.mT.contiguous().mT
    if layout == "strided":
        return torch.stack((tensor, tensor), -1).flatten(-2)[..., ::2]
    if layout == "sliced_channels":
        return torch.cat((tensor, tensor), 1)[:, : tensor.shape[1]]
    return tensor.contiguous()


@on_devices
@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "transposed", "strided", "sliced_channels"]
)
def test_memory_layouts(layout, device):
    case = Case(deform_groups=2)
    plain = case.tensors(device=device)
    tensors = {name: t if t.dim() < 4 else relaid(t, layout) for name, t in plain.items()}
    actual = run(dcn.deform_conv2d, tensors, **case.geometry)
    assert_same(actual, run(dcn.deform_conv2d, plain, **case.geometry), rtol=1e-12, atol=1e-12)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert actual[0].is_contiguous(memory_format=memory_format)


@on_devices
def test_expanded_gradient(device):
    case = Case()
    tensors = case.tensors(device=device)
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}

    def grads(op):
        return torch.autograd.grad(op(**leaves, **case.geometry).sum(), leaves.values())

    actual, expected = grads(dcn.deform_conv2d), grads(torchvision_deform_conv2d)
    torch.testing.assert_close(actual, expected)


@on_devices
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@modulated_or_not
def test_empty_batch(modulated, memory_format, device):
    case = Case(n=0, groups=2, deform_groups=2)
    tensors = case.tensors(modulated, device=device)
    tensors["input"] = tensors["input"].contiguous(memory_format=memory_format)
    out, grads = run(dcn.deform_conv2d, tensors, **case.geometry)
    assert out.shape == (0, 6, 7, 9)
    for name, grad in grads.items():
        assert grad.shape == tensors[name].shape
        assert not grad.any()


@pytest.mark.usefixtures("same_bits")
@on_devices
@modulated_or_not
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
def test_non_finite_offsets_contribute_zero(value, dtype, modulated, device):
    case = Case(deform_groups=2)
    tensors = case.tensors(True, dtype, device)
    given_mask = tensors["mask"] if modulated else torch.ones_like(tensors["mask"])
    n, points, h, w = given_mask.shape
    coordinate = torch.arange(n * points * h * w, device=device) % 7
    spoil_y = ((coordinate == 0) | (coordinate == 1)).view(n, points, h, w)
    spoil_x = ((coordinate == 0) | (coordinate == 2)).view(n, points, h, w)
    spoil = torch.stack((spoil_y, spoil_x), 2).flatten(1, 2)
    bad = spoil_y | spoil_x

    masked = tensors | {"mask": given_mask.masked_fill(bad, 0)}
    # 1e30 is infinite in float16.
    value = torch.tensor(value, device=device).to(dtype)
    spoilt = tensors | {"offset": torch.where(spoil, value, tensors["offset"])}
    if modulated:
        spoilt["mask"] = given_mask
    else:
        del spoilt["mask"]
    out, grads = run(dcn.deform_conv2d, spoilt, **case.geometry)
    expected_out, expected_grads = run(dcn.deform_conv2d, masked, **case.geometry)
    assert torch.equal(out, expected_out)
    for name in ("input", "offset", "weight", "bias"):
        assert torch.equal(grads[name], expected_grads[name]), name
    if modulated:
        assert torch.equal(grads["mask"], expected_grads["mask"].masked_fill(bad, 0))


@pytest.mark.usefixtures("same_bits")
@on_devices
@modulated_or_not
def test_same_bits_twice(modulated, device):
    case = Case(c_in=8, size=(20, 20), groups=2, deform_groups=2)
    tensors = case.tensors(modulated, torch.float32, device, reach=6)
    first = run(dcn.deform_conv2d, tensors, **case.geometry)
    second = run(dcn.deform_conv2d, tensors, **case.geometry)
    assert_same(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["input", "offset", "weight", "bias", "mask"])
def test_gradient_of_one_argument_alone(name):
    case = Case()
    tensors = case.tensors()
    expected = run(dcn.deform_conv2d, tensors, **case.geometry)[1][name]
    leaf = tensors[name].clone().requires_grad_()
    out = dcn.deform_conv2d(**(tensors | {name: leaf}), **case.geometry)
    (grad,) = torch.autograd.grad(out, leaf, grad_like(out))
    torch.testing.assert_close(grad, expected)


def test_arguments_are_left_alone():
    case = Case()
    tensors = case.tensors()
    before = {name: t.clone() for name, t in tensors.items()}
    run(dcn.deform_conv2d, tensors, **case.geometry)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": None}, TypeError, "^input: expected a tensor, got NoneType"),
        ({"input": [1.0]}, TypeError, "^input: expected a tensor, got list"),
        ({"offset": None}, TypeError, "^offset: expected a tensor, got NoneType"),
        ({"weight": None}, TypeError, "^weight: expected a tensor, got NoneType"),
        ({"mask": 1.0}, TypeError, "^mask: expected a tensor, got float"),
        ({"bias": True}, TypeError, "^bias: expected a tensor, got bool"),
        ({"input": torch.zeros(4, 7, 9)}, ValueError, r"^input: .*4 dimensions.*\(4, 7, 9\)"),
        ({"offset": torch.zeros(18)}, ValueError, r"^offset: expected 4 dimensions.*\(18,\)"),
        ({"weight": torch.zeros(6, 4, 3)}, ValueError, "^weight: expected 4 dimensions"),
        ({"bias": torch.zeros(6, 1)}, ValueError, "^bias: expected 1 dimensions"),
        ({"mask": torch.zeros(9, 7, 9)}, ValueError, "^mask: expected 4 dimensions"),
        ({"input": torch.zeros(2, 4, 7, 9).long()}, TypeError, "^input: .*floating.*int64"),
        (
            {"offset": torch.zeros(2, 18, 7, 9).half()},
            TypeError,
            "^offset: is torch.float16, input is torch.float32",
        ),
        ({"weight": torch.zeros(6, 4, 3, 3).double()}, TypeError, "^weight: is torch.float64"),
        ({"bias": torch.zeros(6).bfloat16()}, TypeError, "^bias: is torch.bfloat16"),
        ({"mask": torch.zeros(2, 9, 7, 9).double()}, TypeError, "^mask: is torch.float64"),
        (
            {"weight": torch.zeros(6, 4, 3, 3, device="meta")},
            ValueError,
            "^weight: is on meta, input on cpu",
        ),
        ({"weight": torch.zeros(6, 3, 3, 3)}, ValueError, "^weight: .*4 channels"),
        ({"weight": torch.zeros(5, 2, 3, 3)}, ValueError, r"^weight: \(5, 2, 3, 3\)"),
        ({"weight": torch.zeros(0, 4, 3, 3)}, ValueError, r"^weight: .*\(0, 4, 3, 3\)"),
        ({"weight": torch.zeros(6, 0, 3, 3)}, ValueError, r"^weight: .*\(6, 0, 3, 3\)"),
        ({"input": torch.zeros(2, 0, 7, 9)}, ValueError, "0 channels"),
        ({"input": torch.zeros(2, 4, 0, 9)}, ValueError, "^input: 0.9 pixels"),
        ({"padding": 0, "dilation": 4}, ValueError, "^input: 7.9 pixels are too few"),
        ({"offset": torch.zeros(2, 17, 7, 9)}, ValueError, "^offset: .*17"),
        ({"offset": torch.zeros(2, 19, 7, 9)}, ValueError, r"^offset: .*\(2, 18, 7, 9\)"),
        ({"offset": torch.zeros(2, 54, 7, 9)}, ValueError, "^offset: .*divisor of 4, got 54"),
        ({"offset": torch.zeros(1, 18, 7, 9)}, ValueError, "^offset: expected shape"),
        ({"offset": torch.zeros(2, 18, 5, 7)}, ValueError, r"^offset: .*\(2, 18, 7, 9\), got"),
        ({"mask": torch.zeros(2, 18, 7, 9)}, ValueError, r"^mask: expected shape \(2, 9, 7, 9\)"),
        ({"bias": torch.zeros(5)}, ValueError, r"^bias: expected shape \(6,\), got \(5,\)"),
        ({"stride": 0}, ValueError, "^stride: expected at least 1, got 0"),
        ({"dilation": (1, 0)}, ValueError, r"^dilation: expected at least 1, got \(1, 0\)"),
        ({"padding": -1}, ValueError, "^padding: expected at least 0, got -1"),
        ({"stride": (1, 2, 3)}, TypeError, "^stride: expected an int or two"),
        ({"stride": 1.5}, TypeError, "^stride: expected an int or two, got 1.5"),
        ({"padding": "same"}, TypeError, "^padding: expected an int or two, got 'same'"),
        ({"dilation": None}, TypeError, "^dilation: expected an int or two, got None"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = Case().tensors(dtype=torch.float32) | Case().geometry
    with pytest.raises(error, match=message):
        dcn.deform_conv2d(**(arguments | change))


def test_dtype_error_on_a_device_without_autocast():
    tensors = Case().tensors(dtype=torch.float32, device="meta")
    with pytest.raises(TypeError, match=r"^offset: is torch.float64"):
        dcn.deform_conv2d(**(tensors | {"offset": tensors["offset"].double()}), padding=1)


OPERATOR_CASES = {
    "plain": (Case(), True, torch.contiguous_format),
    "not_modulated": (Case(stride=2, bias=False), False, torch.contiguous_format),
    "groups_channels_last": (Case(groups=2, deform_groups=2), True, torch.channels_last),
    "one_channel_channels_last": (Case(c_in=1, c_out=1), True, torch.channels_last),
    "one_pixel": (Case(n=1, size=(1, 1)), True, torch.contiguous_format),
    "empty_batch": (Case(n=0), True, torch.contiguous_format),
}


@on_devices
@pytest.mark.parametrize(
    ("case", "modulated", "memory_format"), OPERATOR_CASES.values(), ids=OPERATOR_CASES.keys()
)
def test_opcheck(case, modulated, memory_format, device):
    tensors = case.tensors(modulated, torch.float32, device)
    tensors["input"] = tensors["input"].contiguous(memory_format=memory_format)
    names = ("input", "offset", "weight", "bias", "mask")
    arguments = [tensors.get(name) for name in names]
    geometry = [_pair(value) for value in case.geometry.values()]
    grad = grad_like(dcn.deform_conv2d(**tensors, **case.geometry))
    wanted = [argument is not None for argument in arguments]
    torch.library.opcheck(
        torch.ops.dcn.deform_conv2d_backward.default, (grad, *arguments, *geometry, wanted)
    )
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    torch.library.opcheck(
        torch.ops.dcn.deform_conv2d.default, (*[leaves.get(name) for name in names], *geometry)
    )


@on_devices
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@modulated_or_not
def test_compile_without_graph_break(modulated, dynamic, device):
    torch.compiler.reset()
    compiled = torch.compile(
        dcn.deform_conv2d, fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for size in [(7, 9), (8, 5)]:
        case = Case(size=size, deform_groups=2)
        tensors = case.tensors(modulated, device=device)
        assert_same(
            run(compiled, tensors, **case.geometry),
            run(dcn.deform_conv2d, tensors, **case.geometry),
        )


def randomised(module: nn.Module) -> nn.Module:
    """With offsets and masks that are not those of the start."""
    torch.manual_seed(5)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.slow
@on_devices
def test_compile_module_with_inductor(device):
    if device == "cpu" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    torch.compiler.reset()
    module = randomised(dcn.DeformConv2d(4, 6, 3, padding=1)).to(device)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(2, 4, 8, 8, device=device).contiguous(memory_format=torch.channels_last)

    def results(forward):
        leaf = x.detach().requires_grad_()
        out = forward(leaf)
        return out, torch.autograd.grad(out.square().sum(), [leaf, *module.parameters()])

    torch.testing.assert_close(results(compiled), results(module), rtol=1e-4, atol=1e-4)


@on_devices
@modulated_or_not
def test_export(modulated, device):
    module = randomised(dcn.DeformConv2d(4, 6, 3, padding=1, modulated=modulated)).to(device)
    batch, height = torch.export.Dim("batch", min=2), torch.export.Dim("height", min=4)
    program = torch.export.export(
        module,
        (torch.randn(2, 4, 8, 8, device=device),),
        dynamic_shapes={"input": {0: batch, 2: height}},
    )
    x = torch.randn(3, 4, 11, 8, device=device)
    torch.testing.assert_close(program.module()(x), module(x))


@on_devices
@pytest.mark.parametrize("backward_inside", [False, True], ids=["outside", "inside"])
@modulated_or_not
def test_autocast(modulated, backward_inside, device, interpreted):
    case = Case(c_in=8, deform_groups=2)
    tensors = case.tensors(modulated, torch.float32, device)
    # Offsets and masks that bfloat16 holds exactly, so that only arithmetic differs.
    tensors = {name: t.bfloat16().float() for name, t in tensors.items()}
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    with torch.autocast(device, torch.bfloat16):
        out = dcn.deform_conv2d(**leaves, **case.geometry)
        if backward_inside:
            out.backward(grad_like(out))
    if not backward_inside:
        out.backward(grad_like(out))
    assert out.dtype == torch.bfloat16

    exact_out, exact_grads = run(dcn.deform_conv2d, tensors, **case.geometry)
    # On a GPU the samples are rounded to bfloat16, not only the sums of them.
    of_samples = 0.01 * exact_out.abs().max().item()
    atol = of_samples if device == "cuda" or interpreted else 1e-4
    torch.testing.assert_close(out.float(), exact_out, rtol=0.01, atol=atol)
    for name, leaf in leaves.items():
        assert leaf.grad.dtype == torch.float32
        exact = exact_grads[name]
        # The output gradient came in rounded to bfloat16, its cast of one rounding each.
        atol = 0.01 * exact.abs().max().item()
        torch.testing.assert_close(leaf.grad, exact, rtol=0.02, atol=atol)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=["float64", "float16"])
def test_autocast_of_a_whole_dtype(dtype, device):
    """float64 is kept, everything else runs in the autocast dtype."""
    case = Case()
    tensors = case.tensors(dtype=dtype, device=device)
    with torch.autocast(device, torch.bfloat16):
        out, grads = run(dcn.deform_conv2d, tensors, **case.geometry)
    assert out.dtype == (dtype if dtype == torch.float64 else torch.bfloat16)
    assert all(grad.dtype == dtype for grad in grads.values())
    if dtype == torch.float64:
        assert_same((out, grads), run(dcn.deform_conv2d, tensors, **case.geometry))


@on_devices
def test_autocast_of_mixed_dtypes(device):
    case = Case()
    tensors = case.tensors(dtype=torch.float32, device=device)
    tensors["input"] = tensors["input"].bfloat16()
    with torch.autocast(device, torch.bfloat16):
        out, grads = run(dcn.deform_conv2d, tensors, **case.geometry)
    assert out.dtype == torch.bfloat16
    assert all(grads[name].dtype == tensors[name].dtype for name in tensors)


@on_devices
def test_autocast_module_trains(device):
    module = randomised(dcn.DeformConv2d(4, 6, 3, padding=1)).to(device)
    x = torch.randn(2, 4, 8, 8, device=device, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        out = module(x)
        out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    torch.testing.assert_close(out.float(), module(x), rtol=0.1, atol=0.15)


@on_devices
def test_double_backward_raises(device):
    tensors = Case().tensors(device=device)
    leaf = tensors["input"].requires_grad_()
    out = dcn.deform_conv2d(**tensors, padding=1)
    (grad,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="no double backward"):
        grad.sum().backward()


GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (2, 0), "dilation": (2, 1), "groups": 2, "deform_groups": 2},
    {"bias": False, "padding": 1},
]


@on_devices
@modulated_or_not
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_module_starts_as_a_regular_convolution(geometry, modulated, device):
    module = dcn.DeformConv2d(4, 6, (3, 2), modulated=modulated, **geometry).to(device)
    x = torch.randn(2, 4, 9, 8, device=device)
    weight = module.weight / 2 if modulated else module.weight
    expected = F.conv2d(
        x, weight, module.bias, module.stride, module.padding, module.dilation, module.groups
    )
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


@modulated_or_not
def test_module_parameters(modulated):
    module = dcn.DeformConv2d(4, 6, (3, 5), groups=2, deform_groups=2, modulated=modulated)
    channels = (3 if modulated else 2) * 2 * 15
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "weight": (6, 2, 3, 5),
        "bias": (6,),
        "conv_offset.weight": (channels, 4, 3, 5),
        "conv_offset.bias": (channels,),
    }
    assert not module.conv_offset.weight.any()
    assert not module.conv_offset.bias.any()
    assert module.weight.any()


def test_module_without_bias():
    module = dcn.DeformConv2d(4, 6, 3, bias=False)
    assert [name for name, _ in module.named_parameters()] == [
        "weight",
        "conv_offset.weight",
        "conv_offset.bias",
    ]


def test_init_weights_zeroes_the_offsets_only():
    module = randomised(dcn.DeformConv2d(4, 6, 3))
    weight = module.weight.clone()
    module.init_weights()
    assert not module.conv_offset.weight.any()
    assert not module.conv_offset.bias.any()
    assert torch.equal(module.weight, weight)


@on_devices
@modulated_or_not
def test_module_is_its_own_offsets_and_the_operator(modulated, device):
    module = randomised(
        dcn.DeformConv2d(4, 6, 3, 2, 2, 2, deform_groups=2, modulated=modulated)
    ).to(device)
    x = torch.randn(2, 4, 9, 8, device=device)
    offset, mask = module.conv_offset(x), None
    if modulated:
        offset, mask = offset.split((36, 18), 1)
        mask = torch.sigmoid(mask)
    expected = torchvision_deform_conv2d(x, offset, module.weight, module.bias, 2, 2, 2, mask)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


@modulated_or_not
@pytest.mark.parametrize("deform_groups", [1, 2])
def test_module_loads_mmcv_checkpoints(deform_groups, modulated, from_mmcv):
    arguments = {"padding": 1, "deform_groups": deform_groups, "bias": modulated}

    def theirs():
        from mmcv import ops

        pack = ops.ModulatedDeformConv2dPack if modulated else ops.DeformConv2dPack
        module = randomised(pack(4, 6, 3, **arguments))
        x = torch.randn(2, 4, 5, 6)
        return dict(module.state_dict()), x, module(x).detach()

    checkpoint, x, expected = from_mmcv(theirs)
    ours = dcn.DeformConv2d(4, 6, 3, modulated=modulated, **arguments)
    ours.load_state_dict(checkpoint, strict=True)
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("deform_groups", [0, -1, 3])
def test_module_deform_groups_error(deform_groups):
    message = f"^deform_groups: expected a divisor of 4, got {deform_groups}"
    with pytest.raises(ValueError, match=message):
        dcn.DeformConv2d(4, 6, 3, deform_groups=deform_groups)


def test_module_repr_tells_its_kind():
    text = repr(dcn.DeformConv2d(4, 6, 3, deform_groups=2, modulated=False))
    assert "deform_groups=2, modulated=False" in text
