"""Layers in place of convolutions, and what every deformable layer tells of itself."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dcn
from dcn.deformable import Deformable

each_layer = pytest.mark.parametrize("name", dcn.LAYERS)


@each_layer
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 48, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=4),
    ],
    ids=["plain", "strided", "grouped"],
)
def test_a_layer_takes_the_place_of_a_convolution(name, conv):
    layer = dcn.LAYERS[name].from_conv(conv)
    x = torch.randn(2, 32, 8, 10)
    out = layer(x)
    assert out.shape == conv(x).shape
    out.square().sum().backward()
    if not isinstance(layer, Deformable):  # all of its samples stay where they are
        return
    samples = layer.samples(x)
    # Nothing has moved yet: every layer starts with offsets of zero.
    torch.testing.assert_close(samples.y, samples.rest_y.expand_as(samples.y))
    torch.testing.assert_close(samples.x, samples.rest_x.expand_as(samples.x))
    assert samples.y.shape[-2:] == (out.shape[-2:] if name != "dk_global" else (1, 1))
    size = (8.0, 10.0) if name not in ("dk_local", "dk_global") else (4.0, 4.0)
    assert (samples.low, samples.high) == ((-1.0, -1.0), size)


@pytest.mark.parametrize(("name", "scale"), [("dconv", 1), ("mdconv", 0.5)])
def test_a_deformable_convolution_keeps_the_weight(name, scale):
    conv = nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2), groups=2)
    layer = dcn.LAYERS[name].from_conv(conv, deform_groups=2)
    x = torch.randn(2, 4, 7, 9)
    weight = scale * conv.weight
    expected = F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, groups=2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dcnv3", "dcnv4"])
def test_an_aggregation_has_sixteen_channels_a_group(name):
    conv = nn.Conv2d(96, 96, 3, padding=1, dtype=torch.float64)
    layer = dcn.LAYERS[name].from_conv(conv)
    assert layer(torch.randn(1, 96, 4, 4, dtype=torch.float64)).dtype == torch.float64
    assert layer.layer.settings[4] == 6
    assert dcn.LAYERS[name].from_conv(conv, group=3).layer.settings[4] == 3
    with pytest.raises(ValueError, match=r"^conv: expected the same kernel_size along both axes"):
        dcn.LAYERS[name].from_conv(nn.Conv2d(16, 16, (3, 1), padding=1))


@each_layer
@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Conv1d(16, 16, 3, padding=1), "^conv: expected a Conv2d, got Conv1d"),
        (nn.ConvTranspose2d(16, 16, 3, padding=1), "^conv: expected a Conv2d, got ConvTranspose2d"),
        (nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), "^conv: only padding with zeros"),
        (nn.Conv2d(16, 16, 3, padding="same"), "^conv: only padding with zeros"),
        (dcn.DeformConv2d(16, 16, 3, padding=1), "^conv: expected a Conv2d, got DeformConv2d"),
    ],
)
def test_what_no_layer_can_stand_in_for_is_refused(name, conv, message):
    with pytest.raises(ValueError, match=message):
        dcn.LAYERS[name].from_conv(conv)


@each_layer
def test_a_layer_in_place_of_a_convolution_is_traced_by_torch_fx(name):
    layer = dcn.LAYERS[name].from_conv(nn.Conv2d(16, 16, 3, padding=1))
    x = torch.randn(2, 16, 5, 6)
    torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(layer))(x), layer(x))


@each_layer
def test_a_layer_in_place_of_a_convolution_names_a_bad_input(name):
    layer = dcn.LAYERS[name].from_conv(nn.Conv2d(16, 16, 3, padding=1))
    with pytest.raises(ValueError, match=r"^input: "):
        layer(torch.randn(16, 5, 6))


@each_layer
def test_a_layer_starts_without_offsets_on_any_device(name):
    layer = dcn.LAYERS[name].from_conv(nn.Conv2d(16, 16, 3, padding=1, device="meta"))
    layer.to_empty(device="cpu")
    for parameter in layer.parameters():
        nn.init.constant_(parameter, torch.nan)
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    predictors = ("conv_offset", "rotation_conv", "offset_conv", "fc", "offset", "mask")
    for key, parameter in layer.named_parameters():
        zero = key.split(".")[-2:][0] in predictors
        assert parameter.isfinite().all(), key
        assert not (zero and parameter.any()), key
    if name == "dcnv4":
        torch.testing.assert_close(layer.layer.offset_mask.bias, dcnv4_start(1, 9, 1 / 9))


def dcnv4_start(groups, points, mask):
    """Of the layer that predicts offsets and weights, padded to a multiple of eight."""
    per_group = [*[0.0] * (2 * points), *[mask] * points]
    return torch.tensor([*per_group * groups, *[0.0] * (-3 * groups * points % 8)])


def test_dcnv4_starts_as_released_unless_it_stands_for_a_convolution():
    assert not dcn.DCNv4(32).offset_mask.bias.any()
    conv = nn.Conv2d(32, 48, 3, padding=1)
    bias = dcn.DCNv4.from_conv(conv, remove_center=True).layer.offset_mask.bias
    torch.testing.assert_close(bias.detach(), dcnv4_start(2, 8, 1 / 8))
    assert not dcn.DCNv4.from_conv(conv, mask_start=0.0).layer.offset_mask.bias.any()
    with pytest.raises(TypeError, match=r"^mask_start: expected a number"):
        dcn.DCNv4(32, mask_start="mean")


@pytest.mark.parametrize("name", [n for n in dcn.LAYERS if not n.startswith("dcnv")])
def test_a_convolutions_weight_may_be_computed(name):
    conv = nn.Conv2d(8, 8, 3, padding=1)
    nn.utils.parametrizations.weight_norm(conv)
    layer = dcn.LAYERS[name].from_conv(conv, **({"mask_scale": 2.0} if name == "mdconv" else {}))
    x = torch.randn(1, 8, 6, 5)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-4, atol=1e-5)


@each_layer
def test_a_layer_is_in_the_mode_of_the_convolution(name):
    assert not dcn.LAYERS[name].from_conv(nn.Conv2d(16, 16, 3, padding=1).eval()).training


def test_settings_hold_where_channels_change():
    conv = nn.Conv2d(16, 32, 3, padding=1)
    assert dcn.DCNv4.from_conv(conv, output_bias=False).layer.output_proj.bias is None
    with pytest.raises(ValueError, match=r"^without_pointwise: 16 channels stay"):
        dcn.DCNv4.from_conv(conv, without_pointwise=True)


@each_layer
def test_settings_that_a_layer_does_not_have_are_refused(name):
    with pytest.raises(TypeError, match=r"^unknown settings \['layers'\], expected some of"):
        dcn.LAYERS[name].from_conv(nn.Conv2d(16, 16, 3, padding=1), layers=3)


@pytest.mark.parametrize("modulated", [False, True])
def test_samples_are_where_the_operator_samples(modulated):
    """Of a map whose values are its coordinates, a sample inside is its position."""
    torch.manual_seed(0)
    layer = dcn.DeformConv2d(2, 2, 3, stride=2, padding=1, bias=False, modulated=modulated)
    nn.init.normal_(layer.conv_offset.bias, std=1.5)
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    x = torch.stack((rows, columns))[None]
    y, across, mask, *_ = layer.samples(x)
    inside = (y >= 0) & (y <= 8) & (across >= 0) & (across <= 10)
    assert 0.3 < inside.float().mean() < 1
    for k in range(9):
        weight = torch.zeros(2, 2, 3, 3)
        weight[0, 0].view(-1)[k] = weight[1, 1].view(-1)[k] = 1
        with torch.no_grad():
            layer.weight.copy_(weight)
        expected = torch.stack((y[:, 0, k], across[:, 0, k]), 1)
        if modulated:
            expected = expected * mask[:, :, k]
        here = inside[:, :1, k].expand_as(expected)
        torch.testing.assert_close(layer(x)[here], expected[here])


def test_a_convolution_takes_offsets_from_elsewhere():
    layer = dcn.DeformConv2d(4, 6, 3, padding=1)
    x, offset, mask = torch.randn(2, 4, 5, 6), torch.randn(2, 18, 5, 6), torch.rand(2, 9, 5, 6)
    expected = dcn.deform_conv2d(x, offset, layer.weight, layer.bias, padding=1, mask=mask)
    assert torch.equal(layer(x, offset, mask), expected)
    with pytest.raises(ValueError, match=r"^mask: needs an offset beside it"):
        layer(x, mask=mask)


def test_offsets_start_at_zero_whenever_parameters_are_reset():
    layer = dcn.DeformConv2d(4, 6, 3, device="meta").to_empty(device="cpu")
    for module in layer.modules():
        module.reset_parameters()
    assert not layer.conv_offset.weight.any()
    assert not layer.conv_offset.bias.any()
    assert layer.weight.any()
    assert dcn.DeformConv2d(4, 6, 3, dtype=torch.float64).conv_offset.weight.dtype == torch.float64


@pytest.mark.parametrize("kernel", [3, 5, (1, 3)])
def test_padding_that_keeps_the_size(kernel):
    x = torch.randn(1, 4, 7, 9)
    assert dcn.DeformConv2d(4, 4, kernel, padding="same", dilation=2)(x).shape == x.shape


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(padding="same", stride=2), ValueError, "^padding: 'same' needs a stride of 1"),
        (dict(padding="same", kernel_size=2), ValueError, "^padding: 'same' needs as much of it"),
        (dict(padding="valid"), TypeError, "^padding: expected an int or two, got 'valid'"),
        (dict(stride=True), TypeError, "^stride: expected an int or two, got True"),
        (dict(kernel_size=0), ValueError, "^kernel_size: expected at least 1"),
    ],
)
def test_sizes_are_refused_when_the_layer_is_made(settings, error, message):
    with pytest.raises(error, match=message):
        dcn.DeformConv2d(4, 4, **(dict(kernel_size=3) | settings))


def test_integers_of_numpy():
    x, offset, weight = torch.rand(1, 4, 5, 6), torch.zeros(1, 18, 5, 6), torch.rand(2, 4, 3, 3)
    one = np.int64(1)
    out = dcn.deform_conv2d(x, offset, weight, stride=one, padding=(one, one))
    torch.testing.assert_close(out, F.conv2d(x, weight, padding=1))


@pytest.mark.parametrize("modulated", [False, True])
def test_an_image_without_a_batch_is_refused_by_name(modulated):
    layer = dcn.DeformConv2d(4, 6, 3, modulated=modulated)
    with pytest.raises(ValueError, match=r"^input: expected 4 dimensions, got shape \(4, 8, 8\)"):
        layer(torch.rand(4, 8, 8))


def test_a_frozen_weight_gets_no_gradient_and_the_others_the_same():
    torch.manual_seed(0)
    tensors = dict(
        input=torch.randn(2, 4, 5, 6),
        offset=torch.randn(2, 18, 5, 6),
        weight=torch.randn(6, 4, 3, 3),
        bias=torch.randn(6),
        mask=torch.rand(2, 9, 5, 6),
    )

    def gradients(frozen=()):
        leaves = {k: t.clone().requires_grad_(k not in frozen) for k, t in tensors.items()}
        dcn.deform_conv2d(**leaves, padding=1).square().sum().backward()
        return {k: t.grad for k, t in leaves.items()}

    every, some = gradients(), gradients(("weight", "mask"))
    assert some["weight"] is some["mask"] is None
    assert all(torch.equal(some[k], every[k]) for k in ("input", "offset", "bias"))


def test_an_output_follows_the_order_of_the_inputs_strides():
    x = torch.rand(2, 8, 5, 6).contiguous(memory_format=torch.channels_last)[:, :4]
    out = dcn.deform_conv2d(x, torch.zeros(2, 18, 5, 6), torch.rand(6, 4, 3, 3), padding=1)
    assert out.stride() == F.conv2d(x, torch.rand(6, 4, 3, 3), padding=1).stride()
    assert out.is_contiguous(memory_format=torch.channels_last)
    x, weight = torch.rand(2, 1, 6, 6), torch.rand(1, 1, 3, 3)
    out = dcn.deform_conv2d(x, torch.zeros(2, 18, 4, 4), weight)
    assert out.stride() == F.conv2d(x, weight).stride()
