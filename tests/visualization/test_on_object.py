import numpy as np
import pandas as pd
import pytest
import torch
from dcndet.models.engine import EngineError
from dcndet.models.visualization import annotations_of, draw_on_object, on_object, summarise
from dcndet.models.visualization.on_object import on_object_table
from pycocotools import mask as rle
from torch import nn

from dcn import DeformConv2d
from tests.visualization.toy import toy

SQUARE = [6, 4, 9, 7]  # 3×3 pixels


class Dataset(list):
    def get_data_info(self, index):
        return self[index]


def image(*boxes, size=(20, 30), **kwargs):
    instances = [dict(bbox=box, bbox_label=0, **kwargs) for box in boxes]
    array = np.zeros((*size, 3), np.uint8)
    return dict(img_path=array, height=size[0], width=size[1], instances=instances)


def layer(dx=0.0, **kwargs):
    conv = DeformConv2d(3, 3, 3, padding=1, **kwargs)
    with torch.no_grad():
        conv.conv_offset.bias[1:18:2] = dx
    return conv


def test_the_share_on_a_known_mask():
    """Of the 81 points that nine positions in a square sample, those of the four corners are 16."""
    conv = layer()
    with torch.no_grad():
        conv.conv_offset.bias[18:] = -50.0
        conv.conv_offset.bias[18 + 4] = 50.0  # the centre alone counts
    dataset = Dataset([image(SQUARE), image(SQUARE), image()])
    lines = on_object(toy(nn.Sequential(conv)), dataset)
    assert lines["objects"].tolist() == [1, 1]  # the last image has none
    for name, share in (("regular", 49 / 81), ("offsets", 49 / 81), ("offsets_weighted", 1.0)):
        np.testing.assert_allclose(lines[name], share)


def test_offsets_lead_away_and_back():
    """From the columns 6 to 8 by one, and by more than the object is wide."""
    net = nn.Sequential(layer(1.0), layer(4.0, modulated=False), layer())
    lines = on_object(toy(net), Dataset([image(SQUARE)])).set_index("layer")
    # Moved by one, the columns 6, 7 and 8 sample three, two and one of themselves.
    assert lines.loc["backbone.0", "offsets"] == pytest.approx(7 * (3 + 2 + 1) / 81)
    assert lines.loc["backbone.1", "offsets"] == 0
    assert np.isnan(lines.loc["backbone.1", "offsets_weighted"])
    assert lines.loc["backbone.2", "offsets"] == pytest.approx(49 / 81)
    assert lines["regular"].tolist() == pytest.approx([49 / 81] * 3)


def test_the_table_leaves_out_what_there_is_not():
    net = nn.Sequential(layer(1.0), layer(4.0, modulated=False))
    shares = on_object(toy(net), Dataset([image(SQUARE), image(SQUARE, size=(21, 30))]))
    shares["image"] = ["a", "a", "b", "b"]
    lines = on_object_table(*summarise(shares)).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:4]]
    assert cells[0][:4] == ["backbone.0", "60.5", "51.9", "-8.6 (-8.6 to -8.6)"]
    assert cells[1][:3] == ["backbone.1", "60.5", "0.0"]
    assert cells[1][4:] == ["", ""]
    assert "All 3 intervals" in lines[-1]


def test_an_object_between_positions_counts_by_the_nearest_one():
    """It lies at (11.5, 3.5), and an offset of two pixels brings it onto the object."""
    net = nn.Sequential(nn.Conv2d(3, 3, 8, 8), layer(0.25))
    lines = on_object(toy(net), Dataset([image([13, 4, 15, 6], size=(24, 32))]))
    assert lines["regular"].tolist() == [0]
    assert lines["offsets"].tolist() == pytest.approx([1 / 9])


def test_annotations():
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[2:5, 3:9] = 1
    encoded = rle.encode(mask)
    runs = [3 * 20 + 2, *[3, 17] * 5, 3, 600 - 9 * 20 + 15]
    polygon = [[3, 2, 9, 2, 9, 5, 3, 5]]
    for segmentation in (encoded, dict(size=[20, 30], counts=runs), polygon):
        [found] = annotations_of(image([3, 2, 9, 5], mask=segmentation))
        np.testing.assert_array_equal(found.mask, mask.astype(bool))
    [found] = annotations_of(image([3, 2, 9, 5]))
    np.testing.assert_array_equal(found.mask, mask.astype(bool))
    assert annotations_of(image([3, 2, 9, 5], ignore_flag=1)) == []


def table(gains, layers=1):
    return pd.DataFrame(
        dict(
            layer=f"backbone.{i}",
            image=str(j),
            regular=0.5,
            regular_weighted=0.5,
            offsets=0.5 + gain,
            offsets_weighted=float("nan"),
        )
        for i in range(layers)
        for j, gain in enumerate(gains)
    )


def test_intervals_widen_with_the_number_of_comparisons():
    gains = np.random.default_rng(0).normal(0.1, 0.05, 40)
    widths = []
    for layers in (1, 12):
        summary, comparisons = summarise(table(gains, layers))
        assert comparisons == layers  # without modulation there is one a layer
        line = summary.iloc[0]
        assert line["offsets_gain"] == pytest.approx(gains.mean())
        assert np.isnan(line["offsets_weighted_low"])
        widths.append(line["offsets_high"] - line["offsets_low"])
    error = gains.std() / 40**0.5
    assert widths[0] == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert widths[1] == pytest.approx(2 * 2.87 * error, rel=0.08)  # the quantile of 1 - 0.05 / 24
    assert draw_on_object(summary, comparisons).dtype == np.uint8


def test_refusals():
    with pytest.raises(EngineError, match="at least two"):
        summarise(table([0.1]))
    with pytest.raises(EngineError, match="no annotated objects"):
        on_object(toy(nn.Sequential(layer())), Dataset([image()]))
    with pytest.raises(EngineError, match=r"no deformable layer backbone\.3; there are"):
        on_object(toy(nn.Sequential(layer())), Dataset([image()]), layers=["backbone.3"])
