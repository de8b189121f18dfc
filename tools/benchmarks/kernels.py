"""What the Triton kernels compile to, ahead of time: no GPU is needed.

They are compiled for the arguments that a call of the operators gives them, as Triton would at that
call, and the machine code is looked at.
"""

import re
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from dcn.aggregation import gpu as aggregation
from dcn.deform_conv import gpu as deform_conv
from dcn.deform_kernel import gpu as deform_kernel
from dcn.gpu import readers
from dcn.roi_pool import gpu as deform_roi_pool

# Compute capability: bytes of shared memory of a multiprocessor and of one program, and warps.
GPUS = {80: (164 * 1024, 163 * 1024, 64), 90: (228 * 1024, 227 * 1024, 64)}
# Name, type, and how it is multiplied.
TYPES = {
    "bfloat16": (torch.bfloat16, "ieee"),
    "float32 (TF32)": (torch.float32, "tf32"),
    "float16": (torch.float16, "ieee"),
    "float32": (torch.float32, "tf32x3"),
    "float64": (torch.float64, "ieee"),
}
# In these every tile size is compiled, in the others the fixed one.
TRAINED_IN = ("bfloat16", "float32 (TF32)")
# A kernel, the tile sizes that it is timed with, and the arguments of a call of it.
Call = namedtuple("Call", "name kernel configs arguments")


def calls(dtype: torch.dtype) -> list[Call]:
    """All kernels, as ResNet-50's conv4, 512 RoIs on its output and FlashInternImage call them.

    Deformable kernels are of ResNet-50-DW's conv4.
    """

    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = tensor(1, 256, 50, 84).contiguous(memory_format=torch.channels_last)
    offset, mask, weight = tensor(1, 18, 50, 84), tensor(1, 9, 50, 84), tensor(256, 256, 3, 3)
    geometry = ([1, 1], [1, 1], [1, 1])
    conv = (x, offset, weight, tensor(256), mask, *geometry)
    rois = torch.empty(512, 5, device="meta", dtype=torch.promote_types(dtype, torch.float32))
    pool_geometry = ([7, 7], 1 / 16, 0, 0.1)
    deformed = (x, rois, tensor(512, 2, 7, 7), tensor(512, 1, 7, 7), *pool_geometry)
    plain = (x, rois, None, None, *pool_geometry)
    grad = tensor(512, 256, 7, 7)
    pool, sums = "deform_roi_pool {}", "deform_aggregation {}"
    features, offset_mask = tensor(1, 56, 56, 128), tensor(1, 56, 56, 216)
    packed = (features, offset_mask, None, [3, 3], *geometry, 1.0, False, 8)
    scope = (x, offset, tensor(256, 1, 4, 4), None, None, [3, 3], *geometry, False)
    kernels, wanted = "local_deform_kernel {}", [True] * 3 + [False] * 2
    return [
        *recorded("deform_conv2d {}", deform_conv.forward, *conv),
        *recorded("deform_conv2d {}", deform_conv.backward, x, *conv, [True] * 5),
        *recorded(sums, aggregation.forward, *packed),
        *recorded(sums, aggregation.backward, features, *packed, [True, True, False]),
        *recorded(kernels, deform_kernel.forward, *scope),
        *recorded(kernels, deform_kernel.backward, x, *scope, wanted),
        *recorded(pool, deform_roi_pool.forward, *deformed),
        *recorded(pool, deform_roi_pool.backward, grad, *deformed, [True] * 3),
        *recorded(f"{pool}, plain", deform_roi_pool.forward, *plain),
        *recorded(f"{pool}, plain", deform_roi_pool.backward, grad, *plain, [True, False, False]),
    ]


def recorded(name: str, function: Callable, *arguments) -> list[Call]:
    """The kernels that a function would launch, instead of launching them."""
    found = []

    def record(kernel, grid, arguments, **more):
        tuned = isinstance(kernel, triton.runtime.Autotuner)
        jit, configs = (kernel.fn, kernel.configs) if tuned else (kernel, [triton.Config({})])
        title = name.format(jit.__name__.removesuffix("_kernel"))
        if more.get("FILL") is False:
            title += ", counting"
        taken = {n: v for n, v in (arguments | more).items() if n in jit.arg_names}
        found.append(Call(title, jit, configs, taken))

    module = sys.modules[function.__module__]
    with mock.patch.object(module, "launch", record), mock.patch.object(readers, "run", record):
        function(*arguments)
    return found


def compile_call(call: Call, config: triton.Config, capability: int) -> CompiledKernel:
    """As Triton would at that call, on a GPU of that capability.

    From then on, Triton takes this process to have that GPU. The GPU's number is the capability, as
    Triton asks only once what the GPU of a number is.
    """
    driver = SimpleNamespace(
        get_current_device=lambda: capability,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
    )
    triton.runtime.driver.set_active(driver)
    return call.kernel.warmup(grid=(1,), **call.arguments, **config.all_kwargs())


def looked_at(call: Call, config: triton.Config, capability: int) -> dict:
    """Registers, stack (what a thread spills), shared memory and what the machine code uses."""
    compiled = compile_call(call, config, capability)
    cubin = compiled.metadata_group[f"{compiled.name}.cubin"]
    disassembly = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", cubin]
    code = subprocess.run(disassembly, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{key}:(\d+)", code)[1]) for key in ("REG", "STACK"))
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    wgmma, mma = (re.search(rf"\s[HDQI]?{name}\.", code) for name in ("GMMA", "MMA"))
    return {
        "kernel": call.name,
        "tile": "×".join(map(str, config.kwargs.values())),
        "warps": warps,
        "stages": compiled.metadata.num_stages,
        "registers": registers,
        "spilled": stack,
        "shared_kb": shared / 1024,
        "programs": programs(capability, registers, warps, shared),
        "tensor_cores": "wgmma" if wgmma else "mma" if mma else "",
        "wide_loads": len(re.findall(r"(?:LDG|LDGSTS)\.E[.A-Z0-9]*\.128", code)),
    }


def programs(capability: int, registers: int, warps: int, shared: int) -> int:
    """How many programs a multiprocessor runs at a time; 0: one does not fit."""
    shared_of_all, shared_of_one, most_warps = GPUS[capability]
    if shared > shared_of_one:
        return 0
    of_registers = 65536 // (warps * 32 * ((registers + 7) // 8 * 8))
    return min(of_registers, most_warps // warps, shared_of_all // (shared + 1024))


def run(every_tile: bool = True, types: tuple[str, ...] = tuple(TYPES)) -> list[dict]:
    """All kernels for those types and all GPUs; progress goes to standard output."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: Triton compiles nothing then")
    rows = []
    for name in types:
        dtype, precision = TYPES[name]
        with mock.patch.object(deform_conv, "dot_precision", return_value=precision):
            found = calls(dtype)
        for call in found:
            fixed = call.configs[-1 if dtype == torch.float64 else 0]
            for config in call.configs if every_tile and name in TRAINED_IN else [fixed]:
                for capability in GPUS:
                    row = looked_at(call, config, capability)
                    rows.append({"type": name, "capability": capability, **row})
            print(f"{name}: {call.name}", flush=True)
    return rows
