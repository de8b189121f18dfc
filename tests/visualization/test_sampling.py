"""Where sampling points lie on the image, against a count by hand."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from dcndet.models import Detector
from dcndet.models.engine import EngineError
from dcndet.models.visualization import draw_points, sampling_points
from dcndet.models.visualization.sampling import MAX_POINTS, _Field
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from dcn import LAYERS, DCNv3, DeformConv2d, DeformRoIPool, LocalDeformKernel2d
from dcn.deformable import Samples
from tests.visualization.toy import toy


def conv(offset=(0.0, 0.0), stride=1, **kwargs):
    """Of three channels; every point moves by `offset`, (dy, dx)."""
    layer = DeformConv2d(3, 3, 3, stride, padding=1, **kwargs)
    with torch.no_grad():
        layer.conv_offset.bias[: layer.offset_channels] = torch.tensor(offset).repeat(
            layer.offset_channels // 2
        )
    return layer


def grid(x, y):
    return Counter(zip(x.round(3).tolist(), y.round(3).tolist(), strict=True))


def test_two_layers_at_rest_sample_five_by_five_points():
    """81 paths, of which several lead to one pixel."""
    points = sampling_points(toy(nn.Sequential(conv(), conv())), (40, 56), at=(30, 17), depth=2)
    assert points.layers == ("backbone.1", "backbone.0")
    assert points.at == (30, 17)
    assert len(points.x) == points.total == 81
    ways = [1, 2, 3, 2, 1]  # by which two steps of -1, 0 or 1 add up to -2 ... 2
    expected = Counter(
        {(30.0 + i - 2, 17.0 + j - 2): ways[i] * ways[j] for i in range(5) for j in range(5)}
    )
    assert grid(points.x, points.y) == expected
    assert grid(points.rest_x, points.rest_y) == expected
    np.testing.assert_allclose(points.weight, 0.25)
    assert {a.dtype for a in (points.x, points.y, points.weight, points.rest_x)} == {
        np.dtype("float32")
    }


def test_a_stride_between_two_layers_moves_no_point():
    """A 1×1 convolution that strides, as in Caffe's ResNets, keeps the pixels that it reads."""
    net = nn.Sequential(conv(), nn.Conv2d(3, 3, 1, 2), conv())
    points = sampling_points(toy(net), (40, 56), at=(30, 17), depth=2)
    assert points.at == (30, 16)
    assert sorted({*points.rest_x.round(3).tolist()}) == [27, 28, 29, 30, 31, 32, 33]
    assert points.y.mean() == pytest.approx(16)
    np.testing.assert_allclose(points.x, points.rest_x)


def test_offsets_move_points_by_strides_of_the_image():
    """The map has a stride of 4 in an input that is 2 (3) times as wide (high) as the image."""
    net = nn.Sequential(nn.Conv2d(3, 3, 4, 4), conv((0.5, -1.25)), conv((-0.25, 0.75)))
    detector = toy(net, scale=(2, 3), divisor=32)
    one = sampling_points(detector, (50, 70), at=(36, 20))
    # The nearest position is (18, 15) of the map: (18.5 · 4) / 2 - 0.5, (15.5 · 4) / 3 - 0.5.
    assert one.at == pytest.approx((36.5, 62 / 3 - 0.5))
    np.testing.assert_allclose(one.x - one.rest_x, 0.75 * 4 / 2, atol=1e-5)
    np.testing.assert_allclose(one.y - one.rest_y, -0.25 * 4 / 3, atol=1e-5)
    assert sorted({*one.rest_x.round(3).tolist()}) == [34.5, 36.5, 38.5]
    assert one.rest_y.mean() == pytest.approx(one.at[1], abs=1e-5)
    two = sampling_points(detector, (50, 70), at=(36, 20), depth=2)
    np.testing.assert_allclose(two.x - two.rest_x, (0.75 - 1.25) * 4 / 2, atol=1e-5)
    np.testing.assert_allclose(two.y - two.rest_y, (0.5 - 0.25) * 4 / 3, atol=1e-5)


def test_a_strided_layer_samples_the_map_before_it():
    points = sampling_points(toy(nn.Sequential(conv(stride=2))), (40, 56), at=(20.4, 30.6))
    assert points.at == (20, 30)  # of the output's pixel 10, 15
    assert sorted({*points.x.round(3).tolist()}) == [19, 20, 21]
    assert sorted({*points.y.round(3).tolist()}) == [29, 30, 31]


def test_what_pools_between_two_layers_does_not_move_points():
    net = nn.Sequential(conv(), nn.MaxPool2d(2), conv((0.0, 0.5)))
    points = sampling_points(toy(net), (40, 56), at=(20.6, 30.6), depth=2)
    assert points.at == (20.5, 30.5)
    steps = sorted({*(points.rest_y - 30.5).round(3).tolist()})
    assert steps == [-3, -2, -1, 0, 1, 2, 3]  # pairs of -2, 0 or 2 and -1, 0 or 1
    np.testing.assert_allclose(points.x - points.rest_x, 0.5 * 2, atol=1e-4)


def test_between_positions_points_are_interpolated():
    """Exactly, where they are linear; at rest also beyond the map."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    mask = rows / 8
    y, x = rows * 2 + 0.1 * columns, columns * 2 - 0.3 * rows
    shape = (1, 1, 1, 4, 6)
    samples = Samples(
        *(t.reshape(shape) for t in (y, x, mask, rows * 2, columns * 2)), (-1.0, -1.0), (8.0, 12.0)
    )
    field = _Field(samples)
    at = torch.tensor([[1.25, 2.5], [4.5, 0.75]])
    found, weight = field.read(at)
    expected = [[2.5 - 0.75, 5 + 0.125], [9 - 0.225, 1.5 + 0.45]]
    torch.testing.assert_close(found[:, 0], torch.tensor(expected))
    torch.testing.assert_close(weight[:, 0], torch.tensor([2.5 / 8, 0.75 / 8]))
    beyond = torch.tensor([[-3.0, 9.5]])
    torch.testing.assert_close(field.at_rest(beyond)[0], torch.tensor([[-6.0, 19.0]]))


def test_paths_end_where_they_leave_a_map():
    net = nn.Sequential(conv(), conv())
    corner = sampling_points(toy(net), (20, 20), at=(0, 0), depth=2)
    assert len(corner.x) == 4 * 9  # of nine points, four are in the image
    assert corner.total == 81
    assert corner.x.min() == -1  # what the last layer reads of padding is there


def test_every_group_has_points_of_its_own():
    layer = conv(deform_groups=3, modulated=False)
    with torch.no_grad():
        layer.conv_offset.bias.view(3, 9, 2)[1] = 2.0
    points = sampling_points(toy(nn.Sequential(layer)), (20, 20), at=(9, 9))
    moved = points.x - points.rest_x
    assert (moved == 0).sum() == 18
    assert (moved == 2).sum() == 9
    np.testing.assert_array_equal(points.weight, 1)


def test_too_many_points_are_thinned_out():
    layers = [conv(deform_groups=3) for _ in range(4)]
    detector = toy(nn.Sequential(*layers))
    points = sampling_points(detector, (30, 30), at=(15, 15), depth=4)
    assert points.total == 27**4
    assert len(points.x) == MAX_POINTS
    assert points.rest_x.mean() == pytest.approx(15, abs=0.1)
    again = sampling_points(detector, (30, 30), at=(15, 15), depth=4)
    np.testing.assert_array_equal(points.x, again.x)


def test_the_default_position_is_the_best_detections():
    net = nn.Sequential(conv())
    found = sampling_points(toy(net, [[10, 4, 21, 13], [0, 0, 5, 5]]), (30, 40))
    assert found.at == (15, 8)
    assert sampling_points(toy(net), (31, 41)).at == (20, 15)


def pooling(boxes, *layers):
    pool = DeformRoIPool((2, 3), 3, spatial_scale=0.5, fc_channels=4)
    with torch.no_grad():
        bias = torch.zeros(3, 2, 3)
        bias[0], bias[1], bias[2, 1, 2] = 2.0, -1.0, 3.0
        pool.offset_fc[-1].bias.copy_(bias.flatten())
    detector = toy(nn.Sequential(nn.Conv2d(3, 3, 2, 2), *layers), boxes, pool, scale=(2, 2))
    detector.model.rois = torch.tensor(
        [[0, 0.0, 0, 80, 80], [0, 20, 10, 50, 30], [0, 60, 60, 72, 78]]  # in pixels of the input
    )
    return detector


def test_bins_of_the_rois_that_detections_stem_from():
    detector = pooling([[31, 30, 36, 39], [10, 6, 25, 15]])
    points = sampling_points(detector, (40, 40), at=(12, 10))
    assert points.layers == ("pool",)
    np.testing.assert_allclose(points.rois, [[10, 5, 25, 15]])
    np.testing.assert_allclose(points.rest_x, np.tile([12, 17, 22], 2), atol=1e-5)
    np.testing.assert_allclose(points.rest_y, np.repeat([7, 12], 3), atol=1e-5)
    np.testing.assert_allclose(points.x - points.rest_x, 0.1 * 2 * 15, atol=1e-5)
    np.testing.assert_allclose(points.y - points.rest_y, -0.1 * 10, atol=1e-5)
    sigmoid = 1 / (1 + np.exp(-3))
    np.testing.assert_allclose(points.weight, [0.5] * 5 + [sigmoid], atol=1e-5)
    both = sampling_points(detector, (40, 40))
    np.testing.assert_allclose(both.rois, [[30, 30, 36, 39], [10, 5, 25, 15]])
    assert len(both.x) == 12
    convolution = sampling_points(pooling([], conv(), nn.Identity()), (40, 40))
    assert convolution.layers == ("backbone.1",)  # the default, although pooling is the last


@pytest.mark.parametrize(
    ("detector", "kwargs", "message"),
    [
        (
            toy(nn.Sequential(conv())),
            dict(at=(40, 3)),
            "at: (40, 3) is outside the image of 40×30",
        ),
        (
            toy(nn.Sequential(conv(), conv())),
            dict(layer="backbone.2"),
            "no deformable layer backbone.2; there are backbone.0, backbone.1",
        ),
        (
            toy(nn.Sequential(conv(), conv(), conv())),
            dict(layer="backbone.1", depth=3),
            "depth: 3, but 2 deformable layers are stacked up to backbone.1: from 1 to 2",
        ),
        (
            toy(nn.Sequential(conv(), conv())),
            dict(depth=1.5),
            "depth: 1.5, but 2 deformable layers",
        ),
        (toy(nn.Sequential(nn.Conv2d(3, 3, 3))), {}, "no deformable layers; its backbone is a Seq"),
        (
            toy(nn.Sequential(conv(), LocalDeformKernel2d(4, 3, 3, 3, padding=1))),
            dict(layer="backbone.1"),
            "backbone.1 (LocalDeformKernel2d) moves points in the scope of its kernels and has "
            "none on the image; layers that can be shown: backbone.0",
        ),
        (pooling([]), {}, "nothing was detected in the image"),
        (pooling([[1, 1, 9, 9]]), dict(at=(20, 20)), "nothing was detected at (20, 20)"),
        (pooling([[20, 20, 28, 28]]), {}, "pool has pooled no RoI that one of these detections"),
        (pooling([[1, 1, 9, 9]]), dict(depth=2), "depth: 2, but bins of RoI pooling (pool)"),
    ],
)
def test_refusals(detector, kwargs, message):
    with pytest.raises(EngineError, match=re.escape(message)) as error:
        sampling_points(detector, (30, 40), **kwargs)
    assert "\n" not in str(error.value)


def classifier(backbone, folder, channels):
    """Loaded as a Detector."""
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = dict(
        type="ImageClassifier",
        backbone=backbone,
        in_channels=channels,
        num_classes=2,
        data_preprocessor=dict(type="ImgDataPreprocessor"),
    )
    pipeline = [dict(type="LoadImageFromFile"), dict(type="PackDetInputs", meta_keys=())]
    dataset = dict(type="ImageFolder", pipeline=pipeline)
    cfg = Config(dict(model=model, test_dataloader=dict(dataset=dataset)))
    state = MODELS.build(model).state_dict()
    meta = {"dataset_meta": {"classes": ("a", "b")}}
    torch.save({"state_dict": state, "meta": meta}, folder / "a.pth")
    return Detector(cfg, folder / "a.pth", device="cpu")


@pytest.mark.parametrize("name", sorted({*LAYERS} - {"condconv"}))  # that samples nothing
def test_every_layer_in_place_of_a_convolution(name, tmp_path):
    """Untrained, its points are the regular ones, around the position."""
    backbone = dict(
        type="DeformResNet", depth=18, base_channels=16, deform=dict(layers=2, conv=name)
    )
    detector = classifier(backbone, tmp_path, 128)
    image = np.random.default_rng(0).integers(0, 255, (64, 128, 3)).astype(np.uint8)
    if name in ("dk_local", "dk_global"):
        with pytest.raises(EngineError, match="scope of its kernels"):
            sampling_points(detector, image)
        return
    points = sampling_points(detector, image, at=(70, 20), depth=1)
    assert points.at == (64, 32)
    np.testing.assert_allclose(points.x, points.rest_x, atol=1e-4)
    np.testing.assert_allclose(points.y, points.rest_y, atol=1e-4)
    assert sorted({*points.rest_x.round(2).tolist()}) == [32, 64, 96]
    assert sorted({*points.rest_y.round(2).tolist()}) == [0, 32, 64]
    for weight in (points.weight, 0 * points.weight):  # as a DCNv4's that starts as released
        assert len(draw_points(replace(points, weight=weight)).shape) == 3


@pytest.mark.parametrize("name", ["mdconv", "dcnv3", "dcnv4"])
def test_a_strided_layer_on_the_way_to_a_map(name, tmp_path):
    """Nothing beside it says where the map's pixels lie."""
    backbone = dict(
        type="SmallCNN",
        channels=[16, 16, 16],
        strides=[2, 2, 1],
        in_channels=3,
        deform=dict(layers=2, conv=name),
    )
    detector = classifier(backbone, tmp_path, 16)
    points = sampling_points(detector, np.zeros((32, 32, 3), np.uint8), at=(13, 17), depth=1)
    assert points.at == (12, 16)
    assert sorted({*points.rest_x.round(2).tolist()}) == [8, 12, 16]


def test_a_classifier_finds_no_boxes(tmp_path):
    detector = classifier(dict(type="SmallCNN", channels=[4], in_channels=3), tmp_path, 4)
    with pytest.raises(EngineError, match="a classifier's, which finds no boxes"):
        detector(np.zeros((32, 32, 3), np.uint8))


def test_padding_as_tensorflow_does_it(tmp_path):
    """The layer sees a padded map; points are on the one before."""
    pytest.importorskip("timm")
    backbone = dict(
        type="TimmBackbone",
        model_name="tf_efficientnet_lite0",
        out_indices=(4,),
        deform=dict(layers=6),
    )
    detector = classifier(backbone, tmp_path, 320)
    points = sampling_points(detector, (128 * np.ones((64, 96, 3))).astype(np.uint8), at=(50, 30))
    assert points.layers == ("backbone.body.blocks.6.0.conv_dw",)
    assert points.at == (63, 31)  # the larger half of the padding is to the right, at every stride
    assert sorted({*points.rest_x.round(2).tolist()}) == [31, 63, 95]
    strided = sampling_points(
        detector,
        np.zeros((64, 96, 3), np.uint8),
        at=(50, 30),
        layer="backbone.body.blocks.5.0.conv_dw",
    )
    assert strided.at == (63, 31)
    assert sorted({*strided.rest_x.round(2).tolist()}) == [31, 47, 63, 79, 95]


def test_dcnv3_on_maps_with_channels_last():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.dcn = DCNv3(3, group=1, norm_layer="LN")

        def forward(self, x):
            return self.dcn(x.permute(0, 2, 3, 1))

    points = sampling_points(toy(Backbone()), (12, 20), at=(15, 3))
    assert grid(points.x, points.y) == Counter(
        {(x, y): 1 for x in (14.0, 15.0, 16.0) for y in (2.0, 3.0, 4.0)}
    )
    assert points.weight.sum() == pytest.approx(1)


def test_the_picture_shows_them_where_they_are():
    layer = conv((0.0, 6.0))
    points = sampling_points(
        toy(nn.Sequential(layer)), np.full((40, 60, 3), 90, np.uint8), at=(15, 20)
    )
    drawn = draw_points(points).astype(int)
    ground = (drawn == 90).all(-1)
    ys, xs = np.nonzero(ground)
    left, right, top, bottom = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
    assert (right - left) / (bottom - top) == pytest.approx(1.5, abs=0.02)
    green = (abs(drawn - (127, 255, 0)) < 30).all(-1)
    y, x = (axis.mean() for axis in np.nonzero(green))
    assert (x - left) / (right - left) * 60 - 0.5 == pytest.approx(15, abs=0.3)
    assert (y - top) / (bottom - top) * 40 - 0.5 == pytest.approx(20, abs=0.3)
    rest = (drawn > 240).all(-1) & (np.indices(ground.shape)[1] > left)
    inside = rest[top:bottom, left:right]
    assert inside.any()
    assert np.nonzero(inside)[1].mean() / (right - left) * 60 - 0.5 == pytest.approx(15, abs=1)
