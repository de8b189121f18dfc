"""The Triton kernels against the definition in float64."""

import importlib
import itertools
import warnings
from collections import defaultdict

import pytest
import torch

import dcn
from dcn.deform_conv import definition as reference_conv
from dcn.deform_kernel import definition as reference_kernel
from dcn.registration import OPERATORS
from tests.dcn import interpreter
from tests.dcn.definition import (
    OPERATOR_CASES,
    check_operator,
    conv_tensors,
    kernel_settings,
    kernel_tensors,
    run_operator,
)

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = triton.language
deform_conv, deform_kernel, deform_roi_pool, launching, readers = (
    importlib.import_module(f"dcn.{name}")
    for name in (
        *("deform_conv.gpu", "deform_kernel.gpu", "roi_pool.gpu"),
        *("gpu.launch", "gpu.readers"),
    )
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

# NumPy, which the interpreter computes with, warns of what is not finite.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")


needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")


@pytest.fixture(autouse=True)
def prepared_interpreter():
    interpreter.prepare()


@pytest.fixture
def timed_tile_sizes(monkeypatch):
    monkeypatch.setattr(launching, "_chosen", {})


@triton.jit
def turns_kernel(counter, turns):
    tl.store(turns + tl.program_id(0), tl.atomic_add(counter, 1))


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU's order is its own")
def test_the_interpreter_runs_programs_in_random_order():
    turns = [torch.zeros(9, dtype=torch.int32) for _ in range(2)]
    for t in turns:
        turns_kernel[(9,)](torch.zeros(1, dtype=torch.int32), t)
    assert sorted(turns[0].tolist()) == sorted(turns[1].tolist()) == list(range(9))
    assert not torch.equal(*turns)


def each_dtype(cases, *everywhere):
    """All cases in `everywhere`, the plain and the ragged one in the other dtypes as well."""
    return [
        pytest.param(case | dict(dtype=dtype), id=f"{name}-{str(dtype).split('.')[1]}")
        for name, case in cases.items()
        for dtype in DTYPES
        if dtype in everywhere or name in ("plain", "ragged")
    ]


def few(name):
    """Checks an operator in a few cases that hypothesis draws, if it is installed."""
    hypothesis = pytest.importorskip("hypothesis")
    from tests.dcn import strategies

    @hypothesis.settings(
        max_examples=6,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        derandomize=True,
    )
    @hypothesis.given(getattr(strategies, OPERATOR_CASES[name].strategy)(largest=6))
    def checked(case):
        check(name, case)

    checked()


CONV = dict(
    n=2,
    c_in=8,
    c_out=6,
    size=(4, 5),
    kernel=(3, 3),
    groups=1,
    deform_groups=1,
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    modulated=True,
    bias=True,
    layout=("channels_last", "channels_last"),
    dtype=torch.float32,
    seed=0,
)
CONVS = {
    "plain": {},
    "not_modulated": dict(modulated=False, bias=False, layout=("contiguous", "contiguous")),
    "uneven": dict(kernel=(3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2), size=(7, 5)),
    "kernel_1x1": dict(kernel=(1, 1), padding=(0, 0)),
    "groups": dict(c_in=12, groups=2, deform_groups=3),
    "depthwise": dict(c_in=4, c_out=8, groups=4, deform_groups=2, kernel=(2, 2)),
    # More channels and positions than a tile has, and not a multiple of it.
    "ragged": dict(n=3, c_in=136, c_out=264, kernel=(2, 1), padding=(1, 0), size=(6, 7)),
    "one_pixel": dict(n=1, size=(1, 1)),
    "empty": dict(n=0),
    "sliced": dict(layout=("sliced_channels_last", "sliced")),
    "transposed": dict(layout=("transposed", "transposed")),
}


def on_device(tensors):
    return {k: None if t is None else t.to(DEVICE) for k, t in tensors.items()}


def run(name, case):
    """Arguments, output gradient, output and gradients of an operator."""
    return run_operator(name, case, *dcn.gpu.kernels(OPERATORS[name]), DEVICE)


def check(name, case):
    kernels = dcn.gpu.kernels(OPERATORS[name])
    check_operator(name, case, *kernels, DEVICE, tensor_cores=name == "deform_conv2d")


def check_conv(case):
    check("deform_conv2d", CONV | case)


@pytest.mark.parametrize("case", each_dtype(CONVS, torch.float64, torch.bfloat16))
def test_deform_conv2d(case):
    check_conv(case)


@pytest.mark.parametrize("name", OPERATOR_CASES)
def test_an_operator_is_its_definition(name):
    few(name)


def with_tile_size(i, module, names, monkeypatch):
    """The i-th of all kernels, or the last of those that have fewer."""
    for name in names:
        kernel = getattr(module, f"{name}_kernel")
        monkeypatch.setattr(kernel, "configs", kernel.configs[: i + 1][-1:])


@pytest.mark.parametrize("i", range(6))
def test_deform_conv2d_with_every_tile_size(i, monkeypatch):
    names = ("forward", "grad_offset", "grad_weight", "grad_input")
    with_tile_size(i, deform_conv, names, monkeypatch)
    check_conv(dict(n=1, c_in=72, c_out=136, size=(5, 9), kernel=(2, 1), padding=(1, 0)))


def test_deform_conv2d_with_offsets_of_zero():
    """Where they start: a sample is a pixel, and three of four corners have no weight."""
    tensors, grad = conv_tensors(CONV | dict(dtype=torch.float64))
    tensors = on_device(tensors | dict(offset=torch.zeros_like(tensors["offset"])))
    grad = grad.to(DEVICE)
    geometry = ([1, 1], [1, 1], [1, 1])
    arguments = [tensors[k] for k in ("input", "offset", "weight", "bias", "mask")]
    actual = deform_conv.backward(grad, *arguments, *geometry, [True] * 5)
    expected = reference_conv.backward(grad, *arguments, *geometry, [True] * 5)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_every_sample_at_one_pixel():
    """One list holds everything, all others are empty."""
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64, device=DEVICE)
    place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij"))
    offset = (torch.tensor([1.25, 2.5]).view(2, 1, 1) - place).double()[None].to(DEVICE)
    weight = torch.randn(2, 3, 1, 1, dtype=torch.float64, device=DEVICE)
    grad = torch.randn(1, 2, 4, 5, dtype=torch.float64, device=DEVICE)
    geometry = ([1, 1], [0, 0], [1, 1])
    arguments = (grad, x, offset, weight, None, None, *geometry, [True] * 3 + [False] * 2)
    actual = deform_conv.backward(*arguments)
    expected = reference_conv.backward(*arguments)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_weight_gradient_in_splits(monkeypatch):
    monkeypatch.setattr(deform_conv, "MIN_CHUNK", 40)
    monkeypatch.setattr(deform_conv, "multiprocessors", lambda tensor: 64)
    shapes = []
    launch = deform_conv.launch

    def recorded(kernel, grid, arguments, **more):
        if kernel is deform_conv.grad_weight_kernel:
            shapes.append(more["grad_weight"].shape)
        launch(kernel, grid, arguments, **more)

    monkeypatch.setattr(deform_conv, "launch", recorded)
    check_conv(dict(n=3, size=(5, 7), groups=2, dtype=torch.bfloat16))
    assert shapes == [(3, 6, 3, 3, 4)]


def lists_of(case, monkeypatch):
    """The positions in the list of every pixel and kernel point."""
    seen = {}
    launch = deform_conv.launch

    def recorded(kernel, grid, arguments, **more):
        if kernel is deform_conv.grad_input_kernel:
            seen.update(arguments | more)
        launch(kernel, grid, arguments, **more)

    monkeypatch.setattr(deform_conv, "launch", recorded)
    check_conv(case)
    points = seen["points"] * seen["deform_groups"]
    ends = seen["ends"].view(points, -1)
    ends, entries = (ends - ends[:, :1]).tolist(), seen["list_position"].view(points, -1).tolist()
    return [
        entries[point][start:end]
        for point in range(points)
        for start, end in itertools.pairwise(ends[point])
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_deterministic_lists_are_in_order(dtype, monkeypatch):
    """Corner by corner, those of each in the order of the positions."""
    # So that several programs add to a list: in order of the programs, not of the corners.
    monkeypatch.setattr(readers, "LIST_BLOCK", 32)
    case = dict(dtype=dtype, size=(3, 3), kernel=(2, 2), padding=(3, 3), deform_groups=2)
    unordered = lists_of(case, monkeypatch)
    torch.use_deterministic_algorithms(True)
    try:
        ordered = lists_of(case, monkeypatch)
    finally:
        torch.use_deterministic_algorithms(False)
    assert list(map(sorted, ordered)) == list(map(sorted, unordered))
    if DEVICE == "cpu":  # a GPU may happen upon that order
        assert ordered != unordered
    for entries in ordered:
        assert sum(a > b for a, b in itertools.pairwise(entries)) <= 3


def test_a_bias_of_any_stride():
    tensors, _ = conv_tensors(CONV)
    tensors = on_device(tensors)
    arguments = [tensors[k] for k in ("input", "offset", "weight")]
    bias = torch.arange(12.0, device=DEVICE)[::2]
    geometry = (tensors["mask"], [1, 1], [1, 1], [1, 1])
    plain, biased = (deform_conv.forward(*arguments, b, *geometry) for b in (None, bias))
    torch.testing.assert_close(biased, plain + bias.view(-1, 1, 1))


def test_slices_of_something_large_take_64_bit_indices():
    base = torch.empty(2**31 + 4, dtype=torch.bfloat16, device="meta")
    assert launching.index_dtype(base[:8], None) is tl.int32
    assert launching.index_dtype(base[:8], base.as_strided((3, 2), (2**30, 1))) is tl.int64
    assert launching.index_dtype(base[:1].expand(2**31)) is tl.int64  # a copy has them all
    assert launching.index_dtype(base[1:0]) is tl.int32


def test_no_output_channel_is_an_error():
    x, offset = torch.zeros(1, 4, 5, 5, device=DEVICE), torch.zeros(1, 18, 5, 5, device=DEVICE)
    weight, grad = (torch.zeros(0, 4, 3, 3, device=DEVICE), torch.zeros(1, 0, 5, 5, device=DEVICE))
    with pytest.raises(ValueError, match="weight"):
        deform_conv.backward(grad, x, offset, weight, None, None, *[[1, 1]] * 3, [True] * 5)


@pytest.mark.usefixtures("deterministic")
def test_same_bits_twice():
    case = dict(size=(3, 3), kernel=(2, 2), dtype=torch.bfloat16)
    _, _, out, grads = run("deform_conv2d", CONV | case)
    _, _, again, grads_again = run("deform_conv2d", CONV | case)
    assert torch.equal(out, again)
    assert all(torch.equal(grads[k], grads_again[k]) for k in grads)


POOL = dict(
    n=2,
    channels=5,
    size=(7, 9),
    rois=6,
    output_size=(2, 3),
    sampling_ratio=0,
    offset=True,
    mask=True,
    layout=("channels_last", "contiguous"),
    dtype=torch.float32,
    seed=4,  # a multiple of 4 has RoIs that are not finite
)
POOLS = {
    "adaptive": {},
    "one_sample": dict(sampling_ratio=1),
    "two_samples": dict(sampling_ratio=2),
    "more_samples_than_pixels": dict(sampling_ratio=7, rois=3, seed=1),
    "plain": dict(offset=False, mask=False, seed=1),
    "offset": dict(mask=False, seed=2, sampling_ratio=4),
    "mask": dict(offset=False, layout=("sliced", "transposed")),
    # More channels and bins than a tile has, and not a multiple of it.
    "ragged": dict(channels=140, output_size=(7, 11), rois=2, sampling_ratio=2, seed=1),
    "no_rois": dict(rois=0),
}


def check_pool(case):
    check("deform_roi_pool", POOL | case)


@pytest.mark.parametrize("case", each_dtype(POOLS, torch.float64, torch.bfloat16))
def test_deform_roi_pool(case):
    check_pool(case)


@pytest.mark.parametrize("i", range(5))
def test_deform_roi_pool_with_every_tile_size(i, monkeypatch):
    with_tile_size(i, deform_roi_pool, ("forward", "backward"), monkeypatch)
    check_pool(dict(channels=72, rois=3, output_size=(4, 5), sampling_ratio=2, seed=1))


@pytest.mark.usefixtures("deterministic")
def test_deterministic_deform_roi_pool():
    check_pool({})


@pytest.mark.parametrize("index", [-1.0, 2.0, 1e30, torch.nan, torch.inf])
def test_an_roi_of_no_image_pools_nan(index):
    """Nothing waits for a check; and nothing is read or written."""
    x = torch.ones(2, 3, 4, 5, device=DEVICE)
    rois = torch.tensor([[1, 0.0, 0, 3, 3], [index, 0, 0, 3, 3]], device=DEVICE)
    offset, mask = (torch.ones(2, c, 2, 2, device=DEVICE) for c in (2, 1))
    arguments = (x, rois, offset, mask, [2, 2], 1.0, 2, 0.1)
    out = deform_roi_pool.forward(*arguments)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
    grads = deform_roi_pool.backward(torch.ones_like(out), *arguments, [True] * 3)
    alone = deform_roi_pool.backward(
        torch.ones_like(out[:1]), x, rois[:1], offset[:1], mask[:1], *arguments[4:], [True] * 3
    )
    torch.testing.assert_close(grads[0], alone[0])
    assert not grads[1][1].any()
    assert not grads[2][1].any()


KERNEL = dict(
    n=2,
    c_in=6,
    c_out=6,
    size=(5, 4),
    kernel=(3, 3),
    scope=(4, 4),
    groups=6,
    rotations=1,
    deform_groups=0,
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    clamp=False,
    bias=True,
    layout=("channels_last", "channels_last"),
    dtype=torch.float32,
    seed=0,
)
KERNELS = {
    "plain": {},
    "uneven": dict(
        kernel=(3, 2), scope=(2, 5), stride=(2, 3), padding=(0, 2), dilation=(2, 1), size=(9, 7)
    ),
    # More channels, positions and cells than a tile has, and not a multiple of it.
    "rotations": dict(
        c_in=75, c_out=75, groups=75, rotations=3, size=(6, 7), kernel=(2, 1), scope=(5, 4)
    ),
    "clamp": dict(clamp=True, bias=False, layout=("contiguous", "sliced")),
    "one_cell": dict(clamp=True, scope=(1, 1), kernel=(2, 2)),
    "small_scope": dict(scope=(1, 2)),
    "empty": dict(n=0),
}


def check_kernel(case):
    check("local_deform_kernel", KERNEL | case)


@pytest.mark.parametrize("case", each_dtype(KERNELS, torch.float32))
def test_local_deform_kernel(case):
    check_kernel(case)


@pytest.mark.parametrize("i", range(5))
def test_local_deform_kernel_with_every_tile_size(i, monkeypatch):
    names = ("forward", "grad_input", "grad_offset", "grad_weight")
    with_tile_size(i, deform_kernel, names, monkeypatch)
    wide = dict(c_in=70, c_out=70, groups=70, scope=(3, 6))
    check_kernel(wide | dict(n=1, size=(9, 15), kernel=(1, 2), padding=(0, 1)))


def test_scope_gradient_in_splits(monkeypatch):
    monkeypatch.setattr(deform_kernel, "MIN_CHUNK", 40)
    monkeypatch.setattr(deform_kernel, "multiprocessors", lambda tensor: 64)
    shapes = []
    launch = deform_kernel.launch

    def recorded(kernel, grid, arguments, **more):
        if kernel is deform_kernel.grad_weight_kernel:
            shapes.append(more["grad_weight"].shape)
        launch(kernel, grid, arguments, **more)

    monkeypatch.setattr(deform_kernel, "launch", recorded)
    check_kernel(dict(n=3, size=(5, 7), dtype=torch.bfloat16))
    assert shapes == [(3, 16, 6)]


@pytest.mark.parametrize("case", [dict(groups=2), dict(c_out=12), dict(deform_groups=1)])
def test_other_deformable_kernels_are_those_of_the_definition(case, monkeypatch):
    monkeypatch.setattr(deform_kernel, "launch", None)
    case = KERNEL | case
    tensors, grad = kernel_tensors(case)
    arguments = (*on_device(tensors).values(), *kernel_settings(case))
    wanted = [True] * 4 + [tensors["input_offset"] is not None]
    assert torch.equal(deform_kernel.forward(*arguments), reference_kernel.forward(*arguments))
    actual, expected = (
        module.backward(grad.to(DEVICE), *arguments, wanted)
        for module in (deform_kernel, reference_kernel)
    )
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_64_bit_indices(monkeypatch):
    for module in (deform_conv, deform_kernel, deform_roi_pool):
        monkeypatch.setattr(module, "index_dtype", lambda *tensors: tl.int64)
    check_conv(dict(deform_groups=2))
    check_kernel(dict(rotations=2))
    check_pool({})


def test_more_than_2_to_31_elements():
    """On a CPU only the pages that are touched take memory; a GPU needs 9 GB."""
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 10e9:
        pytest.skip("not 10 GB of memory free")
    h = w = 12_000
    x = torch.empty(1, 16, h, w, device=DEVICE, memory_format=torch.channels_last)
    x[0, :, h - 1, w - 1] = torch.arange(16.0)
    offset = torch.tensor([h - 1.0, w - 1.0], device=DEVICE).view(1, 2, 1, 1)
    weight = torch.eye(16, device=DEVICE).view(16, 16, 1, 1)
    geometry = ([h, h], [0, 0], [1, 1])
    out = deform_conv.forward(x, offset, weight, None, None, *geometry)
    assert out.flatten().tolist() == list(range(16))
    rois = torch.tensor([[0, w - 0.5, h - 0.5, w + 0.5, h + 0.5]], device=DEVICE)
    pooled = deform_roi_pool.forward(x, rois, None, None, [1, 1], 1.0, 1, 0.1)
    assert pooled.flatten().tolist() == list(range(16))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"offset": (1, 4, 5, 5)}, "offset"),
        ({"weight": (2, 8, 3, 3)}, "weight"),
        ({"mask": (1, 1, 1, 1)}, "mask"),
        ({"bias": (1,)}, "bias"),
    ],
)
def test_shapes_are_checked_below_the_public_call_too(change, name):
    """What would read outside memory."""
    shapes = dict(
        input=(1, 4, 5, 5), offset=(1, 18, 5, 5), weight=(2, 4, 3, 3), bias=(2,), mask=(1, 9, 5, 5)
    )
    t = [torch.zeros(shape, device=DEVICE) for shape in (shapes | change).values()]
    with pytest.raises(ValueError, match=name):
        deform_conv.forward(*t, [1, 1], [1, 1], [1, 1])


@pytest.mark.parametrize(
    ("tf32", "dtype", "expected"),
    [
        (True, torch.float32, "tf32"),
        (False, torch.float32, "tf32x3"),
        (True, torch.bfloat16, "ieee"),
        (False, torch.float64, "ieee"),
    ],
)
def test_float32_is_multiplied_as_convolutions_are(tf32, dtype, expected):
    torch.backends.cudnn.allow_tf32 = tf32  # strict_float32 puts it back
    assert launching.dot_precision(torch.zeros(1, dtype=dtype)) == expected


def test_the_newer_setting_of_convolutions_counts_too():
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    try:
        assert launching.dot_precision(torch.zeros(1)) == "tf32"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


@needs_gpu
@pytest.mark.usefixtures("timed_tile_sizes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_timed_tile_sizes(dtype):
    check_conv(dict(dtype=dtype, c_in=64, c_out=64, size=(9, 9)))
    check_pool(dict(dtype=dtype, channels=64, sampling_ratio=2, seed=1))


@needs_gpu
@pytest.mark.usefixtures("timed_tile_sizes")
def test_cuda_graph():
    """Forward and backward are captured once, and replayed on other numbers."""
    tensors, _ = conv_tensors(CONV | dict(c_in=64, c_out=64, size=(9, 9)))
    leaves = {k: t.to(DEVICE).requires_grad_() for k, t in tensors.items()}
    rois = torch.tensor([[0, 1.0, 1.0, 8.0, 7.0], [1, 0.0, 2.0, 5.0, 9.0]], device=DEVICE)

    def step():
        out = dcn.deform_conv2d(**leaves, padding=1)
        pooled = dcn.deform_roi_pool(out, rois, 3)
        return pooled, *torch.autograd.grad(pooled.square().sum(), list(leaves.values()))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves["input"].mul_(2)
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        # Pooling adds to its input's gradient in any order, and terms cancel.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * b.abs().max().item())


class Kernel:
    """Remembers how it was run."""

    arg_names, keys, reset_to_zero = ("x", "n", "BLOCK"), ("n",), ("x",)
    configs = tuple(triton.Config({"BLOCK": size}, num_warps=4) for size in (16, 24, 32))
    best_config = configs[1]

    def __init__(self):
        self.runs = []
        fixed = defaultdict(lambda: lambda **taken: self.runs.append(taken["BLOCK"]))
        self.fn = fixed  # by grid

    def __getitem__(self, grid):
        return lambda **taken: self.runs.append("timed")


def raising(error):
    def run(**taken):
        raise error

    return run


@pytest.mark.usefixtures("timed_tile_sizes")
@pytest.mark.parametrize(
    ("interpret", "deterministic", "capturing", "dtype", "expected"),
    [
        (False, False, False, torch.float32, "timed"),
        (True, False, False, torch.float32, 16),
        (False, True, False, torch.float32, 16),
        (False, False, True, torch.float32, 16),
        (False, False, False, torch.float64, 32),
    ],
)
def test_what_is_timed(interpret, deterministic, capturing, dtype, expected, monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", interpret)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    kernel, arguments = Kernel(), dict(x=torch.zeros(1, dtype=dtype), n=3, unused=1)
    launching.launch(kernel, None, arguments)
    assert kernel.runs == [expected]
    if expected == "timed":  # what has been timed may be captured, but is not deterministic
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        launching.launch(kernel, None, arguments)
        launching.launch(kernel, None, arguments | dict(n=4))
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        launching.launch(kernel, None, arguments)
        assert kernel.runs == ["timed", 24, 16, 16]


@pytest.mark.usefixtures("timed_tile_sizes")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 MiB."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
def test_without_memory_to_time_in_the_fixed_tile_size_serves(error, monkeypatch):
    class Timed(Kernel):
        def __getitem__(self, grid):
            def run(x, n):
                x.add_(1)
                raise error

            return run

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    kernel, x = Timed(), torch.zeros(1)
    with pytest.warns(UserWarning, match="no memory is left"):
        launching.launch(kernel, None, dict(x=x, n=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        launching.launch(kernel, None, dict(x=x, n=3))
    assert kernel.runs == [16, 16]
    assert not x.any()  # what is added up starts at zero again


@pytest.mark.parametrize(
    "error",
    [
        triton.runtime.errors.OutOfResources(2, 1, "shared memory"),
        triton.runtime.errors.PTXASError("no such instruction"),
        triton.compiler.errors.CompilationError("x = 1", None, "no such thing"),
        RuntimeError("Triton Error [CUDA]: invalid device function"),
    ],
)
def test_a_kernel_that_fails_is_told_from_other_errors(error):
    kernel = Kernel()
    kernel.fn = {None: raising(error)}
    with pytest.raises(dcn.gpu.KernelError, match=type(error).__name__) as raised:
        launching.launch(kernel, None, dict(x=torch.zeros(1), n=3))
    assert raised.value.__cause__ is error
    kernel.fn[None] = raising(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        launching.launch(kernel, None, dict(x=torch.zeros(1), n=3))
