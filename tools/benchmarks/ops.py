"""The operators beside F.conv2d, torchvision, mmcv and their own definition in plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

import dcn
from dcn.reference import deform_conv as reference_conv
from dcn.reference import deform_roi_pool as reference_pool

from . import measure

MMCV = measure.mmcv_operators()


@dataclass(frozen=True)
class Conv:
    """A modulated deformable convolution, C_in = C_out."""

    name: str
    channels: int
    height: int
    width: int
    batch: int = 1
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    deform_groups: int = 1

    @property
    def shape(self) -> str:
        return f"{self.channels}×{self.height}×{self.width}"


# ResNet-50's conv3, conv4 and conv5 on an 800×1344 image.
CONVS = (Conv("conv3", 128, 100, 168), Conv("conv4", 256, 50, 84), Conv("conv5", 512, 25, 42))
VARIANTS = {
    "batch 2": dict(batch=2),
    "stride 2": dict(stride=2),
    "deform_groups 4": dict(deform_groups=4),
    "groups 32": dict(groups=32),
    "kernel 5×5": dict(kernel=5),
    "dilation 2": dict(dilation=2),
}
VARIANT_REPEATS = 3  # the slow ones take seconds there
# An image of 16 times the pixels, for memory alone.
LARGE = Conv("conv3", 128, 400, 672)
POOL_MAP = (256, 50, 84)
GAMMA = 1 / 8
NUM_ROIS = {"cpu": (512,), "cuda": (512, 1000)}
SAMPLING = {2: "2×2 samples per bin", 0: "adaptive sampling"}
GPU_BATCHES = {"batch 2": dict(batch=2), "batch 16": dict(batch=16)}
CONV_DTYPES = {"cpu": [torch.float32], "cuda": [torch.bfloat16, torch.float16, torch.float32]}
POOL_DTYPES = {"cpu": [torch.float32], "cuda": [torch.bfloat16, torch.float32]}
# What no cache holds, and what keeps every multiprocessor busy.
COPY_BYTES = 2**30
MATMUL_SIZE = 8192


class Function:
    """One implementation: `forward()`, and `both()`, which returns output and gradients.

    `backward` takes the output's gradient and the tensors; without it, autograd does that.
    """

    def __init__(self, op: Callable, tensors: dict[str, Tensor], grad: Tensor, backward=None):
        self.op, self.tensors, self.grad, self.backward = op, tensors, grad, backward
        self.leaves = {n: t.detach().requires_grad_(n != "rois") for n, t in tensors.items()}

    def to(self, dtype: torch.dtype) -> "Function":
        tensors = {name: t.to(dtype) for name, t in self.tensors.items()}
        return Function(self.op, tensors, self.grad.to(dtype), self.backward)

    def forward(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (self.op(**self.tensors),)

    def both(self) -> tuple[Tensor | None, ...]:
        if self.backward is not None:
            return (*self.forward(), *self.backward(self.grad, **self.tensors))
        out = self.op(**self.leaves)
        wanted = [leaf for leaf in self.leaves.values() if leaf.requires_grad]
        return (out.detach(), *torch.autograd.grad(out, wanted, self.grad))

    def least_work(self) -> dict[str, int]:
        """Bytes that have to be moved, each tensor once, and operations of the matrix product.

        Backward reads the gradient of the output, the RoIs and, where gradients depend on them, the
        inputs; it writes the gradients of the inputs.
        """
        rois = self.tensors["rois"].nbytes if "rois" in self.tensors else 0
        inputs = sum(t.nbytes for t in self.tensors.values()) - rois
        forward = inputs + rois + self.grad.nbytes
        plain_pooling = "weight" not in self.tensors and "offset" not in self.tensors
        backward = self.grad.nbytes + rois + inputs * (1 if plain_pooling else 2)
        operations = 0
        if "weight" in self.tensors:
            operations = 2 * self.grad.numel() * self.tensors["weight"][0].numel()
        return {
            "forward_bytes": forward,
            "both_bytes": forward + backward,
            "forward_operations": operations,
            "both_operations": 3 * operations,
        }


def channels_last(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
        for name, t in tensors.items()
    }


def between_pixels(offset: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Moved to where `dtype` holds an offset and a position exactly, and never on a pixel.

    There the derivative jumps, and a position that is rounded to the other side would be counted
    as an error. In float32 that is at most 1/128 away. Of 16 bits, odd eighths below 4 need five,
    and with a position below 256, which torchvision adds in float16, the eleven that there are.
    """
    if dtype.itemsize > 2:
        return (offset * 64).round() / 64 + 1 / 128
    return ((offset * 4).floor() / 4 + 1 / 8).clamp(-3.875, 3.875)


def conv_functions(
    case: Conv, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[dict[str, Function], dict[str, Function]]:
    """The implementations, and the float64 definition of those that have it.

    dcn is given channels-last tensors, torchvision and mmcv contiguous ones, which is what their
    kernels work in; F.conv2d is there in both formats.
    """
    gen = torch.Generator().manual_seed(0)
    padding = case.dilation * (case.kernel // 2)
    points = case.deform_groups * case.kernel**2
    regular = dict(stride=case.stride, padding=padding, dilation=case.dilation)
    c = case.channels
    x = torch.randn(case.batch, c, case.height, case.width, generator=gen)
    weight = torch.randn(c, c // case.groups, case.kernel, case.kernel, generator=gen) * 0.01
    bias = torch.randn(c, generator=gen)
    out = F.conv2d(x[:1, :1], weight[:1, :1], **regular).shape[2:]
    tensors = {
        "input": x,
        "offset": between_pixels(torch.randn(case.batch, 2 * points, *out, generator=gen), dtype),
        "weight": weight,
        "mask": torch.rand(case.batch, points, *out, generator=gen),
        "bias": bias,
    }
    tensors = {name: t.to(device, dtype) for name, t in tensors.items()}
    grad = torch.randn(case.batch, c, *out, generator=gen).to(device, dtype)
    pairs = [[value, value] for value in regular.values()]

    def conv2d(input, weight, bias):
        return F.conv2d(input, weight, bias, groups=case.groups, **regular)

    def mmcv(input, offset, weight, mask, bias):
        settings = (*regular.values(), case.groups, case.deform_groups)
        return MMCV.modulated_deform_conv2d(input, offset, mask, weight, bias, *settings)

    def reference(input, offset, weight, mask, bias):
        return reference_conv.forward(input, offset, weight, bias, mask, *pairs)

    def reference_backward(grad, input, offset, weight, mask, bias):
        grads = reference_conv.backward(grad, input, offset, weight, mask, *pairs)
        return (*grads, grad.sum((0, 2, 3)))

    plain = {name: tensors[name] for name in ("input", "weight", "bias")}
    last, last_grad = channels_last(tensors), channels_last({"grad": grad})["grad"]
    functions = {
        "F.conv2d (NCHW)": Function(conv2d, plain, grad),
        "F.conv2d (NHWC)": Function(conv2d, channels_last(plain), last_grad),
        "dcn": Function(partial(dcn.deform_conv2d, **regular), last, last_grad),
        "torchvision": Function(partial(torchvision.ops.deform_conv2d, **regular), tensors, grad),
        "mmcv": Function(mmcv, tensors, grad),
        "reference": Function(reference, last, last_grad, reference_backward),
    }
    exact = Function(reference, tensors, grad, reference_backward).to(torch.float64)
    return functions, dict.fromkeys(("dcn", "torchvision", "mmcv", "reference"), exact)


def pool_functions(
    sampling_ratio: int, num_rois: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[dict[str, Function], dict[str, Function]]:
    """The implementations, and the float64 definition of each.

    As in `between_pixels`, no sample may be so close to a pixel that rounding decides on which side
    it is, nor a bin's size to where it gets one more sample. So bins are odd eighths of a pixel of
    the map, offsets move them by multiples of 1/512, and corners are 1/1024 off that: also with
    three samples a bin, all are at least 1/3072 away from any pixel.
    """
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(1, *POOL_MAP, generator=gen)
    corner = torch.rand(num_rois, 2, generator=gen) * torch.tensor([1000.0, 600.0])
    corner = corner.round() + 1 / 64
    size = (torch.rand(num_rois, 2, generator=gen) * 11 + 1).floor() * 28 + 14
    rois = torch.cat((torch.zeros(num_rois, 1), corner, corner + size), 1).to(device)
    offset = (torch.randn(num_rois, 2, 7, 7, generator=gen) * 8).round() / 8
    mask = torch.rand(num_rois, 1, 7, 7, generator=gen)
    plain = {"input": x.to(device, dtype), "rois": rois}
    deformed = plain | {"offset": offset.to(device, dtype), "mask": mask.to(device, dtype)}
    grad = torch.randn(num_rois, POOL_MAP[0], 7, 7, generator=gen).to(device, dtype)

    geometry = ((7, 7), 1 / 16, sampling_ratio, GAMMA)

    def pool(input, rois, offset=None, mask=None):
        return dcn.deform_roi_pool(input, rois, 7, offset, mask, *geometry[1:])

    def torchvision_align(input, rois):
        # its default, -1, is our 0
        ratio = sampling_ratio or -1
        return torchvision.ops.roi_align(input, rois, 7, 1 / 16, ratio, aligned=True)

    def mmcv_align(input, rois):
        return MMCV.roi_align(input, rois, (7, 7), 1 / 16, sampling_ratio, "avg", True)

    def reference(input, rois, offset=None, mask=None):
        return reference_pool.forward(input, rois, offset, mask, *geometry)

    def reference_backward(grad, input, rois, offset=None, mask=None):
        grads = reference_pool.backward(grad, input, rois, offset, mask, *geometry)
        return tuple(g for g in grads if g.numel() > 0)

    functions = {
        "dcn": Function(pool, channels_last(plain), grad),
        "dcn, offsets and masks": Function(pool, channels_last(deformed), grad),
        "torchvision": Function(torchvision_align, plain, grad),
        "mmcv": Function(mmcv_align, plain, grad),
        "reference": Function(reference, channels_last(plain), grad, reference_backward),
    }
    exact_plain, exact_deformed = (
        Function(reference, tensors, grad, reference_backward).to(torch.float64)
        for tensors in (plain, deformed)
    )
    exact = dict.fromkeys(functions, exact_plain)
    return functions, exact | {"dcn, offsets and masks": exact_deformed}


def run(device: str, repeats: int, threads: int) -> dict:
    """All measurements; progress goes to standard output."""
    gpu, sections = device == "cuda", {}
    if gpu:
        # As cuDNN does by default. dcn follows cuDNN, torchvision multiplies matrices.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        # dcn's tile sizes are timed, so cuDNN's algorithms are as well.
        torch.backends.cudnn.benchmark = True
        sections["rates"] = measure_rates(repeats)
    sections["convolution"] = [
        measure_conv(case, repeats, dtype, device)
        for dtype in CONV_DTYPES[device]
        for case in (*CONVS, *(varied(GPU_BATCHES) if gpu else ()))
    ]
    if not gpu:
        few = min(repeats, VARIANT_REPEATS)
        sections["variants"] = [measure_conv(case, few) for case in varied(VARIANTS)]
    sections["pooling"] = [
        measure_pool(ratio, num_rois, repeats, dtype, device)
        for dtype in POOL_DTYPES[device]
        for num_rois in NUM_ROIS[device]
        for ratio in SAMPLING
    ]
    if not gpu:
        sections["threads"] = measure_threads(threads, repeats) if threads > 1 else []
        sections["memory"] = measure_memory()
    return sections


def varied(variants: dict[str, dict]) -> list[Conv]:
    return [
        replace(case, name=f"{case.name}, {title}", **change)
        for title, change in variants.items()
        for case in CONVS
    ]


def measure_conv(case: Conv, repeats: int, dtype=torch.float32, device: str = "cpu") -> dict:
    functions, exact = conv_functions(case, dtype, device)
    if device == "cuda" and case.batch > 1:
        exact = {}  # the definition writes out all samples, in float64
    row = dict(case=case.name, shape=case.shape, dtype=name_of(dtype), repeats=repeats)
    return row | {"results": compare(row, functions, exact, device)}


def measure_pool(ratio: int, num_rois: int, repeats: int, dtype, device: str) -> dict:
    functions, exact = pool_functions(ratio, num_rois, dtype, device)
    shape = f"{num_rois} RoIs on {'×'.join(map(str, POOL_MAP))}"
    row = dict(case=SAMPLING[ratio], shape=shape, dtype=name_of(dtype), repeats=repeats)
    return row | {"results": compare(row, functions, exact, device)}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compare(
    row: dict, functions: dict[str, Function], exact: dict[str, Function], device: str
) -> dict[str, dict]:
    """Figures of every implementation; in place of those of what fails there is its error.

    `exact` are the float64 definitions of those that have one.
    """
    print(f"{row['dtype']}, {row['shape']}, {row['case']}", flush=True)
    results = {}
    if device == "cuda":
        functions = {n: f for n, f in functions.items() if n not in ("mmcv", "reference")}
        results = {name: function.least_work() for name, function in functions.items()}
        if row["dtype"] == "bfloat16":  # which torchvision's CUDA kernels do not have
            functions["torchvision"] = functions["torchvision"].to(torch.float32)
            results["torchvision"] = functions["torchvision"].least_work() | {"dtype": "float32"}
    elif MMCV is None:
        del functions["mmcv"]
    clock = measure.gpu_clock if device == "cuda" else measure.host_clock
    expected = {function: measure.attempt(function.both) for function in set(exact.values())}
    for kind in ("forward", "both"):
        calls = {name: getattr(function, kind) for name, function in functions.items()}
        for name, figures in measure.side_by_side(calls, row["repeats"], device, clock).items():
            results.setdefault(name, {}).update({f"{kind}_{k}": v for k, v in figures.items()})
    for name, values in results.items():
        if name in exact and "both_ms" in values:
            wanted, error = expected[exact[name]]
            values["difference"] = error or measure.largest_difference(
                functions[name].both(), wanted
            )
        shown = [values.get(f"{k}_ms", values.get(f"{k}_error")) for k in ("forward", "both")]
        print(f"  {name:24} {shown[0]} / {shown[1]} ms", flush=True)
    return results


def measure_rates(repeats: int) -> dict:
    """What this GPU copies and multiplies at best."""
    print("copy and matmul", flush=True)
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    calls = {"copy": lambda: (target.copy_(source),)}
    for dtype in CONV_DTYPES["cuda"]:
        matrix = torch.randn(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype, device="cuda")
        calls[name_of(dtype)] = lambda matrix=matrix: (matrix @ matrix,)
    figures = measure.side_by_side(calls, repeats, "cuda", measure.gpu_clock)
    seconds = {name: values["ms"] / 1e3 for name, values in figures.items()}
    return {
        "bytes_per_s": 2 * COPY_BYTES / seconds.pop("copy"),
        "operations_per_s": {name: 2 * MATMUL_SIZE**3 / s for name, s in seconds.items()},
    }


def measure_memory() -> list[dict]:
    """On a large image, and what the formats and types cost that the kernels do not work in."""
    functions, _ = conv_functions(LARGE)
    own = functions["dcn"]
    functions = {
        "F.conv2d, channels-last": functions["F.conv2d (NHWC)"],
        "dcn, channels-last": own,
        "dcn, contiguous": Function(own.op, functions["torchvision"].tensors, own.grad),
        "dcn, channels-last, bfloat16": own.to(torch.bfloat16),
    }
    print("memory", flush=True)
    return [
        {
            "implementation": name,
            "shape": LARGE.shape,
            "image_mb": function.tensors["input"].nbytes / 1e6,
            "forward_mb": measure.peak_extra_memory(function.forward, "cpu"),
            "both_mb": measure.peak_extra_memory(function.both, "cpu"),
        }
        for name, function in functions.items()
    ]


def measure_threads(threads: int, repeats: int) -> list[dict]:
    """One thread beside `threads`, of dcn alone, in turns."""
    cases = {f"deform_conv2d, {case.name}": conv_functions(case)[0]["dcn"] for case in CONVS}
    cases["deform_roi_pool"] = pool_functions(2, NUM_ROIS["cpu"][0])[0]["dcn"]

    def on(count: int, call: Callable) -> tuple:
        torch.set_num_threads(count)
        return call()

    rows = []
    for name, function in cases.items():
        print(f"threads: {name}", flush=True)
        row = {"case": name}
        for kind in ("forward", "both"):
            call = getattr(function, kind)
            calls = {"one": partial(on, 1, call), "many": partial(on, threads, call)}
            for count, figures in measure.side_by_side(calls, repeats, "cpu").items():
                row[f"{kind}_ms_{count}"] = figures["ms"]
        rows.append(row)
    return rows
