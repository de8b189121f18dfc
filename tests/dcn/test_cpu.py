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
from dcn import cpu
from dcn.reference import deform_conv as reference_conv
from dcn.reference import deform_roi_pool as reference_pool

fuzz_calls = runpy.run_path(str(Path(__file__).with_name("fuzz.py")))["run"]

pytestmark = pytest.mark.skipif(cpu.library is None, reason="the CPU kernels are not built")

# Also 128 and 256 bits on a machine that has more; a machine with fewer runs the same one twice.
each_width = pytest.mark.parametrize("bits", [128, 256, 512])
every_dtype = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
fast = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def vectors():
    yield cpu.library.dcn_limit_vectors
    cpu.library.dcn_limit_vectors(512)


def eighths(shape, gen, reach=4.0, special=True):
    """Multiples of 1/8, so that positions are exact in every dtype and on the same side of a pixel.

    Some of them are whole, some not finite, some absurd.
    """
    values = (torch.randn(shape, generator=gen).double() * reach * 8).round() / 8
    if special and values.numel():
        count = max(1, values.numel() // 16)
        where = torch.randint(0, values.numel(), (count,), generator=gen)
        what = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30]).double()
        values.view(-1)[where] = what[torch.randint(0, 5, (count,), generator=gen)]
    return values


def relaid(tensor, layout):
    """The same values in another memory layout."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.cat((tensor, tensor, tensor), 1)[:, tensor.shape[1] : 2 * tensor.shape[1]]
    if layout == "sliced_channels_last":
        return relaid(relaid(tensor, "channels_last"), "sliced")
    if layout == "transposed":
        return tensor.mT.contiguous().mT
    return tensor


layouts = st.sampled_from(
    ["contiguous", "channels_last", "sliced", "sliced_channels_last", "transposed"]
)


def assert_rounded_alike(actual, expected, dtype, terms, name):
    """Sums are rounded as float32 is (float64 for float64), then the result to `dtype` is.

    `terms` bounds the sum of the absolute values that are added up.
    """
    assert actual.dtype == dtype, name
    assert actual.shape == expected.shape, name
    if expected.numel() == 0:
        return
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    atol = 8 * torch.finfo(sums).eps * float(terms)
    rtol = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
    torch.testing.assert_close(
        actual.double(), expected, rtol=rtol, atol=atol, msg=lambda m: f"{name}: {m}"
    )


def absolute(tensor):
    return None if tensor is None else tensor.abs()


def largest(tensor):
    return tensor.max().item() if tensor.numel() else 0.0


def assert_conv_is_its_definition(tensors, grad, out, grads, geometry):
    """Output, and gradients by name, of tensors of any dtype against the definition in float64."""
    dtype = out.dtype
    x, offset, weight, bias, mask = (
        None if tensors.get(k) is None else tensors[k].detach().double()
        for k in ("input", "offset", "weight", "bias", "mask")
    )
    grad = grad.double()
    pairs = [list(geometry[k]) for k in ("stride", "padding", "dilation")]
    expected = reference_conv.forward(x, offset, weight, bias, mask, *pairs)
    terms = reference_conv.forward(
        x.abs(), offset, weight.abs(), absolute(bias), absolute(mask), *pairs
    )
    assert_rounded_alike(out.detach(), expected, dtype, largest(terms), "output")

    names = ("input", "offset", "weight", "mask")
    expected = reference_conv.backward(grad, x, offset, weight, mask, *pairs)
    terms = reference_conv.backward(
        grad.abs(), x.abs(), offset, weight.abs(), absolute(mask), *pairs
    )
    sample_grad = grad.abs().mul(weight.abs().amax((2, 3)).sum(1).view(-1, 1, 1)).sum(1)
    of_samples = largest(x.abs()) * largest(sample_grad)
    for name, e, t in zip(names, expected, terms, strict=True):
        if grads.get(name) is not None:
            bound = of_samples if name in ("offset", "mask") else largest(t)
            assert_rounded_alike(grads[name], e, dtype, bound, f"gradient of {name}")


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    deform_groups = draw(st.sampled_from([1, 1, 2, 3]))
    unit = groups * deform_groups
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return dict(
        n=draw(st.integers(0, 3)),
        c_in=unit * draw(st.integers(1, 24)),
        c_out=groups * draw(st.integers(1, 40)),
        size=draw(st.tuples(st.integers(1, 12), st.integers(1, 12))),
        kernel=kernel,
        groups=groups,
        deform_groups=deform_groups,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        # Enough that there is an output.
        padding=tuple(2 * k for k in kernel),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        modulated=draw(st.booleans()),
        bias=draw(st.booleans()),
        layout=draw(st.tuples(layouts, layouts)),
        dtype=draw(every_dtype),
        threads=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**31)),
    )


def conv_tensors(case):
    gen = torch.Generator().manual_seed(case["seed"])
    (h, w), (kh, kw) = case["size"], case["kernel"]
    out = [
        (s + 2 * p - d * (k - 1) - 1) // st + 1
        for s, p, d, k, st in zip(
            (h, w), case["padding"], case["dilation"], (kh, kw), case["stride"], strict=True
        )
    ]
    points = case["deform_groups"] * kh * kw
    tensors = dict(
        input=torch.randn(case["n"], case["c_in"], h, w, generator=gen),
        offset=eighths((case["n"], 2 * points, *out), gen),
        weight=torch.randn(case["c_out"], case["c_in"] // case["groups"], kh, kw, generator=gen),
        bias=torch.randn(case["c_out"], generator=gen) if case["bias"] else None,
        mask=torch.rand(case["n"], points, *out, generator=gen) if case["modulated"] else None,
    )
    first, second = case["layout"]
    tensors = {k: None if t is None else t.to(case["dtype"]) for k, t in tensors.items()}
    return {
        k: t if t is None or t.dim() < 4 else relaid(t, first if k != "offset" else second)
        for k, t in tensors.items()
    }, torch.randn(case["n"], case["c_out"], *out, generator=gen).to(case["dtype"])


@each_width
@fast
@given(case=convolutions())
def test_deform_conv2d_is_its_definition(bits, case):
    cpu.library.dcn_limit_vectors(bits)
    before = torch.get_num_threads()
    torch.set_num_threads(case["threads"])
    try:
        tensors, grad = conv_tensors(case)
        geometry = {name: case[name] for name in ("stride", "padding", "dilation")}
        leaves = {k: None if t is None else t.requires_grad_() for k, t in tensors.items()}
        out = dcn.deform_conv2d(**leaves, **geometry)
        out.backward(relaid(grad, case["layout"][1]))
    finally:
        torch.set_num_threads(before)
        cpu.library.dcn_limit_vectors(512)
    grads = {k: None if t is None else t.grad for k, t in leaves.items()}
    assert_conv_is_its_definition(tensors, grad, out, grads, geometry)


@st.composite
def poolings(draw):
    return dict(
        n=draw(st.integers(1, 2)),
        channels=draw(st.integers(1, 70)),
        size=draw(st.tuples(st.integers(1, 14), st.integers(1, 14))),
        rois=draw(st.integers(0, 6)),
        output_size=draw(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]))),
        sampling_ratio=draw(st.sampled_from([0, 1, 2, 4])),
        offset=draw(st.booleans()),
        mask=draw(st.booleans()),
        layout=draw(st.tuples(layouts, layouts)),
        dtype=draw(every_dtype),
        threads=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**31)),
    )


def pool_tensors(case):
    gen = torch.Generator().manual_seed(case["seed"])
    count = case["rois"]
    index = torch.randint(0, case["n"], (count, 1), generator=gen)
    # Some inverted, some of no area, some outside, some not finite.
    boxes = eighths((count, 4), gen, reach=16, special=case["seed"] % 4 == 0)
    tensors = dict(
        input=torch.randn(case["n"], case["channels"], *case["size"], generator=gen),
        rois=torch.cat((index, boxes), 1),
        offset=eighths((count, 2, *case["output_size"]), gen) if case["offset"] else None,
        mask=torch.rand(count, 1, *case["output_size"], generator=gen) if case["mask"] else None,
    )
    dtypes = {"rois": torch.float64 if case["dtype"] == torch.float64 else torch.float32}
    tensors = {
        k: None if t is None else t.to(dtypes.get(k, case["dtype"])) for k, t in tensors.items()
    }
    tensors["input"] = relaid(tensors["input"], case["layout"][0])
    grad = torch.randn(count, case["channels"], *case["output_size"], generator=gen)
    return tensors, grad.to(case["dtype"])


@each_width
@fast
@given(case=poolings())
def test_deform_roi_pool_is_its_definition(bits, case):
    cpu.library.dcn_limit_vectors(bits)
    before = torch.get_num_threads()
    torch.set_num_threads(case["threads"])
    try:
        tensors, grad = pool_tensors(case)
        geometry = (case["output_size"], 0.5, case["sampling_ratio"], 0.25)
        leaves = {
            k: None if t is None else t.requires_grad_(k != "rois") for k, t in tensors.items()
        }
        out = dcn.deform_roi_pool(
            leaves["input"],
            leaves["rois"],
            case["output_size"],
            leaves["offset"],
            leaves["mask"],
            *geometry[1:],
        )
        out.backward(relaid(grad, case["layout"][1]))
    finally:
        torch.set_num_threads(before)
        cpu.library.dcn_limit_vectors(512)
    x, rois, offset, mask = (
        None if tensors[k] is None else tensors[k].detach().double()
        for k in ("input", "rois", "offset", "mask")
    )
    expected = reference_pool.forward(x, rois, offset, mask, *geometry)
    bound = reference_pool.forward(x.abs(), rois, offset, mask, *geometry)
    assert_rounded_alike(out.detach(), expected, case["dtype"], largest(bound), "output")

    grad = grad.double()
    grads = reference_pool.backward(grad, x, rois, offset, mask, *geometry)
    bounds = reference_pool.backward(grad.abs(), x.abs(), rois, offset, mask, *geometry)
    of_bins = largest(x.abs()) * largest(grad.abs().sum(1))
    extent = (rois[:, 3:] - rois[:, 1:3]).abs()
    of_shifts = of_bins * largest(extent[extent.isfinite()]) * 0.5 * 0.25
    for name, expected, bound in zip(("input", "offset", "mask"), grads, bounds, strict=True):
        if name == "offset" and case["sampling_ratio"] == 0:
            # Thirds of a pixel are not exact: a sample may fall on either side of a pixel's
            # centre, where the value is the same but its derivative is not.
            continue
        terms = {"input": largest(bound), "offset": of_shifts, "mask": of_bins}[name]
        if leaves[name] is not None:
            assert_rounded_alike(leaves[name].grad, expected, case["dtype"], terms, name)


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
    grad_input, *_ = torch.ops.dcn.deform_conv2d_backward(grad, x, offset, weight, None, *geometry)
    assert torch.equal(grad_input[0, :, h - 1, w - 1], torch.arange(16.0))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"offset": (1, 4, 5, 5)}, "offset"),
        ({"offset": (1, 18, 5, 4)}, "mask"),  # offset and output agree, mask does not
        ({"weight": (2, 8, 3, 3)}, "weight"),
        ({"weight": (2, 0, 3, 3)}, "weight"),
        ({"weight": (3, 2, 3, 3)}, "weight"),
        ({"mask": (1, 1, 1, 1)}, "mask"),
        ({"bias": (1,)}, "bias"),
        ({"grad": (2, 2, 5, 5)}, "output"),
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
    call, arguments = (
        (torch.ops.dcn.deform_conv2d_backward, ("grad", "input", "offset", "weight", "mask"))
        if "grad" in change
        else (torch.ops.dcn.deform_conv2d, ("input", "offset", "weight", "bias", "mask"))
    )
    with pytest.raises(ValueError, match=name):
        call(*(t[k] for k in arguments), *geometry)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rois": (3, 4)}, "rois"),
        ({"offset": (3, 2, 2, 1)}, "offset"),
        ({"mask": (2, 1, 2, 2)}, "mask"),
        ({"grad": (3, 4, 2, 3)}, "output"),
    ],
)
def test_shapes_of_roi_pooling_are_checked_too(change, name):
    shapes = dict(
        grad=(3, 4, 2, 2), input=(1, 4, 5, 5), rois=(3, 5), offset=(3, 2, 2, 2), mask=(3, 1, 2, 2)
    )
    t = {name: torch.zeros(shape) for name, shape in (shapes | change).items()}
    with pytest.raises(ValueError, match=name):
        torch.ops.dcn.deform_roi_pool_backward(*t.values(), [2, 2], 1.0, 2, 0.1)


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
        ("deform_conv2d_backward", (grad, x, offset, weight, mask, *geometry)),
        ("deform_roi_pool", (x, rois, None, None, [2, 2], 1.0, 2, 0.1)),
        (
            "deform_roi_pool_backward",
            (torch.zeros(3, 4, 2, 2, dtype=dtype), x, rois, None, None, [2, 2], 1.0, 2, 0.1),
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
            cpu.deform_roi_pool(x, *arguments), reference_pool.forward(x, *arguments)
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
    for name in ("library", "baseline"):
        source = Path(cpu.__file__).parent / "csrc" / f"{name}.cpp"
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
    for file in copy_of_dcn(tmp_path).glob("_kernels*"):
        file.unlink()
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
    (kernels,) = copy_of_dcn(tmp_path).glob("_kernels*.so")
    kernels.write_bytes(b"not a library")
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
