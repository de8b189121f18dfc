"""Calls the operators through Triton's compiler, autotuner and launcher, up to libcuda.c beside it.

Every launch is compared with what was to be launched. Tensors are on the CPU, and nothing computes.
  pretended_gpu.py timings    prints how many timings, loads and launches there were after each step
  pretended_gpu.py failures   prints what the operators warn of where memory runs out, launches fail
TRITON_LIBCUDA_PATH is the folder of the library.
"""

import ctypes
import json
import os
import re
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import pytest
import torch
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import Autotuner, driver

import dcn
from dcn.deform_conv import gpu as deform_conv
from dcn.deform_kernel import gpu as deform_kernel
from dcn.gpu import launch as launching
from dcn.gpu import readers
from dcn.registration import OPERATORS
from dcn.roi_pool import gpu as deform_roi_pool

libcuda = ctypes.CDLL(os.environ["TRITON_LIBCUDA_PATH"] + "/libcuda.so.1")
conv_forward, conv_backward = dcn.gpu.kernels(OPERATORS["deform_conv2d"])
kernel_forward, kernel_backward = dcn.gpu.kernels(OPERATORS["local_deform_kernel"])
pool_forward, pool_backward = dcn.gpu.kernels(OPERATORS["deform_roi_pool"])
SUCCESS, OUT_OF_MEMORY, LAUNCH_FAILED = 0, 2, 719
TYPES = {"u32": ctypes.c_uint32, "u64": ctypes.c_uint64, "f64": ctypes.c_double}
counts = dict(timed=0, loaded=0, launched=0)
launches = []
result = SUCCESS


class Driver(CudaDriver):
    """What it asks PyTorch is answered here, what it asks libcuda there."""

    out_of_memory = False

    def __init__(self):
        super().__init__()
        self.get_device_capability = lambda device: (9, 0)
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0

    def get_benchmarker(self):
        def benchmark(call, quantiles) -> list[float]:
            call()
            if self.out_of_memory:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 MiB.")
            counts["timed"] += 1
            return [counts["timed"]] * 3

        return benchmark


@ctypes.CFUNCTYPE(
    *(ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_void_p),
)
def on_launch(grid, block, shared, function, parameters):
    """Reads as many parameters, and of such types, as the machine code does."""
    compiled = next(c for c in compilations() if c.function == function)
    declared = re.findall(r"^\s*\.param \.(\w+)", compiled.asm["ptx"], re.MULTILINE)
    values = [TYPES[t].from_address(parameters[i]).value for i, t in enumerate(declared)]
    launches.append((compiled, grid, block, shared, values))
    return result


def jit_of(kernel):
    return kernel.fn if isinstance(kernel, Autotuner) else kernel


def compilations():
    for module in (deform_conv, deform_kernel, deform_roi_pool, readers):
        for name, kernel in vars(module).items():
            if name.endswith("_kernel"):
                yield from jit_of(kernel).device_caches[0][0].values()


def check(launch: tuple, jit, grid, taken: dict) -> None:
    """The launch is of that kernel, and has those arguments."""
    compiled, launched_grid, block, shared, values = launch
    assert compiled.name == jit.__name__
    constants, attributes = compiled.src.constants, compiled.src.attrs
    given = {name: constants.get((i,)) for i, name in enumerate(jit.arg_names)} | taken
    expected = []

    def flatten(path: tuple, kind: str | tuple, value) -> None:
        if isinstance(kind, tuple):
            for i, part in enumerate(kind):
                flatten((*path, i), part, value[i])
        elif kind == "constexpr":  # None is one, and so are ones
            assert constants[path] == value, (path, value)
        else:
            value = value.data_ptr() if kind[0] == "*" else value
            if attributes.get(path):
                assert attributes[path] == [["tt.divisibility", 16]]
                assert value % 16 == 0
            expected.append(value)

    for i, (name, kind) in enumerate(compiled.src.signature.items()):
        flatten((i,), kind, given[name])
    assert values == [*expected, 0, 0], (jit.__name__, values, expected)  # two of Triton's own
    assert (launched_grid,) == (grid(given) if callable(grid) else grid)
    assert block == 32 * compiled.metadata.num_warps
    assert shared == compiled.metadata.shared


def checked(start):
    def start_and_check(kernel, grid, taken):
        del launches[:]
        start(kernel, grid, taken)
        assert launches
        for launch in launches:
            check(launch, jit_of(kernel), grid, taken)
        counts["launched"] += len(launches)
        counts["loaded"] = ctypes.c_int.in_dll(libcuda, "loaded").value

    return start_and_check


def tensor(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def convolve(height: int, width: int) -> torch.Tensor:
    x = tensor(2, 32, height, width).contiguous(memory_format=torch.channels_last)
    # As a module predicts them: slices of one channels-last tensor.
    prediction = tensor(2, 27, height, width).contiguous(memory_format=torch.channels_last)
    offset, mask = prediction.split((18, 9), 1)
    weight, geometry = tensor(48, 32, 3, 3), ([1, 1], [1, 1], [1, 1])
    arguments = (x, offset, weight, tensor(48), mask, *geometry)
    grad = conv_forward(*arguments)
    conv_backward(grad, *arguments, [True] * 5)
    return grad


def pool(count: int) -> torch.Tensor:
    x, rois = tensor(2, 32, 10, 12), torch.zeros(count, 5)
    arguments = (rois, tensor(count, 2, 7, 7), tensor(count, 1, 7, 7), [7, 7], 1 / 16, 0, 0.1)
    grad = pool_forward(x, *arguments)
    pool_backward(grad, x, *arguments, [True] * 3)
    return grad


def apply_kernels(rotations: int) -> None:
    x = tensor(2, 32, 10, 12)
    offset, weight = tensor(2, 18 * rotations, 10, 12), tensor(32, 1, 4, 4)
    arguments = (x, offset, weight, None, None, [3, 3], [1, 1], [1, 1], [1, 1], rotations > 1)
    kernel_backward(kernel_forward(*arguments), *arguments, [True] * 3 + [False] * 2)


def plain(stride: int) -> None:
    """What is None, a stride above one, and offsets of a batch that does not follow on."""
    x, offset = tensor(1, 32, 9, 9), tensor(2, 18, 5, 5)[::2]
    geometry = ([stride, stride], [1, 1], [1, 1])
    conv_forward(x, offset, tensor(48, 32, 3, 3), None, None, *geometry)
    pool_forward(x, torch.zeros(3, 5), None, None, [7, 7], 0.3, 2, 0.1)


class On:
    is_cuda = True

    def __init__(self, gpu: str):
        self.device = gpu


def timings() -> None:
    torch.cuda.get_device_name = lambda device: device
    steps = []
    for gpu, call, *arguments in [
        ("first", convolve, 10, 12),
        ("first", pool, 7),
        ("first", convolve, 11, 11),
        ("first", pool, 8),
        ("first", convolve, 20, 24),
        ("second", pool, 8),
    ]:
        for module in (deform_conv, deform_roi_pool):
            module.call_kind = lambda x, count, gpu=gpu: launching.call_kind(On(gpu), count)
        call(*arguments)
        steps.append(dict(counts))
    print(json.dumps(steps))


def failures() -> None:
    global result
    torch.cuda.is_current_stream_capturing = lambda: True  # the fixed tile sizes
    plain(2)
    convolve(10, 12)
    apply_kernels(1)
    apply_kernels(2)
    torch.cuda.is_current_stream_capturing = lambda: False
    driver.active.out_of_memory = True
    pool(3)
    driver.active.out_of_memory = False
    result = OUT_OF_MEMORY
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        pool(3)
    assert not isinstance(raised.value, dcn.gpu.KernelError)
    result = LAUNCH_FAILED
    os.environ["DCN_STRICT"] = "0"
    for _ in range(2):
        assert not pool(3).any()  # by the definition
    os.environ["DCN_STRICT"] = "1"
    with pytest.raises(dcn.gpu.KernelError, match="the launch failed"):
        convolve(10, 12)


def main(what: str) -> None:
    os.environ["DCN_STRICT"] = "1"
    ctypes.c_void_p.in_dll(libcuda, "on_launch").value = ctypes.cast(
        on_launch, ctypes.c_void_p
    ).value
    driver.set_active(Driver())
    torch.cuda.is_current_stream_capturing = lambda: False
    launching._start = checked(launching._start)
    if what == "timings":
        return timings()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        failures()
    print(json.dumps([str(w.message) for w in caught]))


if __name__ == "__main__":
    main(*sys.argv[1:])
