"""OffsetStatisticsHook: its figures against a slow count, and when it warns."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from dcndet.models.engine import OffsetStatisticsHook
from dcndet.models.roi_heads import DeformRoIExtractor
from torch import nn

from dcn import LAYERS, DCNv3, DCNv4, DeformConv2d, DeformRoIPool


class Runner:
    """As much of a Runner as the hook asks for."""

    def __init__(self, model, max_iters=100):
        self.model, self.max_iters, self.iter = model, max_iters, 0
        self.logged = []
        self.visualizer = SimpleNamespace(
            add_scalars=lambda scalars, step: self.logged.append((step, scalars))
        )

    def step(self, hook, *inputs, passes=1):
        hook.before_train_iter(self, 0)
        for _ in range(passes):
            self.model(*inputs)
        hook.after_train_iter(self, 0)
        self.iter += 1


def start(model, interval=1, **kwargs):
    hook, runner = OffsetStatisticsHook(interval), Runner(model, **kwargs)
    hook.before_train(runner)
    return hook, runner


def conv(groups=2, modulated=True, std=0.5, stride=2):
    torch.manual_seed(0)
    layer = DeformConv2d(
        4, 8, 3, stride, padding=1, dilation=2, deform_groups=groups, modulated=modulated
    )
    nn.init.normal_(layer.conv_offset.weight, std=std)
    return nn.ModuleDict({"conv": layer})["conv"]


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolutions_figures(groups, modulated):
    layer = conv(groups, modulated)
    model = nn.Sequential(layer)
    hook, runner = start(model)
    x = torch.randn(2, 4, 9, 11)
    runner.step(hook, x)
    [(step, found)] = runner.logged
    assert step == 1
    prediction = layer.conv_offset(x).detach()
    lengths, outside, masks, inside, moved_out = [], 0, [], 0, 0
    n, _, rows, columns = prediction.shape
    for index in range(n):
        for group in range(groups):
            for k in range(9):
                for i in range(rows):
                    for j in range(columns):
                        channel = 2 * (9 * group + k)
                        dy, dx = prediction[index, channel : channel + 2, i, j].tolist()
                        y, x0 = i * 2 - 1 + k // 3 * 2 + dy, j * 2 - 1 + k % 3 * 2 + dx
                        lengths.append(math.hypot(dy, dx))
                        out = not (-1 < y < 9 and -1 < x0 < 11)
                        outside += out
                        if -1 < y - dy < 9 and -1 < x0 - dx < 11:
                            inside += 1
                            moved_out += out
                        if modulated:
                            mask = prediction[index, 18 * groups + 9 * group + k, i, j]
                            masks.append(float(mask.sigmoid()))
    lengths = torch.tensor(lengths)
    expected = dict(
        mean=lengths.mean(),
        p95=lengths.quantile(0.95),
        outside=outside / len(lengths),
        moved_out=moved_out / inside,
    )
    if modulated:
        masks = torch.tensor(masks)
        expected |= dict(mask_mean=masks.mean(), mask_std=masks.std(unbiased=False))
    expected = {
        f"offsets/0/{key}": pytest.approx(float(v), rel=1e-4) for key, v in expected.items()
    }
    assert found == expected
    assert 0.05 < found["offsets/0/outside"] < 0.9


@pytest.mark.parametrize("shared_fc", [True, False])
def test_the_rois_figures(shared_fc):
    torch.manual_seed(0)
    pool = DeformRoIPool((2, 3), 4, 0.25, fc_channels=8, shared_fc=shared_fc)
    for layer in (pool.offset_fc[-1], *([] if shared_fc else [pool.mask_fc[-1]])):
        nn.init.normal_(layer.weight, std=30.0)
        nn.init.normal_(layer.bias, std=8.0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = pool

        def forward(self, *args):
            return self.pool(*args)

    hook, runner = start(Model())
    features = torch.randn(1, 4, 10, 12)  # of an image of 40×48
    rois = torch.tensor([[0, 2.0, 3, 40, 30], [0, 20, 10, 47, 39]])
    seen = []
    pool.offset_fc.register_forward_hook(lambda m, args, out: seen.append(out.detach()))
    if not shared_fc:
        pool.mask_fc.register_forward_hook(lambda m, args, out: seen.append(out.detach()))
    pool(features, rois)
    bins = torch.cat(seen, 1).reshape(2, 3, 2, 3)
    runner.step(hook, features, rois)
    lengths, outside = [], 0
    for roi, prediction in zip(rois.tolist(), bins, strict=True):
        width, height = roi[3] - roi[1], roi[4] - roi[2]
        for i in range(2):
            for j in range(3):
                dx, dy = 0.1 * prediction[0, i, j] * width, 0.1 * prediction[1, i, j] * height
                x = roi[1] + (j + 0.5) / 3 * width + dx
                y = roi[2] + (i + 0.5) / 2 * height + dy
                lengths.append(math.hypot(dx, dy))
                outside += not (0 <= x <= 48 and 0 <= y <= 40)
    masks = bins[:, 2].sigmoid()
    assert 0 < outside < 12
    assert runner.logged[0][1] == {
        "offsets/pool/mean": pytest.approx(sum(lengths) / 12, rel=1e-4),
        "offsets/pool/p95": pytest.approx(float(torch.tensor(lengths).quantile(0.95)), rel=1e-4),
        "offsets/pool/outside": pytest.approx(outside / 12),
        "offsets/pool/moved_out": pytest.approx(outside / 12),
        "offsets/pool/mask_mean": pytest.approx(float(masks.mean()), rel=1e-4),
        "offsets/pool/mask_std": pytest.approx(float(masks.std(unbiased=False)), rel=1e-4),
    }


def test_it_measures_every_interval_and_only_the_first_pass():
    layer = conv()
    model = nn.Sequential(layer)
    hook, runner = start(model, interval=3)
    calls = []
    x = torch.randn(2, 4, 9, 11)
    for _ in range(6):
        runner.step(hook, x)
        calls.append(len(layer._forward_hooks) + len(layer.conv_offset._forward_hooks))
    assert [step for step, _ in runner.logged] == [3, 6]
    assert calls == [0] * 6  # nothing stays behind
    hook, twice = start(model)
    twice.step(hook, x, passes=1)
    once = twice.logged[0][1]
    hook, twice = start(nn.Sequential(layer))
    hook.before_train_iter(twice, 0)
    twice.model(x)
    twice.model(torch.zeros(8, 4, 40, 40))  # the crops of mimicking
    hook.after_train_iter(twice, 0)
    assert twice.logged[0][1] == once


def test_a_large_map_is_thinned():
    layer = conv(groups=1)
    hook, runner = start(nn.Sequential(layer))
    x = torch.randn(1, 4, 400, 500)
    runner.step(hook, x)
    length = layer.conv_offset(x).detach()[:, :18].unflatten(1, (9, 2)).norm(dim=2)
    assert runner.logged[0][1]["offsets/0/mean"] == pytest.approx(float(length.mean()), rel=0.01)


def test_thinning_takes_all_columns_alike():
    hook, runner = start(nn.Sequential(conv(groups=1, std=0.0, stride=1)))
    runner.step(hook, torch.zeros(4, 4, 102, 170))  # maps of 100×168, as of COCO
    outside = runner.logged[0][1]["offsets/0/outside"]
    # Dilation 2, padding 1: the first row of the kernel starts at -1, the last ends at the edge.
    assert outside == pytest.approx(1 - (1 - 2 / 3 / 100) * (1 - 2 / 3 / 168), rel=0.1)


def test_padding_is_no_running_away(said):
    """Of a map of 2×2, more than half of the kernel points are outside from the start."""
    hook, runner = start(nn.Sequential(DeformConv2d(4, 4, 3, padding=1)), max_iters=1000)
    runner.step(hook, torch.randn(1, 4, 2, 2))
    assert runner.logged[0][1]["offsets/0/outside"] > 0.5
    assert runner.logged[0][1]["offsets/0/moved_out"] == 0
    assert said == []


def test_maps_without_rois_are_left_out():
    hook, runner = start(nn.ModuleList([DeformRoIPool(7, 4, fc_channels=8)]))
    runner.model = lambda: hook.layers["0"](torch.randn(1, 4, 9, 9), torch.zeros(0, 5))
    runner.step(hook)
    assert runner.logged == [(1, {})]


@pytest.fixture
def said(monkeypatch):
    """The warnings."""
    lines = []
    monkeypatch.setattr(
        "dcndet.models.engine.offsets.print_log",
        lambda text, logger, level: lines.append((text, level)),
    )
    return lines


def test_a_dead_layer_is_named_once_after_a_tenth_of_the_schedule(said):
    hook, runner = start(nn.Sequential(conv(std=0.0)), max_iters=50)
    for step in range(1, 20):
        runner.step(hook, torch.randn(1, 4, 9, 11))
        assert len(said) == (step > 5)
    [(text, level)] = said
    assert level == logging.WARNING
    assert text.startswith("0 is dead")
    assert "learning rate" in text


def test_a_layer_that_moved_is_not_dead(said):
    layer = conv(std=0.5)
    hook, runner = start(nn.Sequential(layer), max_iters=50)
    runner.step(hook, torch.randn(1, 4, 9, 11))
    nn.init.zeros_(layer.conv_offset.weight)
    for _ in range(20):
        runner.step(hook, torch.randn(1, 4, 9, 11))
    assert said == []


def test_a_layer_that_runs_away_is_named_once(said):
    layer = conv(std=0.1)
    hook, runner = start(nn.Sequential(layer), max_iters=50)
    runner.step(hook, torch.randn(1, 4, 9, 11))
    assert said == []
    nn.init.constant_(layer.conv_offset.bias, 40.0)
    for _ in range(3):
        runner.step(hook, torch.randn(1, 4, 9, 11))
    [(text, _)] = said
    assert text.startswith("0 has run away: 100%")


def test_without_deformable_layers_it_does_nothing():
    hook, runner = start(nn.Sequential(nn.Conv2d(4, 4, 3)))
    runner.step(hook, torch.randn(1, 4, 9, 11))
    assert runner.logged == []


def test_a_shared_branch_is_measured_over_all_maps_of_the_images():
    """And not over the crops, which are the second pass of the extractor."""
    torch.manual_seed(0)
    extractor = DeformRoIExtractor("mdpool", 4, [4, 8], deform=dict(fc_channels=8))
    nn.init.normal_(extractor.roi_layers[0].offset_fc[-1].weight, std=30.0)
    hook, runner = start(nn.Sequential(extractor))
    maps = tuple(torch.randn(1, 4, 160 // s, 160 // s) for s in (4, 8))
    rois = torch.tensor([[0, 2.0, 3, 40, 30], [0, 20, 10, 150, 155], [0, 5, 5, 9, 9]])
    offsets = []
    spy = extractor.roi_layers[0].offset_fc.register_forward_hook(
        lambda m, args, out: offsets.append(out[:, :98].reshape(-1, 2, 7, 7))
    )
    with torch.no_grad():
        extractor(maps, rois)
    spy.remove()
    size = torch.tensor([[38.0, 27], [4, 4], [130, 145]])  # two of the first map, one of the second
    lengths = (0.1 * torch.cat(offsets) * size[:, :, None, None]).norm(dim=1)
    one = torch.tensor([0.0, 1, 1, 1, 1])
    runner.model = lambda: [extractor(maps, rois), extractor(maps, rois + one)]
    runner.step(hook)
    [(_, found)] = runner.logged
    assert found["offsets/0.roi_layers.0/mean"] == pytest.approx(float(lengths.mean()), rel=1e-4)
    assert [key for key in found if "/mean" in key] == ["offsets/0.roi_layers.0/mean"]


@pytest.mark.parametrize(
    ("layer", "args", "kwargs"),
    [
        (DeformConv2d(4, 4, 3, padding=1), ("x", "offset", "mask"), {}),
        (DeformConv2d(4, 4, 3, padding=1), ("x",), dict(offset="offset", mask="mask")),
        (DCNv4(4, group=1), ("rows",), dict(shape=(4, 6))),
        (DCNv4(4, group=1), ("map",), {}),
        (DCNv3(4, group=1, norm_layer="BN"), ("map",), {}),
        (LAYERS["dcnv3"].from_conv(nn.Conv2d(4, 4, 3, padding=1)), ("x",), {}),
        (DeformRoIPool(2, 4), ("x", "rois"), dict(spatial_scale=0.5)),
    ],
)
def test_whatever_a_layer_is_called_with(layer, args, kwargs):
    torch.manual_seed(0)
    tensors = dict(x=torch.randn(1, 4, 4, 6), offset=torch.randn(1, 18, 4, 6))
    tensors |= dict(mask=torch.rand(1, 9, 4, 6), rows=torch.randn(1, 24, 4))
    tensors |= dict(map=torch.randn(1, 4, 6, 4), rois=torch.tensor([[0, 0.0, 0, 11, 7]]))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self):
            named = {k: tensors.get(v, v) if isinstance(v, str) else v for k, v in kwargs.items()}
            return self.layer(*(tensors[name] for name in args), **named)

    hook, runner = start(Model())
    runner.step(hook)
    [(_, found)] = runner.logged
    names = {key.rsplit("/", 1)[0] for key in found}
    assert names == {"offsets/layer"}  # and not what it is made of
    if "offset" in (*args, *kwargs):  # its own are zero
        assert found["offsets/layer/mean"] == pytest.approx(
            tensors["offset"].view(1, 9, 2, 24).norm(dim=2).mean().item(), rel=1e-5
        )
    if "rois" in args:  # at a scale of 1 they would be twice as large as the map
        assert found["offsets/layer/outside"] == 0
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.num_batches_tracked == 1
