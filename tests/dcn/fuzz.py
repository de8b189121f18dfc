"""Random calls of the operators, good and bad: python tests/dcn/fuzz.py --calls 10000 --seed 0.

With --threads 8 that many threads of Python call at once; PyTorch's random numbers are then drawn
in another order every time.

A good call gives finite results, and the same bits when it is repeated (so that nothing it read
was left over in memory). A bad one raises a TypeError or ValueError that names the argument.
scripts/sanitize.sh runs this with kernels that stop at the first read or write outside memory.
"""

import argparse
import os
import random
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import dcn

ODD = (float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 3e38, -1.0, 0.0, 2.0**31, -(2.0**31))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    shares = [args.calls // args.threads] * args.threads
    counts = Counter()
    with ThreadPoolExecutor(args.threads) as pool:
        for found in pool.map(run, shares, range(args.seed, args.seed + args.threads)):
            counts.update(found)
    print(f"calls of the operators from {args.threads} threads at once: {dict(counts)}")


def run(calls: int, seed: int) -> dict[str, int]:
    """How many calls were good, and how many were refused."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    threads = torch.get_num_threads()
    counts = {"good": 0, "refused": 0}
    try:
        for i in range(calls):
            torch.set_num_threads(rng.randint(1, 3))
            make = rng.choice((convolution, pooling, aggregation, deform_kernel))
            operator, arguments = make(rng)
            spoiled = rng.random() < 0.2 and spoil(rng, arguments)
            try:
                check(operator, arguments, spoiled)
            except Exception as error:
                raise AssertionError(f"call {i} of seed {seed}: {describe(arguments)}") from error
            counts["refused" if spoiled else "good"] += 1
    finally:
        torch.set_num_threads(threads)
    return counts


def check(operator, arguments: dict, spoiled: str | bool) -> None:
    if spoiled:
        with pytest.raises((TypeError, ValueError), match=f"^{re.escape(spoiled)}"):
            operator(**arguments)
        return
    first = results(operator, arguments)
    for a, b in zip(first, results(operator, arguments), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def results(operator, arguments: dict) -> list[Tensor]:
    leaves = {
        name: value.detach().requires_grad_(name != "rois") if torch.is_tensor(value) else value
        for name, value in arguments.items()
    }
    out = operator(**leaves)
    tensors = [t for t in leaves.values() if torch.is_tensor(t) and t.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, tensors, torch.ones_like(out))]


def convolution(rng: random.Random) -> tuple:
    groups, deform_groups = rng.choice((1, 1, 2, 3, 8, 16)), rng.choice((1, 1, 2, 4))
    n, c_in = rng.randint(0, 3), groups * deform_groups * rng.randint(1, 20 if groups < 8 else 4)
    c_out = rng.choice((c_in, groups * rng.randint(1, 40 if groups < 8 else 10)))
    kernel = rng.randint(1, 4), rng.randint(1, 4)
    geometry = {
        name: (rng.randint(*limits), rng.randint(*limits))
        for name, limits in dict(stride=(1, 4), padding=(0, 4), dilation=(1, 3)).items()
    }
    least = [geometry["dilation"][i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    size = [max(1, least[i] - 2 * geometry["padding"][i]) + rng.randint(0, 9) for i in (0, 1)]
    out = [
        (size[i] + 2 * geometry["padding"][i] - least[i]) // geometry["stride"][i] + 1
        for i in (0, 1)
    ]
    points = deform_groups * kernel[0] * kernel[1]
    dtype = rng.choice((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    arguments = dict(
        input=tensor(rng, dtype, n, c_in, *size),
        offset=odd(rng, tensor(rng, dtype, n, 2 * points, *out) * rng.choice((0, 1, 5, 100))),
        weight=tensor(rng, dtype, c_out, c_in // groups, *kernel),
        bias=tensor(rng, dtype, c_out) if rng.random() < 0.5 else None,
        mask=tensor(rng, dtype, n, points, *out) if rng.random() < 0.5 else None,
        **geometry,
    )
    return dcn.deform_conv2d, arguments


def pooling(rng: random.Random) -> tuple:
    n, channels, count = rng.randint(1, 3), rng.randint(1, 70), rng.randint(0, 6)
    size = (rng.randint(1, 20), rng.randint(1, 20))
    bins = (rng.randint(1, 5), rng.randint(1, 5))
    dtype = rng.choice((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    rois = torch.randn(count, 5) * rng.choice((1, 10, 30))
    rois = odd(rng, rois)
    rois[:, 0] = torch.randint(0, n, (count,))
    if rng.random() < 0.5:  # the right way round
        rois[:, 3:] = rois[:, 1:3] + rois[:, 3:].abs()
    arguments = dict(
        input=tensor(rng, dtype, n, channels, *size),
        rois=rois.to(rng.choice((dtype, torch.float32))),
        output_size=bins,
        offset=odd(rng, tensor(rng, dtype, count, 2, *bins)) if rng.random() < 0.5 else None,
        mask=tensor(rng, dtype, count, 1, *bins) if rng.random() < 0.5 else None,
        spatial_scale=rng.choice((1.0, 0.5, 0.0625, 3.0)),
        sampling_ratio=rng.choice((0, 0, 1, 2, 7)),
        gamma=rng.choice((0.1, 1.0, 50.0)),
    )
    return dcn.deform_roi_pool, arguments


def aggregation(rng: random.Random) -> tuple:
    n, group, kernel = rng.randint(0, 3), rng.randint(1, 4), (rng.randint(1, 4), rng.randint(1, 4))
    settings = {
        name: (rng.randint(*limits), rng.randint(*limits))
        for name, limits in dict(stride=(1, 4), pad=(0, 4), dilation=(1, 3)).items()
    }
    least = [settings["dilation"][i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    size = [max(1, least[i] - 2 * settings["pad"][i]) + rng.randint(0, 9) for i in (0, 1)]
    out = [
        (size[i] + 2 * settings["pad"][i] - least[i]) // settings["stride"][i] + 1 for i in (0, 1)
    ]
    points = kernel[0] * kernel[1]
    remove_center = points % 2 == 1 and points > 1 and rng.random() < 0.5
    points = group * (points - remove_center)
    dtype = rng.choice((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    arguments = dict(
        input=tensor(rng, dtype, n, *size, group * rng.randint(1, 40)),
        kernel_size=kernel,
        group=group,
        offset_scale=rng.choice((1.0, 0.5, 2.0, -1.0, 0.0)),
        remove_center=remove_center,
        **settings,
    )
    if rng.random() < 0.5:
        packed = tensor(rng, dtype, n, *out, -(-3 * points // 8) * 8)
        return dcn.dcnv4, arguments | dict(offset_mask=odd(rng, packed, finite=True))
    offset = odd(rng, tensor(rng, dtype, n, *out, 2 * points) * rng.choice((0, 1, 5, 100)))
    return dcn.dcnv3, arguments | dict(offset=offset, mask=tensor(rng, dtype, n, *out, points))


def deform_kernel(rng: random.Random) -> tuple:
    kernel, scope = ((rng.randint(1, 4), rng.randint(1, 4)) for _ in range(2))
    n, rotations, moving = rng.randint(0, 3), rng.choice((1, 1, 2)), rng.choice((0, 0, 1, 2))
    depthwise = rng.random() < 0.7
    c_in = rotations * max(moving, 1) * rng.randint(1, 40 if depthwise else 4)
    geometry = {
        name: (rng.randint(*limits), rng.randint(*limits))
        for name, limits in dict(stride=(1, 4), padding=(0, 4), dilation=(1, 3)).items()
    }
    least = [geometry["dilation"][i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    size = [max(1, least[i] - 2 * geometry["padding"][i]) + rng.randint(0, 9) for i in (0, 1)]
    out = [
        (size[i] + 2 * geometry["padding"][i] - least[i]) // geometry["stride"][i] + 1
        for i in (0, 1)
    ]
    dtype = rng.choice((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    c_out = c_in if depthwise else rng.randint(1, 6)

    def offset(groups: int) -> Tensor:
        values = tensor(rng, dtype, n, 2 * groups * kernel[0] * kernel[1], *out)
        return odd(rng, values * rng.choice((0, 1, 5)))

    return dcn.local_deform_kernel, dict(
        input=tensor(rng, dtype, n, c_in, *size),
        offset=offset(rotations),
        weight=tensor(rng, dtype, c_out, 1 if depthwise else c_in, *scope),
        kernel_size=kernel,
        bias=tensor(rng, dtype, c_out) if rng.random() < 0.5 else None,
        input_offset=offset(moving) if moving else None,
        clamp=rng.random() < 0.5,
        **geometry,
    )


def tensor(rng: random.Random, dtype: torch.dtype, *shape: int) -> Tensor:
    """Random values in a random memory layout."""
    values = torch.randn(shape).to(dtype)
    layout = rng.randrange(5)
    if len(shape) == 4 and layout == 1:
        return values.contiguous(memory_format=torch.channels_last)
    if len(shape) == 4 and layout == 2:
        return values.mT.contiguous().mT
    if layout == 3:
        return torch.stack((values, values), -1)[..., 0]
    if layout == 4:
        return values[:1].expand(shape) if shape[0] else values
    return values


def odd(rng: random.Random, values: Tensor, finite: bool = False) -> Tensor:
    """With some values that are absurd, or not `finite`."""
    values = values.clone()
    if values.numel() and rng.random() < 0.5:
        for _ in range(rng.randint(1, 8)):
            index = tuple(rng.randrange(n) for n in values.shape)
            values[index] = rng.choice((-100.0, 30.0, -1.0, 0.0) if finite else ODD)
    return values


def spoil(rng: random.Random, arguments: dict) -> str | bool:
    """Makes one argument wrong and returns its name; False where there is nothing to spoil."""
    name = rng.choice([k for k, v in arguments.items() if torch.is_tensor(v)])
    value = arguments[name]
    if name == "rois" and len(value) and rng.random() < 0.5:
        index = rng.randrange(len(value))
        value[index, 0] = rng.choice((-1, len(arguments["input"]), *ODD[:6]))
        return f"rois[{index}, 0]"
    choices = [value.int(), value.unsqueeze(0), value.tolist()]
    if name == "input":
        choices.append(value[..., :0])
    else:
        choices.append(value.to("meta"))
    if name in ("offset", "mask", "offset_mask", "input_offset"):
        choices.append(torch.cat((value, value[..., :1]), -1))
    arguments[name] = rng.choice(choices)
    return name


def describe(arguments: dict) -> str:
    return ", ".join(
        f"{name}={value.dtype} {tuple(value.shape)}"
        if torch.is_tensor(value)
        else f"{name}={value}"
        for name, value in arguments.items()
    )


if __name__ == "__main__":
    main()
    # Python does not wait for the very end of a thread, where PyTorch takes the GIL to free what it
    # kept for it: the process aborts if the interpreter has ended by then.
    sys.stdout.flush()
    os._exit(0)
