import numpy as np
import pytest
import torch
from dcndet.models.backbones import DeformResNet, InternImage
from dcndet.models.engine import EngineError
from dcndet.models.visualization import draw_receptive_fields, receptive_field
from dcndet.models.visualization.files import write_receptive_fields
from dcndet.models.visualization.receptive_field import figures_of, share_inside
from PIL import Image
from torch import nn

from dcn import DeformConv2d
from tests.visualization.toy import toy


def ones(layer):
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def test_of_a_convolution_it_is_its_kernel():
    detector = toy(nn.Sequential(ones(nn.Conv2d(3, 1, 3, padding=1))))
    field = receptive_field(detector, (12, 20), at=(14, 5), box=(13, 4, 15, 12))
    expected = np.zeros((12, 20))
    expected[4:7, 13:16] = 1 / 9
    np.testing.assert_allclose(field.field, expected, atol=1e-6)
    assert field.at == (14, 5)
    assert field.centre == pytest.approx((14, 5))
    assert field.area == 9
    assert field.radius == pytest.approx((4 / 3) ** 0.5)
    assert field.inside == pytest.approx(6 / 9)


def test_it_is_the_root_of_squares_over_channels():
    """Channels that cancel each other are seen, as their signs are random."""
    layer = nn.Conv2d(3, 2, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, :, 1, 1], layer.weight[1, :, 1, 1] = 3.0, -3.0
        layer.weight[0, :, 1, 2] = 8.0
    field = receptive_field(toy(nn.Sequential(layer)), (9, 9), at=(4, 4), draws=400).field
    assert field[4, 5] / field[4, 4] == pytest.approx(8 / 18**0.5, rel=0.1)


def test_it_lies_around_the_position_in_a_resnet():
    torch.manual_seed(0)
    net = DeformResNet(18, base_channels=8)
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    for layer, stride in (("backbone.layer2", 8), ("backbone.layer3", 16)):
        field = receptive_field(toy(net), image, (131, 125), layer)
        assert field.at == (128, 128)
        assert np.abs(np.subtract(field.centre, field.at)).max() < stride / 8


def test_offsets_move_it():
    layer = DeformConv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        layer.conv_offset.bias[:18] = torch.tensor([-2.0, 3.0]).repeat(9)
    nn.init.ones_(layer.weight)
    detector = toy(nn.Sequential(nn.Identity(), layer), [[5, 2, 14.2, 11.2]], scale=(2, 2))
    field = receptive_field(detector, np.zeros((20, 30, 3), np.uint8))
    assert field.box == pytest.approx((5, 2, 14.2, 11.2))
    assert field.at == pytest.approx((9.25, 6.25))  # 19, 13 of the input
    assert field.field.shape == (40, 60)
    assert field.centre == pytest.approx((9.25 + 3 / 2, 6.25 - 2 / 2))
    assert field.area == 9 / 4
    assert field.inside == pytest.approx(1)
    before = receptive_field(detector, (20, 30), layer="backbone.0")
    assert np.count_nonzero(before.field) == 1


def test_a_relu_in_place_does_not_count_before_itself():
    conv = nn.Conv2d(3, 1, 3, padding=1)
    nn.init.ones_(conv.weight)
    nn.init.constant_(conv.bias, -1.0)
    detector = toy(nn.Sequential(conv, nn.ReLU(inplace=True)))
    assert receptive_field(detector, (9, 9), (4, 4), "backbone.0").area == 9
    with pytest.raises(EngineError, match=r"nothing in the image changes backbone\.1 at \(4, 4\)"):
        receptive_field(detector, (9, 9), (4, 4), "backbone.1")


def test_of_maps_with_channels_last():
    """Eight channels on 8×8 pixels: the shape does not tell which is which."""
    torch.manual_seed(0)
    net = InternImage(channels=8, depths=(1, 1), groups=(1, 1), out_indices=(0, 1))
    for size in ((32, 32), (32, 64)):
        field = receptive_field(toy(net), size, (9, 22), "backbone.levels.0.blocks.0", draws=2)
        assert field.at == (8, 24)
        assert np.hypot(*np.subtract(field.centre, field.at)) < 4


def test_area_and_radius_of_a_gaussian():
    y, x = np.mgrid[:120, :160]
    field = np.exp(-(((x - 70) / 2) ** 2 + (y - 50) ** 2) / (2 * 8**2))
    area, centre, radius = figures_of(field, (2, 1))  # on the image it is round
    assert centre == pytest.approx((70.5 / 2 - 0.5, 50), abs=1e-3)
    assert radius == pytest.approx(8 * 2**0.5, rel=1e-3)
    above = np.count_nonzero(field > (1 - 0.9545) * field.max()) / 2  # the paper's definition
    assert area == pytest.approx(above, rel=0.01)
    assert area == pytest.approx(2 * np.pi * 64 * np.log(1 / 0.0455), rel=0.01)
    assert share_inside(field, (2, 1), (0, 0, 80, 50.5)) == pytest.approx(0.5, abs=0.03)
    assert share_inside(field, (2, 1), (0, 0, 80, 120)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(draws=0), "draws: expected at least 1, got 0"),
        (dict(at=(9, 0)), r"at: \(9, 0\) is outside the image of 9×9"),
        (
            dict(box=(5, 5, 5, 9)),
            r"box: \(5, 5, 5, 9\) is no x1 < x2, y1 < y2 that ",
        ),
        (dict(box=(9, 0, 12, 9)), r"box: \(9, 0, 12, 9\) is no"),
        (dict(box=(0, float("nan"), 5, 5)), r"box: \(0, nan, 5, 5\) is no"),
        (dict(layer="backbone.7"), r"no module backbone\.7; there are backbone, backbone\.0, "),
        (dict(layer="backbone.1"), r"backbone\.1 returns no map, but \[1, 81\]"),
    ],
)
def test_refusals(kwargs, message):
    net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten())
    with pytest.raises(EngineError, match=message):
        receptive_field(toy(net), (9, 9), **kwargs)


def test_networks_share_position_and_box(tmp_path):
    """Those of the first one, also at the edge, and also where it detects nothing."""
    image = np.zeros((9, 9, 3), np.uint8)
    net = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1))
    detectors = {"a": toy(net, scale=(2, 2)), "b": toy(net, [[0, 0, 4, 4]])}
    Image.fromarray(image).save(tmp_path / "0.png")
    for detector in detectors.values():
        prepare = detector.prepare
        detector.prepare = lambda pictures, prepare=prepare: prepare([image])
    write_receptive_fields(detectors, [str(tmp_path / "0.png")], tmp_path, at=(0, 0))
    numbers = np.load(tmp_path / "0_field.npz")
    assert numbers["a/asked"].tolist() == numbers["b/asked"].tolist() == [0, 0]
    assert numbers["a/at"].tolist() != [0, 0]
    assert "b/box" not in numbers


def test_networks_stand_side_by_side():
    fields = {
        name: receptive_field(toy(nn.Sequential(nn.Conv2d(3, 1, k, padding=k // 2))), (40, 60))
        for name, k in (("a", 3), ("b", 9))
    }
    one, two = draw_receptive_fields({"a": fields["a"]}), draw_receptive_fields(fields)
    assert two.shape[0] == one.shape[0]
    assert two.shape[1] > 1.6 * one.shape[1]
