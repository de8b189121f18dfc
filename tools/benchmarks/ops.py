"""The operators beside F.conv2d, torchvision, mmcv and their own definition in plain PyTorch."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
import torchvision

import dcn
from dcn.deform_conv import definition as reference_conv
from dcn.roi_pool import definition as reference_pool

from . import family, measure
from .functions import Function, between_pixels, channels_last

MMCV = measure.mmcv_operators()


# A modulated deformable convolution, C_in = C_out; `size` is (channels, height, width).
SETTINGS = "name size batch kernel stride dilation groups deform_groups"
Conv = namedtuple("Conv", SETTINGS, defaults=(1, 3, 1, 1, 1, 1))
# A deformable RoI pooling of a map of `size` to 7×7 bins.
Pool = namedtuple("Pool", "name size sampling_ratio num_rois batch", defaults=(1,))

# ResNet-50's conv3, conv4 and conv5 on an 800×1344 image.
CONVS = (Conv("conv3", (128, 100, 168)), Conv("conv4", (256, 50, 84)), Conv("conv5", (512, 25, 42)))
DEPTHWISE = [Conv(f"stage {i}", size, groups=size[0]) for i, size in enumerate(family.SIZES, 1)]
VARIANTS = {"batch": 2, "stride": 2, "deform_groups": 4, "groups": 32, "kernel": 5, "dilation": 2}
VARIANT_REPEATS = 3  # the slow ones take seconds there
GPU_BATCHES = (2, 16)
# An image of 16 times the pixels, for memory alone.
LARGE = Conv("conv3", (128, 400, 672))
POOL_MAP, SCALE, GAMMA = (256, 50, 84), 1 / 16, 1 / 8
NUM_ROIS = {"cpu": (512,), "cuda": (512, 1000)}
SAMPLING = {2: "2×2 samples per bin", 0: "adaptive sampling"}
DTYPES = {"cpu": [torch.float32], "cuda": [torch.bfloat16, torch.float16, torch.float32]}
POOL_DTYPES = {"cpu": [torch.float32], "cuda": [torch.bfloat16, torch.float32]}
# What no cache holds, and what keeps every multiprocessor busy.
COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}


def conv_functions(case: Conv, dtype=torch.float32, device: str = "cpu") -> dict[str, Function]:
    """dcn is given channels-last tensors, torchvision and mmcv contiguous ones, which is what their
    kernels work in; F.conv2d is there in both formats.
    """
    gen = torch.Generator().manual_seed(0)
    n, (c, height, width), kernel = case.batch, case.size, case.kernel
    points = case.deform_groups * kernel**2
    padding = case.dilation * (kernel // 2)
    regular = dict(stride=case.stride, padding=padding, dilation=case.dilation)
    x = torch.randn(n, c, height, width, generator=gen)
    weight = torch.randn(c, c // case.groups, kernel, kernel, generator=gen) * 0.01
    bias = torch.randn(c, generator=gen)
    out = F.conv2d(x[:1, :1], weight[:1, :1], **regular).shape[2:]
    offset = between_pixels(torch.randn(n, 2 * points, *out, generator=gen), dtype)
    mask = torch.rand(n, points, *out, generator=gen)
    tensors = dict(input=x, offset=offset, weight=weight, mask=mask, bias=bias)
    tensors = {name: t.to(device, dtype) for name, t in tensors.items()}
    grad = torch.randn(n, c, *out, generator=gen).to(device, dtype)

    def mmcv(input, offset, weight, mask, bias):
        settings = (*regular.values(), case.groups, case.deform_groups)
        return MMCV.modulated_deform_conv2d(input, offset, mask, weight, bias, *settings)

    pairs = {name: [value, value] for name, value in regular.items()}
    reference = partial(reference_conv.forward, **pairs)

    def reference_backward(grad, **tensors):
        *found, bias, mask = reference_conv.backward(
            grad, **tensors, **pairs, output_mask=[True] * 5
        )
        return (*found, mask, bias)  # as in `tensors`

    conv2d = partial(F.conv2d, groups=case.groups, **regular)
    plain = {name: tensors[name] for name in ("input", "weight", "bias")}
    last, last_grad = channels_last(tensors), channels_last({"grad": grad})["grad"]
    own, theirs = (partial(m.deform_conv2d, **regular) for m in (dcn, torchvision.ops))
    exact = Function(reference, tensors, grad, reference_backward).to(torch.float64)
    return {
        "F.conv2d (NCHW)": Function(conv2d, plain, grad),
        "F.conv2d (NHWC)": Function(conv2d, channels_last(plain), last_grad),
        "dcn": Function(own, last, last_grad, exact=exact),
        "torchvision": Function(theirs, tensors, grad, exact=exact),
        "mmcv": Function(mmcv, tensors, grad, exact=exact),
        "reference": Function(reference, last, last_grad, reference_backward, exact),
    }


def pool_functions(case: Pool, dtype=torch.float32, device: str = "cpu") -> dict[str, Function]:
    """As in `between_pixels`, no sample may be so close to a pixel that rounding decides on which
    side it is, nor a bin's size to where it gets one more sample. So bins are odd eighths of a
    pixel of the map, offsets move them by multiples of 1/512, and corners are 1/1024 off that: also
    with three samples a bin, all are at least 1/3072 away from any pixel.
    """
    gen = torch.Generator().manual_seed(0)
    rois, ratio = case.num_rois, case.sampling_ratio
    x = torch.randn(1, *case.size, generator=gen)
    corner = torch.rand(rois, 2, generator=gen) * torch.tensor([1000.0, 600.0])
    corner = corner.round() + 1 / 64
    size = (torch.rand(rois, 2, generator=gen) * 11 + 1).floor() * 28 + 14
    offset = (torch.randn(rois, 2, 7, 7, generator=gen) * 8).round() / 8
    mask = torch.rand(rois, 1, 7, 7, generator=gen)
    boxes = torch.cat((torch.zeros(rois, 1), corner, corner + size), 1).to(device)
    plain = {"input": x.to(device, dtype), "rois": boxes}
    deformed = plain | {"offset": offset.to(device, dtype), "mask": mask.to(device, dtype)}
    grad = torch.randn(rois, case.size[0], 7, 7, generator=gen).to(device, dtype)
    geometry = dict(output_size=(7, 7), spatial_scale=SCALE, sampling_ratio=ratio, gamma=GAMMA)
    pool, reference = (
        partial(function, offset=None, mask=None, **geometry)
        for function in (dcn.deform_roi_pool, reference_pool.forward)
    )

    def reference_backward(grad, input, rois, offset=None, mask=None):
        wanted = [True, offset is not None, mask is not None]
        tensors = (grad, input, rois, offset, mask)
        return reference_pool.backward(*tensors, **geometry, output_mask=wanted)

    def torchvision_align(input, rois):
        # its default, -1, is our 0
        return torchvision.ops.roi_align(input, rois, 7, SCALE, ratio or -1, aligned=True)

    def mmcv_align(input, rois):
        return MMCV.roi_align(input, rois, (7, 7), SCALE, ratio, "avg", True)

    exact, exact_deformed = (
        Function(reference, tensors, grad, reference_backward).to(torch.float64)
        for tensors in (plain, deformed)
    )
    last, last_deformed = channels_last(plain), channels_last(deformed)
    return {
        "dcn": Function(pool, last, grad, exact=exact),
        "dcn, offsets and masks": Function(pool, last_deformed, grad, exact=exact_deformed),
        "torchvision": Function(torchvision_align, plain, grad, exact=exact),
        "mmcv": Function(mmcv_align, plain, grad, exact=exact),
        "reference": Function(reference, last, grad, reference_backward, exact),
    }


BUILDERS = {
    Conv: conv_functions,
    Pool: pool_functions,
    family.Aggregation: family.aggregation_functions,
    family.DeformKernel: family.deform_kernel_functions,
}


def run(device: str, repeats: int, threads: int) -> dict:
    """Convolution and pooling; progress goes to standard output."""
    gpu, cases = device == "cuda", [*CONVS]
    if gpu:
        cases += (case for n in GPU_BATCHES for case in varied("batch", n))
    sections = {"rates": measure_rates(repeats, device)}
    sections["convolution"] = compare_all(cases, repeats, device)
    sections["pooling"] = [
        compare(Pool(SAMPLING[ratio], POOL_MAP, ratio, num_rois), repeats, dtype, device)
        for dtype in POOL_DTYPES[device]
        for num_rois in NUM_ROIS[device]
        for ratio in SAMPLING
    ]
    if not gpu:
        few = min(repeats, VARIANT_REPEATS)
        sections["variants"] = [
            compare(case, few) for setting in VARIANTS.items() for case in varied(*setting)
        ]
        sections["threads"] = measure_threads(threads, repeats) if threads > 1 else []
        sections["memory"] = measure_memory()
    return sections


def run_family(device: str, repeats: int, threads: int) -> dict:
    """What has few channels per group or none to multiply; progress goes to standard output."""
    few = min(repeats, VARIANT_REPEATS)
    sections = {"rates": measure_rates(repeats, device)}
    sections["narrow"] = compare_all(varied("groups", VARIANTS["groups"]), few, device)
    for name, cases in (
        ("depthwise", DEPTHWISE),
        ("aggregation", family.AGGREGATIONS),
        ("deform_kernel", family.DEFORM_KERNELS),
    ):
        sections[name] = compare_all(cases, repeats, device)
    if device == "cpu":
        sections["network"] = family.measure_network(few)
        sections["classifier"] = family.measure_classifier(repeats)
    return sections


def compare_all(cases: list[tuple], repeats: int, device: str) -> list[dict]:
    return [compare(case, repeats, dtype, device) for dtype in DTYPES[device] for case in cases]


def varied(setting: str, value: int) -> list[Conv]:
    title = f"{setting} {value}" + (f"×{value}" if setting == "kernel" else "")
    return [c._replace(name=f"{c.name}, {title}", **{setting: value}) for c in CONVS]


def compare(case: tuple, repeats: int, dtype=torch.float32, device: str = "cpu") -> dict:
    """Figures of every implementation; in place of those of what fails there is its error."""
    gpu, shape = device == "cuda", "×".join(map(str, case.size))
    if isinstance(case, Pool):
        shape = f"{case.num_rois} RoIs on {shape}"
    row = dict(case=case.name, shape=shape, dtype=str(dtype).removeprefix("torch."))
    print(f"{row['dtype']}, {shape}, {case.name}", flush=True)
    skipped = ("mmcv", "reference") if gpu else ("mmcv",) if MMCV is None else ()
    functions = BUILDERS[type(case)](case, dtype, device)
    functions = {n: f for n, f in functions.items() if n not in skipped}
    results = {name: {} for name in functions}
    if gpu and dtype == torch.bfloat16 and "torchvision" in functions:
        # Its CUDA kernels do not have it.
        functions["torchvision"] = functions["torchvision"].to(torch.float32)
        results["torchvision"]["dtype"] = "float32"
    results = {name: functions[name].least_work() | more for name, more in results.items()}
    # At larger batches the definition, which writes out all samples, does not fit a GPU in float64.
    single = getattr(case, "batch", 1) == 1
    exact = {f.exact for f in functions.values() if not gpu or single} - {None}
    expected = {function: measure.attempt(function.both) for function in exact}
    clock = measure.host_clock if isinstance(case, Conv | Pool) else measure.second_clock
    clock = measure.gpu_clock if gpu else clock
    for kind in ("forward", "both"):
        calls = {name: getattr(function, kind) for name, function in functions.items()}
        for name, figures in measure.side_by_side(calls, repeats, device, clock).items():
            results[name] |= {f"{kind}_{key}": value for key, value in figures.items()}
    for name, values in results.items():
        function = functions[name]
        if function.exact in expected and "both_ms" in values:
            wanted, error = expected[function.exact]
            values["difference"] = error or measure.largest_difference(function.both(), wanted)
        shown = [values.get(f"{k}_ms", values.get(f"{k}_error")) for k in ("forward", "both")]
        print(f"  {name:24} {shown[0]} / {shown[1]} ms", flush=True)
    return row | dict(repeats=repeats, results=results)


def measure_rates(repeats: int, device: str) -> dict:
    """What this machine copies and multiplies at best."""
    if device == "cuda":
        # As cuDNN does by default. dcn follows cuDNN, torchvision multiplies matrices.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        # dcn's tile sizes are timed, so cuDNN's algorithms are as well.
        torch.backends.cudnn.benchmark = True
    print("copy and matmul", flush=True)
    copied, size = COPY_BYTES[device], MATMUL_SIZE[device]
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls = {"copy": lambda: (target.copy_(source),)}
    for dtype in DTYPES[device]:
        matrix = torch.randn(size, size, dtype=dtype, device=device)
        calls[str(dtype).removeprefix("torch.")] = lambda matrix=matrix: (matrix @ matrix,)
    clock = measure.gpu_clock if device == "cuda" else measure.host_clock
    figures = measure.side_by_side(calls, repeats, device, clock)
    seconds = {name: values["ms"] / 1e3 for name, values in figures.items()}
    return {
        "bytes_per_s": 2 * copied / seconds.pop("copy"),
        "operations_per_s": {name: 2 * size**3 / s for name, s in seconds.items()},
    }


def measure_memory() -> list[dict]:
    """On a large image, and what the formats and types cost that the kernels do not work in."""
    functions = conv_functions(LARGE)
    own = functions["dcn"]
    functions = {
        "F.conv2d, channels-last": functions["F.conv2d (NHWC)"],
        "dcn, channels-last": own,
        "dcn, contiguous": replace(own, tensors=functions["torchvision"].tensors),
        "dcn, channels-last, bfloat16": own.to(torch.bfloat16),
    }
    print("memory", flush=True)
    return [
        {
            "implementation": name,
            "shape": "×".join(map(str, LARGE.size)),
            "image_mb": function.tensors["input"].nbytes / 1e6,
            "forward_mb": measure.peak_extra_memory(function.forward, "cpu"),
            "both_mb": measure.peak_extra_memory(function.both, "cpu"),
        }
        for name, function in functions.items()
    ]


def measure_threads(threads: int, repeats: int) -> list[dict]:
    """One thread beside `threads`, of dcn alone, in turns."""
    cases = {f"deform_conv2d, {case.name}": conv_functions(case)["dcn"] for case in CONVS}
    cases["deform_roi_pool"] = pool_functions(Pool("", POOL_MAP, 2, NUM_ROIS["cpu"][0]))["dcn"]

    def on(count: int, call: Callable) -> tuple:
        torch.set_num_threads(count)
        return call()

    rows = []
    for name, function in cases.items():
        print(f"threads: {name}", flush=True)
        rows.append({"case": name})
        for kind in ("forward", "both"):
            call = getattr(function, kind)
            calls = {"one": partial(on, 1, call), "many": partial(on, threads, call)}
            for count, figures in measure.side_by_side(calls, repeats, "cpu").items():
                rows[-1][f"{kind}_ms_{count}"] = figures["ms"]
    return rows
