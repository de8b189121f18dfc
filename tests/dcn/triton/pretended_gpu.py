"""Calls the operators through Triton's compiler, autotuner and launcher, up to a driver that only
counts. Prints, after each step, how many timings there were and how many kernels were loaded.

TRITON_CACHE_DIR=folder python tests/dcn/triton/pretended_gpu.py
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import dcn

counts = dict(timed=0, loaded=0, launched=0)


def count(what: str) -> int:
    counts[what] += 1
    return counts[what]


class Utilities:
    def load_binary(self, *arguments) -> tuple:
        count("loaded")
        return 1, 1, 0, 0, 1024

    def get_device_properties(self, device: int) -> dict:
        return {"max_shared_mem": 227 * 1024}


class Driver:
    utils = Utilities()

    def launcher_cls(self, source, metadata):
        return lambda *arguments: count("launched")

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self):
        def benchmark(call, quantiles) -> list[float]:
            call()
            return [count("timed")] * 3

        return benchmark


def tensor(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def convolve(height: int, width: int) -> None:
    x = tensor(2, 32, height, width).contiguous(memory_format=torch.channels_last)
    # As a module predicts them: slices of one channels-last tensor.
    prediction = tensor(2, 27, height, width).contiguous(memory_format=torch.channels_last)
    offset, mask = prediction.split((18, 9), 1)
    weight, geometry = tensor(48, 32, 3, 3), ([1, 1], [1, 1], [1, 1])
    grad = dcn.triton.operator("deform_conv2d")(x, offset, weight, tensor(48), mask, *geometry)
    backward = dcn.triton.operator("deform_conv2d_backward")
    backward(grad, x, offset, weight, mask, *geometry)


def pool(count: int) -> None:
    x, rois = tensor(2, 32, 10, 12), torch.zeros(count, 5)
    arguments = (rois, tensor(count, 2, 7, 7), tensor(count, 1, 7, 7), [7, 7], 1 / 16, 0, 0.1)
    grad = dcn.triton.operator("deform_roi_pool")(x, *arguments)
    dcn.triton.operator("deform_roi_pool_backward")(grad, x, *arguments)


def main() -> None:
    driver.set_active(Driver())
    torch.cuda.is_current_stream_capturing = lambda: False
    steps = []
    for call, *arguments in [
        (convolve, 10, 12),
        (pool, 7),
        (convolve, 11, 11),
        (pool, 8),
        (convolve, 20, 24),
    ]:
        call(*arguments)
        steps.append(dict(counts))
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
