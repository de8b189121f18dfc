"""Tensors and transforms that the operators refuse: wrong values in silence would be worse."""

import pytest
import torch
from torch.autograd import forward_ad

import dcn


def convolve(x):
    return dcn.deform_conv2d(x, torch.zeros(1, 18, 6, 6), torch.ones(4, 4, 3, 3), padding=1)


def pool(x):
    return dcn.deform_roi_pool(x, torch.tensor([[0.0, 0, 0, 4, 4]]), 2)


def aggregate(x):
    return dcn.dcnv3(x, torch.zeros(1, 4, 6, 36), torch.ones(1, 4, 6, 18), group=2)


OPERATORS = pytest.mark.parametrize("operator", [convolve, pool, aggregate])


@OPERATORS
def test_forward_mode_derivatives_are_refused(operator):
    x = torch.rand(1, 4, 6, 6)
    with pytest.raises(NotImplementedError, match=r"^input: dcn operators have no forward-mode"):
        torch.func.jvp(operator, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level():
        operator(x)  # nothing to differentiate
        with pytest.raises(NotImplementedError, match=r"^input: "):
            operator(forward_ad.make_dual(x, torch.ones_like(x)))


@OPERATORS
def test_gradients_by_torch_func_are_refused(operator):
    with pytest.raises(NotImplementedError, match=r"^input: .*torch.autograd.grad has"):
        torch.func.grad(lambda x: operator(x).sum())(torch.rand(1, 4, 6, 6))
    with pytest.raises(NotImplementedError, match=r"^input: "):
        torch.func.jacrev(operator)(torch.rand(1, 4, 6, 6))


@OPERATORS
def test_vmap(operator):
    x = torch.rand(3, 1, 4, 6, 6)
    torch.testing.assert_close(torch.func.vmap(operator)(x), torch.stack([*map(operator, x)]))


@OPERATORS
def test_torch_fx_traces(operator):
    x = torch.rand(1, 4, 6, 6)
    torch.testing.assert_close(torch.fx.symbolic_trace(operator)(x), operator(x))


def test_features_of_a_model_with_our_layers():
    features = pytest.importorskip("torchvision.models.feature_extraction")
    model = torch.nn.Sequential(dcn.DeformConv2d(4, 6, 3), torch.nn.ReLU())
    x = torch.rand(1, 4, 6, 6)
    found = features.create_feature_extractor(model, ["0"])(x)["0"]
    torch.testing.assert_close(found, model[0](x))


@OPERATORS
@pytest.mark.parametrize(
    ("other", "kind"),
    [
        (torch.Tensor.to_sparse, "sparse_coo"),
        (torch.Tensor.to_mkldnn, "_mkldnn"),
        (lambda x: torch.nested.nested_tensor([x[0]]), "nested"),
    ],
)
def test_what_is_no_dense_tensor_is_refused_by_name(operator, other, kind):
    with pytest.raises(TypeError, match=f"^input: expected a dense tensor, got a {kind} one"):
        operator(other(torch.rand(1, 4, 6, 6)))
