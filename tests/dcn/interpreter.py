"""Makes Triton's interpreter more like a GPU, where nothing is interpreted and nothing changes."""

import functools
import random

import torch


def prepare() -> None:
    """The order of the programs is the same whenever a test runs."""
    _mend_bfloat16()
    _shuffle_programs().seed(0)


@functools.cache
def _shuffle_programs() -> random.Random:
    """Programs of a grid, which is of one dimension, run in the order that the result draws."""
    from triton.runtime.interpreter import InterpreterBuilder

    generator, order = random.Random(), []
    set_dim, set_index = InterpreterBuilder.set_grid_dim, InterpreterBuilder.set_grid_idx

    def draw_order(self, x, y, z):
        order[:] = generator.sample(range(x), x)
        set_dim(self, x, y, z)

    def set_drawn_index(self, x, y, z):
        set_index(self, order[x], y, z)

    InterpreterBuilder.set_grid_dim = draw_order
    InterpreterBuilder.set_grid_idx = set_drawn_index
    return generator


@functools.cache
def _mend_bfloat16() -> None:
    """Where it rounds to bfloat16 it cuts bits off, and `dot` multiplies the bits as integers."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def rounding_cast(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            rounded = torch.from_numpy(src.data).bfloat16().view(torch.uint16)
            return TensorHandle(rounded.numpy(), tl.bfloat16)
        return cast(self, src, dst_type)

    def widened_dot(self, a, b, *rest):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (cast(self, operand, tl.float32) for operand in (a, b))
        return dot(self, a, b, *rest)

    InterpreterBuilder.cast_impl = rounding_cast
    InterpreterBuilder.create_dot = widened_dot
