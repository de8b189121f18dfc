#!/usr/bin/env python
"""Time the operators beside others: tools/benchmark.py ops.

Medians of interleaved repeats, so that what else the machine does hits all of them alike. Needs
torch and torchvision; mmcv's operators join in where it is installed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
import torchvision

import dcn

try:
    import mmcv.ops as mmcv_ops
except ImportError:
    mmcv_ops = None

# ResNet-50's conv3, conv4 and conv5 on an 800×1344 image: channels, height, width.
SHAPES = ((128, 100, 168), (256, 50, 84), (512, 25, 42))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the operators beside others.")
    parser.add_argument("what", choices=["ops"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}, {args.threads} threads, float32, "
        f"median of {args.repeats}; forward / forward + backward in ms"
    )
    for c, h, w in SHAPES:
        print(f"\ndeform_conv2d, modulated, 3×3, {c}×{h}×{w}")
        report(*deform_conv(c, h, w), args.repeats)
    print("\ndeform_roi_pool without offsets (RoIAlign), 512 RoIs on 256×50×84, 7×7, 2×2 samples")
    report(*roi_align(), args.repeats)


def deform_conv(c: int, h: int, w: int) -> tuple[dict[str, Callable], list[torch.Tensor]]:
    """Functions to time by name, and the tensors that take gradients."""
    x = torch.randn(1, c, h, w)
    weight, bias = torch.randn(c, c, 3, 3) * 0.01, torch.randn(c)
    offset, mask = torch.randn(1, 18, h, w), torch.rand(1, 9, h, w)
    tensors = [t.requires_grad_() for t in (x, weight, bias, offset, mask)]
    functions = {
        "F.conv2d": lambda: F.conv2d(x, weight, bias, padding=1),
        "dcn": lambda: dcn.deform_conv2d(x, offset, weight, bias, padding=1, mask=mask),
        "torchvision": lambda: torchvision.ops.deform_conv2d(
            x, offset, weight, bias, padding=1, mask=mask
        ),
    }
    if mmcv_ops is not None:
        functions["mmcv"] = lambda: mmcv_ops.modulated_deform_conv2d(
            x, offset, mask, weight, bias, 1, 1, 1, 1, 1
        )
    return functions, tensors


def roi_align() -> tuple[dict[str, Callable], list[torch.Tensor]]:
    """Functions to time by name, and the tensors that take gradients."""
    x = torch.randn(1, 256, 50, 84, requires_grad=True)
    corner = torch.rand(512, 2) * torch.tensor([1000.0, 600.0])
    size = torch.rand(512, 2) * 300 + 32
    rois = torch.cat((torch.zeros(512, 1), corner, corner + size), 1)
    functions = {
        "dcn": lambda: dcn.deform_roi_pool(x, rois, 7, spatial_scale=1 / 16, sampling_ratio=2),
        "torchvision": lambda: torchvision.ops.roi_align(x, rois, 7, 1 / 16, 2, aligned=True),
    }
    if mmcv_ops is not None:
        functions["mmcv"] = lambda: mmcv_ops.roi_align(x, rois, (7, 7), 1 / 16, 2, "avg", True)
    return functions, [x]


def report(functions: dict[str, Callable], tensors: list[torch.Tensor], repeats: int) -> None:
    """Print each function's median times and how they compare with dcn's."""

    def both(function: Callable) -> None:
        torch.autograd.grad(function().sum(), tensors, allow_unused=True)

    forward = {name: [] for name in functions}
    backward = {name: [] for name in functions}
    for i in range(repeats + 1):
        for name, function in functions.items():
            with torch.no_grad():
                seconds = timed(function)
            both_seconds = timed(lambda f=function: both(f))
            if i > 0:  # the first round warms up
                forward[name].append(seconds * 1e3)
                backward[name].append(both_seconds * 1e3)
    forward = {name: statistics.median(times) for name, times in forward.items()}
    backward = {name: statistics.median(times) for name, times in backward.items()}
    for name in functions:
        print(
            f"  {name:12} {forward[name]:7.0f} / {backward[name]:7.0f}   "
            f"{forward[name] / forward['dcn']:6.2f} / {backward[name] / backward['dcn']:6.2f} × dcn"
        )


def timed(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
