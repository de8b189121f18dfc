"""The layers of dcn.deform_kernel: what they take over, what they compute."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dcn

SCOPED = [dcn.LocalDeformKernel2d, dcn.GlobalDeformKernel2d, dcn.DeformKernelConv2d]
each_layer = pytest.mark.parametrize("layer", [*SCOPED, dcn.CondConv2d])


@each_layer
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_layers_take_over_a_convolution(layer, groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, (3, 2), (2, 1), (1, 2), (1, 2), groups, dtype=torch.float64)
    x = torch.randn(2, 4, 7, 8).double()
    for settings in ({}, {"scope_size": (5, 4)} if layer in SCOPED else {"num_experts": 3}):
        ours = layer.from_conv(conv, **settings)
        torch.testing.assert_close(ours(x), conv(x))
        ours.init_weights()
        torch.testing.assert_close(ours(x), conv(x))
        copied = layer.from_conv(conv, **settings)
        nn.init.normal_(copied.weight)
        copied.load_state_dict(ours.state_dict())
        assert torch.equal(copied(x), ours(x))
        ours(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in ours.parameters())
    assert ours(x[:0]).shape == (0, *conv(x).shape[1:])
    with pytest.raises(ValueError, match=r"^conv: "):
        layer.from_conv(nn.Conv2d(4, 4, 3, padding="same"))


def test_samples():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 7, 8)
    for layer, settings in ((SCOPED[0], dict(rotation_groups=2)), (SCOPED[1], {})):
        ours = layer(5, 4, 4, (3, 2), padding=1, **settings)
        size = (7, 9) if settings else (1, 1)
        samples = ours.samples(x)
        assert samples.y.shape == (2, 2 if settings else 1, 6, *size)
        # The middle 3 × 2 of 5 × 5 cells.
        assert torch.equal(samples.y[0, 0, :, 0, 0], torch.tensor([1.0, 1, 2, 2, 3, 3]))
        assert torch.equal(samples.x[0, 0, :, 0, 0], torch.tensor([1.5, 2.5] * 3))
        assert (samples.low, samples.high) == ((-1, -1), (5, 5))
        if layer.clamp:
            small = layer(2, 4, 4, 3).samples(x)  # whose outer points are held
            assert torch.equal(small.y, small.rest_y.expand_as(small.y))
            nn.init.constant_(ours.fc.bias, 9.0)
            assert torch.equal(ours.samples(x).y, torch.full_like(samples.y, 4.0))
    moving = SCOPED[2](5, 4, 4, 3, 2, 1, deform_groups=2)
    nn.init.constant_(moving.offset_conv.bias, 0.5)
    samples = moving.samples(x)
    assert samples.y.shape == (2, 2, 9, 4, 4)
    expected = torch.arange(4) * 2.0 + 0.5
    assert torch.equal(samples.x[0, 1, 4, 0], expected)
    assert torch.equal(samples.rest_x.expand(9, 1, 4)[4, 0], expected - 0.5)


def test_state_dicts_of_the_release():
    """By its names, which its DeformKernelConv2d has no rotation_conv among."""
    scope = torch.randn(4, 1, 4, 4)
    predictor = {"weight": torch.randn(18, 4, 3, 3), "bias": torch.randn(18)}
    for layer, name in ((SCOPED[0], "rotation_conv"), (SCOPED[2], "offset_conv")):
        ours = nn.Sequential(layer(4, 4, 4, 3, padding=1, groups=4))
        state = {f"0.{name}.{key}": value for key, value in predictor.items()}
        ours.load_state_dict(state | {"0.inner_conv.weight": scope}, strict=True)
        assert torch.equal(ours[0].weight, scope)
        assert torch.equal(getattr(ours[0], name).bias, predictor["bias"])
        moved = ours[0].rotation_conv.weight.any()
        assert moved == (name == "rotation_conv")
    whole = SCOPED[1](4, 4, 4, 3, padding=1, groups=4)
    state = {"weight": scope, "fc.weight": torch.randn(18, 4), "fc.bias": torch.randn(18)}
    whole.load_state_dict(state, strict=True)


def test_a_kernel_for_each_image():
    torch.manual_seed(0)
    cond = dcn.CondConv2d(4, 6, 3, padding=1, groups=2, bias=True, num_experts=3).double()
    scoped = dcn.GlobalDeformKernel2d(4, 4, 6, 3, padding=1, groups=2, bias=True).double()
    x = torch.randn(3, 4, 5, 6).double()
    for layer in (cond, scoped):
        nn.init.normal_(layer.fc.weight)
        single = torch.cat([layer(image[None]) for image in x])
        torch.testing.assert_close(layer(x), single)
    gates = torch.sigmoid(cond.fc(x.mean((2, 3))))[0]
    weight = sum(gate * expert for gate, expert in zip(gates, cond.weight, strict=True))
    expected = F.conv2d(x[:1], weight, cond.bias, padding=1, groups=2)
    torch.testing.assert_close(cond(x)[:1], expected)
    offset = scoped.fc(x.mean((2, 3)))[..., None, None].expand(3, 18, 5, 6)
    args = (x, offset, scoped.weight, 3, scoped.bias, 1, 1)
    torch.testing.assert_close(scoped(x), dcn.local_deform_kernel(*args, clamp=True))
    assert torch.autograd.gradcheck(scoped, x.requires_grad_(), fast_mode=True)


@each_layer
def test_compiled(layer):
    settings = {"scope_size": 4} if layer in SCOPED else {}
    ours = layer(in_channels=4, out_channels=4, kernel_size=3, padding=1, **settings)
    x = torch.randn(2, 4, 5, 6)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ours(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16


@pytest.mark.parametrize("layer", [dcn.GlobalDeformKernel2d, dcn.CondConv2d])
def test_a_kernel_for_each_image_of_bad_input(layer):
    settings = {"scope_size": 4} if layer in SCOPED else {}
    ours = layer(in_channels=4, out_channels=4, kernel_size=3, padding=1, **settings)
    for shape in ((4, 5, 6), (1, 3, 5, 6), (1, 4, 0, 6)):
        with pytest.raises(ValueError, match=r"^input: "):
            ours(torch.zeros(shape))
    x = torch.randn(2, 4, 5, 6)
    expected = ours(x)
    ours.to(
        memory_format=torch.channels_last
    )  # which torch refuses for a weight of five dimensions
    last = ours(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)


@each_layer
def test_a_layer_without_memory_loads_a_convolution(layer):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    settings = {"scope_size": 4} if layer in SCOPED else {}
    with torch.device("meta"):
        ours = layer(in_channels=4, out_channels=4, kernel_size=3, padding=1, bias=True, **settings)
    ours.load_state_dict(conv.state_dict(), strict=False, assign=True)
    assert ours.weight.device.type == ours.bias.device.type == "cpu"


def test_bad_settings():
    for name, layer in (("rotation_groups", SCOPED[0]), ("deform_groups", SCOPED[2])):
        with pytest.raises(ValueError, match=f"^{name}: "):
            layer(4, 4, 4, 3, **{name: 3})
