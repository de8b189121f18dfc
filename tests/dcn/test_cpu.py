"""The compiled CPU kernels against the definition in float64, and how they are found."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dcn
from dcn import native
from dcn.registration import OPERATORS
from dcn.roi_pool import definition as reference_pool
from tests.dcn import strategies
from tests.dcn.definition import (
    OPERATOR_CASES,
    assert_conv_is_its_definition,
    check_operator,
    eighths,
)

fuzz_calls = runpy.run_path(str(Path(__file__).with_name("fuzz.py")))["run"]

pytestmark = pytest.mark.skipif(native.kernels is None, reason="the CPU kernels are not built")

# Also 128 and 256 bits on a machine that has more; a machine with fewer runs the same one twice.
each_width = pytest.mark.parametrize("bits", [128, 256, 512])
fast = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def vectors():
    yield native.kernels.dcn_limit_vectors
    native.kernels.dcn_limit_vectors(512)


@each_width
@fast
@given(data=st.data())
@pytest.mark.parametrize("name", OPERATOR_CASES)
def test_an_operator_is_its_definition(name, bits, data):
    case = data.draw(getattr(strategies, OPERATOR_CASES[name].strategy)())
    kernels = OPERATORS[name].implementation("cpu")
    native.kernels.dcn_limit_vectors(bits)
    before = torch.get_num_threads()
    torch.set_num_threads(case["threads"])
    try:
        check_operator(name, case, kernels.forward, kernels.backward)
    finally:
        torch.set_num_threads(before)
        native.kernels.dcn_limit_vectors(512)


@fast
@given(data=st.data())
@pytest.mark.parametrize("name", OPERATOR_CASES)
def test_gradients_that_are_not_wanted_change_no_other(name, data):
    case = data.draw(getattr(strategies, OPERATOR_CASES[name].strategy)())
    operator, own = OPERATORS[name], OPERATOR_CASES[name]
    kernels = operator.implementation("cpu")
    tensors, grad = own.tensors(case)
    arguments = (grad, *tensors.values(), *own.settings(case))
    possible = [tensors[k] is not None for k in operator.gradients]
    wanted = [there and data.draw(st.booleans()) for there in possible]
    found = kernels.backward(*arguments, wanted)
    assert [g is not None for g in found] == wanted
    for some, every in zip(found, kernels.backward(*arguments, possible), strict=True):
        assert some is None or torch.equal(some, every)


def detector_sized(threads, groups=1):
    """A convolution and a pooling that keep several threads busy."""
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(2, 96, 30, 40, generator=gen)
    offset = 3 * torch.randn(2, 18, 30, 40, generator=gen)
    mask = torch.rand(2, 9, 30, 40, generator=gen)
    weight = torch.randn(64, 96 // groups, 3, 3, generator=gen)
    rois = torch.rand(50, 5, generator=gen) * torch.tensor([1.99, 100, 100, 100, 100])
    rois[:, 0].floor_()
    roi_offset, roi_mask = torch.randn(50, 2, 7, 7, generator=gen), torch.rand(50, 1, 7, 7)
    leaves = [t.requires_grad_() for t in (x, offset, weight, mask, roi_offset, roi_mask)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = dcn.deform_conv2d(x, offset, weight, padding=1, mask=mask)
        pooled = dcn.deform_roi_pool(x, rois, 7, roi_offset, roi_mask, 0.25)
        loss = out.square().sum() + pooled.square().sum()
        return out, pooled, *torch.autograd.grad(loss, leaves)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_same_bits_twice(threads, groups):
    torch.manual_seed(0)
    first = detector_sized(threads, groups)
    torch.manual_seed(0)
    for a, b in zip(first, detector_sized(threads, groups), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@each_width
def test_partial_sums_over_several_chunks_and_slices(bits, vectors, two_threads):
    """More positions and channels than one thread takes at a time."""
    vectors(bits)
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(1, 300, 150, 150, generator=gen)
    tensors = dict(
        input=x,
        offset=eighths((1, 18, 150, 150), gen, 2, special=False).float(),
        weight=torch.randn(3, 300, 3, 3, generator=gen),
        mask=torch.rand(1, 9, 150, 150, generator=gen),
    )
    leaves = [t.requires_grad_() for t in tensors.values()]
    out = dcn.deform_conv2d(**tensors, padding=1)
    grad = torch.randn(out.shape, generator=gen)
    grads = torch.autograd.grad(out, leaves, grad)
    geometry = dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    grads = dict(zip(tensors, grads, strict=True))
    assert_conv_is_its_definition(tensors, grad, out, grads, geometry)


def test_more_than_2_to_31_elements():
    """Only the pages that are touched take memory."""
    h = w = 12_000
    x = torch.empty(1, 16, h, w, memory_format=torch.channels_last)
    assert x.numel() > 2**31
    x[0, :, h - 1, w - 1] = torch.arange(16.0)
    offset = torch.tensor([h - 1.0, w - 1.0]).view(1, 2, 1, 1)
    out = dcn.deform_conv2d(x, offset, torch.eye(16).view(16, 16, 1, 1), stride=h)
    assert torch.equal(out.view(-1), torch.arange(16.0))
    rois = torch.tensor([[0, w - 0.5, h - 0.5, w + 0.5, h + 0.5]])
    pooled = dcn.deform_roi_pool(x, rois, 1, sampling_ratio=1)
    assert torch.equal(pooled.view(-1), torch.arange(16.0))


@pytest.mark.slow
def test_gradient_of_more_than_2_to_31_elements():
    """Needs 10 GB."""
    h = w = 12_000
    x = torch.empty(1, 16, h, w, memory_format=torch.channels_last)
    offset = torch.tensor([h - 1.0, w - 1.0]).view(1, 2, 1, 1)
    grad = torch.arange(16.0).view(1, 16, 1, 1)
    weight = torch.eye(16).view(16, 16, 1, 1)
    geometry = ([h, h], [0, 0], [1, 1])
    grad_input, *_ = torch.ops.dcn.deform_conv2d_backward(
        grad, x, offset, weight, None, None, *geometry, [True] + 4 * [False]
    )
    assert torch.equal(grad_input[0, :, h - 1, w - 1], torch.arange(16.0))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"offset": (1, 4, 5, 5)}, "offset"),
        ({"offset": (1, 18, 5, 4)}, "offset"),
        ({"weight": (2, 8, 3, 3)}, "weight"),
        ({"weight": (2, 0, 3, 3)}, "weight"),
        ({"weight": (3, 2, 3, 3)}, "weight"),
        ({"mask": (1, 1, 1, 1)}, "mask"),
        ({"bias": (1,)}, "bias"),
        ({"grad": (2, 2, 5, 5)}, "grad"),
    ],
)
def test_shapes_are_checked_below_the_public_call_too(change, name):
    """What would read outside memory."""
    shapes = dict(
        grad=(1, 2, 5, 5),
        input=(1, 4, 5, 5),
        offset=(1, 18, 5, 5),
        weight=(2, 4, 3, 3),
        bias=(2,),
        mask=(1, 9, 5, 5),
    )
    t = {name: torch.zeros(shape) for name, shape in (shapes | change).items()}
    geometry = ([1, 1], [1, 1], [1, 1])
    grad, *tensors = t.values()
    call, arguments = torch.ops.dcn.deform_conv2d, (*tensors, *geometry)
    if "grad" in change:
        call, arguments = torch.ops.dcn.deform_conv2d_backward, (grad, *arguments, [True] * 5)
    with pytest.raises(ValueError, match=name):
        call(*arguments)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rois": (3, 4)}, "rois"),
        ({"offset": (3, 2, 2, 1)}, "offset"),
        ({"mask": (2, 1, 2, 2)}, "mask"),
        ({"grad": (3, 4, 2, 3)}, "grad"),
    ],
)
def test_shapes_of_roi_pooling_are_checked_too(change, name):
    shapes = dict(
        grad=(3, 4, 2, 2), input=(1, 4, 5, 5), rois=(3, 5), offset=(3, 2, 2, 2), mask=(3, 1, 2, 2)
    )
    t = {name: torch.zeros(shape) for name, shape in (shapes | change).items()}
    with pytest.raises(ValueError, match=name):
        torch.ops.dcn.deform_roi_pool_backward(*t.values(), [2, 2], 1.0, 2, 0.1, [True] * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strides_of_a_sliced_input_are_those_that_compilers_expect(dtype):
    """The half of a channels-last map is neither contiguous nor channels-last."""
    x = torch.zeros(2, 8, 5, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)[:, :4]
    prediction = torch.zeros(2, 27, 5, 6, dtype=dtype)
    offset, mask = prediction.contiguous(memory_format=torch.channels_last).split((18, 9), 1)
    weight = torch.zeros(3, 4, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    grad = torch.zeros(2, 3, 5, 6, dtype=dtype)
    geometry = ([1, 1], [1, 1], [1, 1])
    rois = torch.zeros(3, 5)
    for op, arguments in (
        ("deform_conv2d", (x, offset, weight, None, mask, *geometry)),
        (
            "deform_conv2d_backward",
            (grad, x, offset, weight, None, mask, *geometry, [True, True, True, False, True]),
        ),
        ("deform_roi_pool", (x, rois, None, None, [2, 2], 1.0, 2, 0.1)),
        (
            "deform_roi_pool_backward",
            (
                torch.zeros(3, 4, 2, 2, dtype=dtype),
                *(x, rois, None, None, [2, 2], 1.0, 2, 0.1),
                [True, False, False],
            ),
        ),
    ):
        operator = getattr(torch.ops.dcn, op).default
        torch.library.opcheck(operator, arguments, test_utils="test_faketensor")


def test_infinite_modulation_stays_infinite():
    x, rois = torch.ones(1, 1, 6, 6), torch.tensor([[0, 1.5, 1.5, 4.5, 3.5]])
    mask = torch.full((1, 1, 1, 1), torch.inf)
    assert dcn.deform_roi_pool(x, rois, 1, mask=mask, sampling_ratio=3).item() == torch.inf


def test_many_bins_on_a_wide_map():
    """A row of bins keeps the cells of all its columns."""
    x = torch.arange(3000.0).double().expand(1, 1, 2, 3000).contiguous()
    rois = [[0, -10.0, 0, 3010, 2], [0, 3010.0, 2, -10, 0], [0, 5.0, 0, 6, 1]]
    rois = torch.tensor(rois, dtype=torch.float64)
    for ratio in (0, 1, 3):
        arguments = (rois, None, None, [2, 500], 1.0, ratio, 0.1)
        torch.testing.assert_close(
            OPERATORS["deform_roi_pool"].implementation("cpu").forward(x, *arguments),
            reference_pool.forward(x, *arguments),
        )


def test_no_roi_takes_no_memory():
    assert dcn.deform_roi_pool(torch.ones(1, 1, 4, 4), torch.ones(0, 5), 2**20).numel() == 0


def test_float16_is_computed_in_float32():
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 6, 6, generator=gen).half()
    offset = torch.randn(1, 18, 6, 6, generator=gen).half()
    weight = torch.randn(4, 8, 3, 3, generator=gen).half()
    out = dcn.deform_conv2d(x, offset, weight, padding=1)
    wide = dcn.deform_conv2d(x.float(), offset.float(), weight.float(), padding=1)
    assert torch.equal(out, wide.half())


def test_sources_compile_for_arm(tmp_path):
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("needs aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)")
    flags = ["-std=c++17", "-O1", "-fopenmp", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    for name in ("entry", "baseline"):
        source = Path(native.__file__).parent / "csrc" / f"{name}.cpp"
        out = tmp_path / f"{name}.o"
        define = '-DDCN_SOURCES=""'
        subprocess.run([compiler, *flags, define, "-c", source, "-o", out], check=True)


def copy_of_dcn(folder):
    shutil.copytree(Path(dcn.__file__).parent, folder / "dcn")
    return folder / "dcn"


def import_in(folder):
    code = (
        "import torch, dcn; from torchvision.ops import deform_conv2d as tv;"
        "x, o, w = torch.rand(1, 4, 5, 5), torch.rand(1, 18, 5, 5), torch.rand(2, 4, 3, 3);"
        "torch.testing.assert_close(dcn.deform_conv2d(x, o, w, padding=1), tv(x, o, w, padding=1));"
        "print(dcn.__file__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert str(folder) in run.stdout
    return run.stderr


def test_without_kernels_the_definition_runs_and_one_warning_says_so(tmp_path):
    (copy_of_dcn(tmp_path) / "_kernels.so").unlink()
    stderr = import_in(tmp_path)
    assert stderr.count("UserWarning") == 1
    assert "they have not been built" in stderr
    assert "pip install" in stderr


def test_kernels_of_other_sources_are_not_used(tmp_path):
    with open(copy_of_dcn(tmp_path) / "csrc" / "arguments.h", "a") as file:
        file.write("// changed\n")
    stderr = import_in(tmp_path)
    assert stderr.count("UserWarning") == 1
    assert "built from other sources" in stderr


def test_damaged_kernels_are_not_used(tmp_path):
    (copy_of_dcn(tmp_path) / "_kernels.so").write_bytes(b"not a library")
    stderr = import_in(tmp_path)
    assert stderr.count("UserWarning") == 1
    assert "invalid ELF header" in stderr or "too short" in stderr


def test_with_kernels_there_is_no_warning(tmp_path):
    copy_of_dcn(tmp_path)
    assert import_in(tmp_path) == ""


def test_fuzz():
    """Ten thousand calls: python tests/dcn/fuzz.py; under sanitizers: scripts/sanitize.sh."""
    counts = fuzz_calls(calls=300, seed=0)
    assert counts["good"] > 200
    assert counts["refused"] > 20
