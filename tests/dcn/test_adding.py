"""The steps of dcn/README.md, "Add an operator", for an operator that has its definition alone."""

import sys

import pytest
import torch

from dcn.registration import OPERATORS, Operator

DEFINITION = """
import torch


def forward(input, factor):
    return input * factor.to(input.dtype).view(-1, 1, 1)


def backward(grad, input, factor, output_mask):
    of_input, of_factor = output_mask
    grad_input = grad * factor.to(grad.dtype).view(-1, 1, 1) if of_input else None
    grad_factor = (grad * input).sum((0, 2, 3)).to(factor.dtype) if of_factor else None
    return grad_input, grad_factor
"""


@pytest.fixture(scope="module")
def scale(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operators") / "toy"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "definition.py").write_text(DEFINITION)
    sys.path.insert(0, str(folder.parent))
    try:
        operator = Operator(
            "scale",
            "toy",
            "Tensor input, Tensor factor",
            gradients=("input", "factor"),
            fake=lambda input, factor: torch.empty_like(input),
            flops=lambda input, factor, out: 0,
            float32=("factor",),
        )
        operator.register()
        # What adds kernels asks this first: the import of dcn must not fail for want of them.
        assert operator.has("definition")
        assert not operator.has("cpu")
        assert not operator.has("gpu")
    finally:
        sys.path.remove(str(folder.parent))
    yield torch.ops.dcn.scale.default
    del OPERATORS["scale"]


def test_it_is_differentiable(scale):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    factor = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scale, (x, factor))
    torch.library.opcheck(scale, (x, factor))
    for wanted in ([True, False], [False, True]):
        arguments = (torch.ones_like(x), x.detach(), factor.detach(), wanted)
        torch.library.opcheck(torch.ops.dcn.scale_backward.default, arguments)


def test_it_compiles(scale):
    x, factor = torch.randn(2, 3, 4, 5), torch.randn(3)
    compiled = torch.compile(scale, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, factor), scale(x, factor))


def test_autocast_casts_what_it_should(scale):
    x, factor = torch.randn(2, 3, 4, 5), torch.tensor([1.0, 257.0, 3.0])
    with torch.autocast("cpu", torch.bfloat16):
        out = scale(x, factor)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, scale(x.bfloat16(), factor))  # 257 was not rounded to 16 bits
