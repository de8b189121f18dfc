"""What Triton's interpreter does to bfloat16, mended."""

import functools

import torch


@functools.cache
def mend_bfloat16() -> None:
    """Where it rounds to bfloat16 it cuts bits off, and `dot` multiplies the bits as integers.

    On a GPU, where nothing is interpreted, this changes nothing.
    """
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
