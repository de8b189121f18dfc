"""Compiles the kernels for unusual arguments, with 64-bit indices; prints how many."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
import triton.language as tl

from dcn.aggregation import gpu as aggregation
from dcn.deform_conv import gpu as deform_conv
from dcn.deform_kernel import gpu as deform_kernel
from dcn.roi_pool import gpu as deform_roi_pool
from tools.benchmarks.kernels import compile_call, recorded

# C_in, C_out, size, kernel, groups, deform groups, stride: one of everything, which Triton makes
# constants of; groups of unlike sizes; depthwise.
CONVS = [(1, 1, 1, 1, 1, 1, 1), (6, 4, 9, 3, 2, 3, 2), (32, 32, 16, 3, 32, 1, 1)]


def tensor(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


def main() -> None:
    for module in (aggregation, deform_conv, deform_kernel, deform_roi_pool):
        module.index_dtype = lambda *tensors: tl.int64
    calls = []
    for c_in, c_out, size, kernel, groups, deform_groups, stride in CONVS:
        torch.use_deterministic_algorithms(groups == 2)
        out, points = (size - 1) // stride + 1, deform_groups * kernel**2
        x, grad = tensor(1, c_in, size, size), tensor(1, c_out, out, out)
        offset, mask = tensor(1, 2 * points, out, out), tensor(1, points, out, out)
        weight = tensor(c_out, c_in // groups, kernel, kernel)
        mask = mask if c_in > 1 else None
        wanted = [True, True, True, False, mask is not None]
        geometry = ([stride] * 2, [kernel // 2] * 2, [1, 1])
        calls += recorded("", deform_conv.forward, x, offset, weight, None, mask, *geometry)
        calls += recorded(
            "", deform_conv.backward, grad, x, offset, weight, None, mask, *geometry, wanted
        )
    torch.use_deterministic_algorithms(False)
    x, rois, grad = tensor(1, 1, 5, 5), torch.empty(1, 5, device="meta"), tensor(1, 1, 1, 1)
    pooling = (rois, tensor(1, 2, 1, 1), tensor(1, 1, 1, 1), [1, 1], 1.0, 1, 0.1)
    calls += recorded("", deform_roi_pool.forward, x, *pooling)
    calls += recorded("", deform_roi_pool.backward, grad, x, *pooling, [True] * 3)
    # Packed, of one pixel and one group; with groups of a size that is no power of two.
    for x, offset, mask, groups in (
        (tensor(1, 1, 1, 1), tensor(1, 1, 1, 32), None, 1),
        (tensor(1, 5, 6, 12), tensor(1, 5, 6, 48), tensor(1, 5, 6, 24), 3),
    ):
        settings = ([3, 3], [1, 1], [1, 1], [1, 1], 0.5, mask is not None, groups)
        arguments, wanted = (x, offset, mask, *settings), [True, True, mask is not None]
        calls += recorded("", aggregation.forward, *arguments)
        calls += recorded("", aggregation.backward, x, *arguments, wanted)
    # A scope of one cell; rotation groups, and a scope of unlike sides.
    for channels, rotations, kernel, scope, clamp in (
        (1, 1, 1, (1, 1), True),
        (6, 2, 3, (5, 2), False),
    ):
        x, offset = tensor(1, channels, 3, 3), tensor(1, 2 * rotations * kernel**2, 3, 3)
        settings = ([kernel] * 2, [1, 1], [kernel // 2] * 2, [1, 1], clamp)
        arguments = (x, offset, tensor(channels, 1, *scope), None, None, *settings)
        wanted = [True, True, True, False, False]
        calls += recorded("", deform_kernel.forward, *arguments)
        calls += recorded("", deform_kernel.backward, x, *arguments, wanted)
    for call in calls:
        ptx = compile_call(call, call.configs[0], 90).asm["ptx"]
        # Not as IEEE rounds: another number of samples in a bin, another bilinear weight.
        assert "div.full" not in ptx, call
    print(len(calls))


if __name__ == "__main__":
    main()
