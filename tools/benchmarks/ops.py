"""The operators beside F.conv2d, torchvision, mmcv and their own definition in plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

import dcn
from dcn.reference import deform_conv as reference_conv
from dcn.reference import deform_roi_pool as reference_pool

from .measure import largest_difference, peak_extra_memory, times

try:
    import mmcv.ops as mmcv_ops
except ImportError:
    mmcv_ops = None


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
CONVS = (
    Conv("conv3", 128, 100, 168),
    Conv("conv4", 256, 50, 84),
    Conv("conv5", 512, 25, 42),
)
VARIANTS = {
    "batch 2": dict(batch=2),
    "stride 2": dict(stride=2),
    "deform_groups 4": dict(deform_groups=4),
    "groups 32": dict(groups=32),
    "kernel 5×5": dict(kernel=5),
    "dilation 2": dict(dilation=2),
}
# An image of 16 times the pixels, for memory alone.
LARGE = Conv("conv3", 128, 400, 672)
NUM_ROIS = 512
POOL_MAP = (256, 50, 84)
GAMMA = 1 / 8


class Function:
    """One implementation: `forward()`, and `both()`, which returns output and gradients."""

    def __init__(self, op: Callable, tensors: dict[str, Tensor], grad: Tensor) -> None:
        self.op, self.tensors, self.grad = op, tensors, grad
        self.leaves = {
            name: t.detach().requires_grad_(name != "rois") for name, t in tensors.items()
        }

    def to(self, dtype: torch.dtype) -> "Function":
        tensors = {name: t.to(dtype) for name, t in self.tensors.items()}
        return Function(self.op, tensors, self.grad.to(dtype))

    def forward(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (self.op(**self.tensors),)

    def both(self) -> tuple[Tensor | None, ...]:
        out = self.op(**self.leaves)
        leaves = [leaf for leaf in self.leaves.values() if leaf.requires_grad]
        return (out.detach(), *torch.autograd.grad(out, leaves, self.grad))


class ConvReference(Function):
    """The definition in plain PyTorch; the gradients in the same order, the bias's last."""

    def __init__(self, geometry: list, tensors: dict[str, Tensor], grad: Tensor) -> None:
        super().__init__(self._op, tensors, grad)
        self.geometry = geometry

    def _op(self, input, offset, weight, mask, bias) -> Tensor:
        return reference_conv.forward(input, offset, weight, bias, mask, *self.geometry)

    def both(self) -> tuple[Tensor, ...]:
        (out,) = self.forward()
        t = self.tensors
        grads = reference_conv.backward(
            self.grad, t["input"], t["offset"], t["weight"], t["mask"], *self.geometry
        )
        return (out, *grads, self.grad.sum((0, 2, 3)))


class PoolReference(Function):
    def __init__(self, tensors: dict[str, Tensor], grad: Tensor, sampling_ratio: int) -> None:
        self.geometry = ((7, 7), 1 / 16, sampling_ratio, GAMMA)
        super().__init__(self._op, tensors, grad)

    def _op(self, input, rois, offset=None, mask=None) -> Tensor:
        return reference_pool.forward(input, rois, offset, mask, *self.geometry)

    def both(self) -> tuple[Tensor, ...]:
        (out,) = self.forward()
        t = self.tensors
        grads = reference_pool.backward(
            self.grad, t["input"], t["rois"], t.get("offset"), t.get("mask"), *self.geometry
        )
        return (out, *(g for g in grads if g.numel() > 0))


def channels_last(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
        for name, t in tensors.items()
    }


def in_float64(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() for name, t in tensors.items()}


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
) -> tuple[dict[str, Function], Function]:
    """The implementations, and the float64 definition on what `dtype` holds of the inputs.

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

    def conv2d(input, weight, bias):
        return F.conv2d(input, weight, bias, groups=case.groups, **regular)

    def mmcv(input, offset, weight, mask, bias):
        return mmcv_ops.modulated_deform_conv2d(
            input,
            offset,
            mask,
            weight,
            bias,
            case.stride,
            padding,
            case.dilation,
            case.groups,
            case.deform_groups,
        )

    plain = {name: tensors[name] for name in ("input", "weight", "bias")}
    last, last_grad = channels_last(tensors), channels_last({"grad": grad})["grad"]
    pairs = [[v, v] for v in (case.stride, padding, case.dilation)]
    functions = {
        "F.conv2d (NCHW)": Function(conv2d, plain, grad),
        "F.conv2d (NHWC)": Function(conv2d, channels_last(plain), last_grad),
        "dcn": Function(lambda **t: dcn.deform_conv2d(**t, **regular), last, last_grad),
        "torchvision": Function(
            lambda **t: torchvision.ops.deform_conv2d(**t, **regular), tensors, grad
        ),
        "mmcv": Function(mmcv, tensors, grad),
        "reference": ConvReference(pairs, last, last_grad),
    }
    if mmcv_ops is None:
        del functions["mmcv"]
    return functions, ConvReference(pairs, in_float64(tensors), grad.double())


def pool_functions(
    sampling_ratio: int, num_rois: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[dict[str, Function], dict[str, Function]]:
    """The implementations, and the float64 definitions without and with offsets and masks.

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

    def pool(**tensors):
        return dcn.deform_roi_pool(
            **tensors,
            output_size=7,
            spatial_scale=1 / 16,
            sampling_ratio=sampling_ratio,
            gamma=GAMMA,
        )

    def torchvision_align(input, rois):
        # its default, -1, is our 0
        ratio = sampling_ratio or -1
        return torchvision.ops.roi_align(input, rois, 7, 1 / 16, ratio, aligned=True)

    def mmcv_align(input, rois):
        return mmcv_ops.roi_align(input, rois, (7, 7), 1 / 16, sampling_ratio, "avg", True)

    functions = {
        "dcn": Function(pool, channels_last(plain), grad),
        "dcn, offsets and masks": Function(pool, channels_last(deformed), grad),
        "torchvision": Function(torchvision_align, plain, grad),
        "mmcv": Function(mmcv_align, plain, grad),
        "reference": PoolReference(channels_last(plain), grad, sampling_ratio),
    }
    if mmcv_ops is None:
        del functions["mmcv"]
    exact = {
        kind: PoolReference(in_float64(tensors), grad.double(), sampling_ratio)
        for kind, tensors in (("plain", plain), ("deformed", deformed))
    }
    return functions, exact


VARIANT_REPEATS = 3  # the slow ones take seconds there


def run(repeats: int, threads: int) -> dict:
    """All measurements; progress goes to standard output."""
    few = min(repeats, VARIANT_REPEATS)
    return {
        "convolution": [measure_conv(case, case.name, repeats) for case in CONVS],
        "variants": [
            measure_conv(replace(case, **change), f"{case.name}, {name}", few)
            for name, change in VARIANTS.items()
            for case in CONVS
        ],
        "pooling": [
            measure_pool(2, "2×2 samples a bin", repeats),
            measure_pool(0, "adaptive sampling", repeats),
        ],
        "threads": measure_threads(threads, repeats),
        "memory": measure_memory(),
    }


def measure_conv(case: Conv, title: str, repeats: int) -> dict:
    print(f"deform_conv2d, {title}, {case.shape}", flush=True)
    functions, exact = conv_functions(case)
    expected = exact.both()
    wanted = {name: None if name.startswith("F.conv2d") else expected for name in functions}
    return {
        "case": title,
        "shape": case.shape,
        "repeats": repeats,
        "results": measure(functions, wanted, repeats),
    }


def measure_pool(sampling_ratio: int, title: str, repeats: int) -> dict:
    print(f"deform_roi_pool, {title}", flush=True)
    functions, exact = pool_functions(sampling_ratio, NUM_ROIS)
    expected = {kind: function.both() for kind, function in exact.items()}
    wanted = {
        name: expected["deformed" if "offset" in function.tensors else "plain"]
        for name, function in functions.items()
    }
    return {
        "case": title,
        "shape": f"{NUM_ROIS} RoIs on {'×'.join(map(str, POOL_MAP))}",
        "repeats": repeats,
        "results": measure(functions, wanted, repeats),
    }


def measure(
    functions: dict[str, Function], expected: dict[str, tuple | None], repeats: int
) -> dict[str, dict]:
    """Of every implementation; `expected` are the float64 output and gradients, if it has any."""
    forward = times({name: f.forward for name, f in functions.items()}, repeats)
    both = times({name: f.both for name, f in functions.items()}, repeats)
    results = {}
    for name, function in functions.items():
        forward_mb, _ = peak_extra_memory(function.forward)
        both_mb, values = peak_extra_memory(function.both)
        results[name] = result = {
            "forward_ms": median(forward[name]),
            "both_ms": median(both[name]),
            "forward_over_dcn": median(forward[name]) / median(forward["dcn"]),
            "both_over_dcn": median(both[name]) / median(both["dcn"]),
            "forward_mb": forward_mb,
            "both_mb": both_mb,
            "forward_ms_all": forward[name],
            "both_ms_all": both[name],
        }
        if expected[name] is not None:
            result["difference"] = largest_difference(values, expected[name])
        print(f"  {name:24} {result['forward_ms']:8.1f} {result['both_ms']:8.1f} ms", flush=True)
    return results


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
    rows = []
    for name, function in functions.items():
        print(f"memory: {name}", flush=True)
        rows.append(
            {
                "implementation": name,
                "shape": LARGE.shape,
                "image_mb": function.tensors["input"].nbytes / 1e6,
                "forward_mb": peak_extra_memory(function.forward)[0],
                "both_mb": peak_extra_memory(function.both)[0],
            }
        )
    return rows


def measure_threads(threads: int, repeats: int) -> list[dict]:
    """One thread beside `threads`, of dcn alone, in turns."""
    if threads == 1:
        return []
    rows = []
    cases = {f"deform_conv2d, {case.name}": conv_functions(case)[0]["dcn"] for case in CONVS}
    cases["deform_roi_pool"] = pool_functions(2, NUM_ROIS)[0]["dcn"]

    def on(count: int, function: Callable) -> Callable:
        def call() -> None:
            torch.set_num_threads(count)
            function()

        return call

    for name, function in cases.items():
        print(f"threads: {name}", flush=True)
        row = {"case": name}
        for kind, call in (("forward", function.forward), ("both", function.both)):
            taken = times({"one": on(1, call), "many": on(threads, call)}, repeats)
            row[f"{kind}_ms_one"] = median(taken["one"])
            row[f"{kind}_ms_many"] = median(taken["many"])
        rows.append(row)
    return rows
