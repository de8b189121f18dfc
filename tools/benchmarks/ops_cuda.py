"""The operators on a GPU, beside F.conv2d and torchvision and what the GPU could do at best."""

from dataclasses import replace
from functools import partial
from statistics import median

import torch

from . import measure_cuda, ops
from .measure import largest_difference

CONV_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CONV_NAMES = (*(f"F.conv2d ({layout})" for layout in ("NHWC", "NCHW")), "dcn", "torchvision")
BATCHES = (1, 2, 16)
POOL_DTYPES = (torch.bfloat16, torch.float32)
NUM_ROIS = (512, 1000)
SAMPLING = {2: "2×2 samples a bin", 0: "adaptive sampling"}
# What no cache holds, and what keeps every multiprocessor busy.
COPY_BYTES = 2**30
MATMUL_SIZE = 8192


def run(repeats: int) -> dict:
    """All measurements; progress goes to standard output."""
    # As cuDNN does by default. dcn follows cuDNN, torchvision's convolution multiplies matrices.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    # dcn's tile sizes are timed, so cuDNN's algorithms are as well.
    torch.backends.cudnn.benchmark = True
    return {
        "rates": measure_rates(repeats),
        "convolution": [
            measure_conv(case, dtype, repeats) for dtype in CONV_DTYPES for case in conv_cases()
        ],
        "pooling": [
            measure_pool(*case, dtype, repeats) for dtype in POOL_DTYPES for case in pool_cases()
        ],
    }


def empty() -> dict:
    """The same without a measurement."""
    return {
        "rates": {},
        "convolution": [conv_row(case, dtype) for dtype in CONV_DTYPES for case in conv_cases()],
        "pooling": [pool_row(*case, dtype) for dtype in POOL_DTYPES for case in pool_cases()],
    }


def conv_cases() -> list[ops.Conv]:
    return [replace(case, batch=batch) for batch in BATCHES for case in ops.CONVS]


def pool_cases() -> list[tuple[int, int, bool]]:
    """(RoIs, samples a side of a bin, with offsets and masks)."""
    return [(n, ratio, moved) for n in NUM_ROIS for ratio in SAMPLING for moved in (False, True)]


def rival_dtype(dtype: torch.dtype) -> torch.dtype:
    """What torchvision is given: its CUDA kernels have no bfloat16."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def conv_row(case: ops.Conv, dtype: torch.dtype) -> dict:
    """A case without its measurements."""
    pixels, points = case.batch * case.height * case.width, case.kernel**2
    parameters = case.channels**2 * points + case.channels
    operations = 2 * pixels * case.channels**2 * points
    row = {
        "case": f"{case.name}, {case.shape}, batch {case.batch}",
        "dtype": name_of(dtype),
        **moved_bytes(
            inputs=(pixels * (case.channels + 3 * points) + parameters) * dtype.itemsize,
            output=pixels * case.channels * dtype.itemsize,
        ),
        "forward_operations": operations,
        "both_operations": 3 * operations,
    }
    return row | {"results": blank_results(CONV_NAMES, dtype)}


def pool_row(num_rois: int, sampling_ratio: int, deformed: bool, dtype: torch.dtype) -> dict:
    """A case without its measurements."""
    channels, height, width = ops.POOL_MAP
    bins = num_rois * 7 * 7
    case = f"{num_rois} RoIs on {channels}×{height}×{width}, {SAMPLING[sampling_ratio]}"
    row = {
        "case": f"{case}, offsets and masks" if deformed else case,
        "dtype": name_of(dtype),
        **moved_bytes(
            inputs=(channels * height * width + 3 * bins * deformed) * dtype.itemsize,
            output=channels * bins * dtype.itemsize,
            constants=num_rois * 5 * torch.float32.itemsize,
            read_again=deformed,
        ),
        "forward_operations": 0,
        "both_operations": 0,
    }
    return row | {"results": blank_results(("dcn", "torchvision"), dtype)}


def moved_bytes(inputs: int, output: int, constants: int = 0, read_again: bool = True) -> dict:
    """Forward, everything once. Backward, read are the gradient of the output, the constants and,
    where gradients depend on them, the inputs; written are the gradients of the inputs.
    """
    forward = inputs + constants + output
    backward = output + constants + inputs * (2 if read_again else 1)
    return {"forward_bytes": forward, "both_bytes": forward + backward}


def blank_results(names: tuple[str, ...], dtype: torch.dtype) -> dict[str, dict]:
    return {
        name: {"dtype": name_of(rival_dtype(dtype) if name == "torchvision" else dtype)}
        for name in names
    }


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure_rates(repeats: int) -> dict:
    """What this GPU copies and multiplies at best."""
    print("copy and matmul", flush=True)
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=measure_cuda.DEVICE)
    target = torch.empty_like(source)
    functions = {"copy": lambda: target.copy_(source)}
    for dtype in CONV_DTYPES:
        size = (MATMUL_SIZE, MATMUL_SIZE)
        matrix = torch.randn(size, dtype=dtype, device=measure_cuda.DEVICE)
        functions[name_of(dtype)] = lambda matrix=matrix: matrix @ matrix
    for function in functions.values():
        measure_cuda.warm_up(function)
    seconds = {
        name: median(timing.ms) / 1e3
        for name, timing in measure_cuda.times(functions, repeats).items()
    }
    return {
        "bytes_per_s": 2 * COPY_BYTES / seconds.pop("copy"),
        "operations_per_s": {name: 2 * MATMUL_SIZE**3 / s for name, s in seconds.items()},
    }


def measure_conv(case: ops.Conv, dtype: torch.dtype, repeats: int) -> dict:
    row = conv_row(case, dtype)
    functions, exact = ops.conv_functions(case, dtype, measure_cuda.DEVICE)
    functions = {name: functions[name] for name in CONV_NAMES}
    functions["torchvision"] = functions["torchvision"].to(rival_dtype(dtype))
    # The definition writes out all samples, in float64.
    definitions = dict.fromkeys(("dcn", "torchvision"), exact) if case.batch == 1 else {}
    return measure(row, functions, definitions, repeats)


def measure_pool(
    num_rois: int, sampling_ratio: int, deformed: bool, dtype: torch.dtype, repeats: int
) -> dict:
    row = pool_row(num_rois, sampling_ratio, deformed, dtype)
    functions, exact = ops.pool_functions(sampling_ratio, num_rois, dtype, measure_cuda.DEVICE)
    torchvision = functions["torchvision"].to(rival_dtype(dtype))
    if deformed:
        functions = {"dcn": functions["dcn, offsets and masks"], "torchvision": torchvision}
        return measure(row, functions, {"dcn": exact["deformed"]}, repeats)
    functions = {"dcn": functions["dcn"], "torchvision": torchvision}
    return measure(row, functions, dict.fromkeys(functions, exact["plain"]), repeats)


def measure(
    row: dict, functions: dict[str, ops.Function], exact: dict[str, ops.Function], repeats: int
) -> dict:
    """Fills the row. `exact` are the float64 definitions of those that have one.

    In place of the figures of what fails there is its error.
    """
    print(f"{row['dtype']}, {row['case']}", flush=True)
    results = row["results"]
    definitions = {
        definition: measure_cuda.attempt(definition.both) for definition in set(exact.values())
    }
    for kind in ("forward", "both"):
        calls = {name: getattr(function, kind) for name, function in functions.items()}
        for name, call in list(calls.items()):
            _, error = measure_cuda.attempt(partial(measure_cuda.warm_up, call))
            if error is not None:
                results[name][f"{kind}_error"] = error
                del calls[name]
        for name, timing in measure_cuda.times(calls, repeats).items():
            results[name][f"{kind}_ms"] = median(timing.ms)
            results[name][f"{kind}_us"] = median(timing.host_us)
            results[name][f"{kind}_late"] = sum(timing.late) / repeats
        for name, call in calls.items():
            results[name][f"{kind}_mb"], values = measure_cuda.peak_extra_memory(call)
            if kind == "both" and name in exact:
                expected, error = definitions[exact[name]]
                difference = error or largest_difference(values, expected)
                results[name]["both_difference"] = difference
    for name, values in results.items():
        shown = [values.get(f"{k}_ms", values.get(f"{k}_error")) for k in ("forward", "both")]
        print(f"  {name:16} {shown[0]} / {shown[1]}", flush=True)
    return row
