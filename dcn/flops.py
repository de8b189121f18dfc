"""Importing this has PyTorch's `torch.utils.flop_counter.FlopCounterMode` count dcn's operators.

It counts products with weights and sums over samples, as it does for convolutions; what it takes to
find and interpolate samples is not counted. PyTorch's counter imports Triton, so dcn does not.
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import register_flop_formula

from .registration import OPERATORS


def _forward(formula: Callable) -> Callable:
    def count(*shapes, out_shape=None, **_):
        return formula(*shapes, out=out_shape)

    return count


def _backward(formula: Callable) -> Callable:
    def count(grad, *shapes, **_):
        *shapes, _output_mask = shapes
        return 2 * formula(*shapes, out=grad)

    return count


for _operator in OPERATORS.values():
    register_flop_formula(getattr(torch.ops.dcn, _operator.name))(_forward(_operator.flops))
    register_flop_formula(getattr(torch.ops.dcn, f"{_operator.name}_backward"))(
        _backward(_operator.flops)
    )
