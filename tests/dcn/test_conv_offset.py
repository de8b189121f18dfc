"""dcn.ConvOffset2D against a slow loop and its contract."""

from itertools import product
from math import floor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dcn


def slowly(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    offset = F.conv2d(x, weight, padding=1)
    out = torch.empty_like(x)
    (h, w) = x.shape[2:]
    for n, c, i, j in product(*map(range, x.shape)):
        y = min(max(i + offset[n, 2 * c, i, j].item(), 0), h - 1)
        x_ = min(max(j + offset[n, 2 * c + 1, i, j].item(), 0), w - 1)
        out[n, c, i, j] = sum(
            x[n, c, min(a, h - 1), min(b, w - 1)] * (1 - abs(y - a)) * (1 - abs(x_ - b))
            for a, b in product((floor(y), floor(y) + 1), (floor(x_), floor(x_) + 1))
        )
    return out


@pytest.mark.parametrize("size", [(4, 6), (1, 5), (5, 1), (1, 1)])
def test_values_and_gradients(size):
    torch.manual_seed(0)
    layer = dcn.ConvOffset2D(3).double()
    torch.nn.init.normal_(layer.weight, std=0.5)
    x = torch.randn(2, 3, *size).double()
    torch.testing.assert_close(layer(x), slowly(x, layer.weight))
    samples = layer.samples(x)
    assert samples.y.shape == samples.x.shape == (2, 3, 1, *size)
    assert samples.x.min() >= 0
    assert samples.x.max() <= size[1] - 1
    assert torch.autograd.gradcheck(layer, x.requires_grad_(), fast_mode=True)


def test_small_offsets_to_start_with():
    torch.manual_seed(0)
    layer = dcn.ConvOffset2D(64)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    torch.nn.init.zeros_(layer.weight)
    x = torch.randn(1, 64, 7, 9)
    torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_absurd_offsets(value, monkeypatch):
    layer = dcn.ConvOffset2D(1)
    x = torch.randn(1, 1, 4, 5)
    offset = torch.full((1, 2, 4, 5), value)
    monkeypatch.setattr(layer, "predict", lambda _: offset)
    out = layer(x)
    corner = x[..., -1:, -1:] if value > 0 else x[..., :1, :1]
    torch.testing.assert_close(out, x if value != value else corner.expand_as(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits(dtype):
    layer, x = dcn.ConvOffset2D(2).to(dtype), torch.randn(1, 2, 4, 5).to(dtype)
    assert layer(x).dtype == dtype
    expected = slowly(x.float(), layer.weight.detach().float())
    torch.testing.assert_close(layer(x).float(), expected, rtol=0.02, atol=0.02)


def test_empty_batch_compiled_and_autocast():
    layer, x = dcn.ConvOffset2D(2), torch.randn(2, 2, 4, 5)
    assert layer(x[:0]).shape == (0, 2, 4, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).shape == x.shape
    auto = torch.export.Dim.AUTO
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    larger = torch.randn(3, 2, 7, 6)
    torch.testing.assert_close(program.module()(larger), layer(larger))
    torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(layer))(x), layer(x))
    last = x.contiguous(memory_format=torch.channels_last)
    assert layer(last).is_contiguous(memory_format=torch.channels_last)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"^channels: "):
        dcn.ConvOffset2D(1.5)
    with pytest.raises(ValueError, match=r"^input: "):
        dcn.ConvOffset2D(2)(torch.zeros(1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"^input: "):
        dcn.ConvOffset2D(2)(torch.zeros(2, 4, 5))
    with pytest.raises(TypeError, match=r"^input: "):
        dcn.ConvOffset2D(2)(torch.zeros(1, 2, 4, 5, dtype=torch.int))


def test_in_place_of_a_convolution():
    """It starts as that convolution; its samples are the resampled pixels that the kernel reads."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=(1, 2))
    layer = dcn.ConvOffset2D.from_conv(conv)
    x = torch.randn(2, 3, 7, 9)
    torch.testing.assert_close(layer(x), conv(x))
    nn.init.normal_(layer.offset.weight, std=0.2)
    torch.testing.assert_close(layer(x), conv(layer.offset(x)))

    samples = layer.samples(x)
    whole = layer.offset.samples(x)
    n, c, row, column = 1, 2, 2, 1
    for point in range(9):
        i, j = 2 * row - 1 + point // 3, 2 * column - 1 + 2 * (point % 3)
        at = (n, c, point, row, column)
        inside = 0 <= i < 7 and 0 <= j < 9
        expected = [t[n, c, 0, i, j].item() for t in whole[:2]] if inside else [i, j]
        assert [samples.y[at].item(), samples.x[at].item()] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="init_std: expected a number from 0 up, got -1"):
        dcn.ConvOffset2D.from_conv(conv, init_std=-1)
