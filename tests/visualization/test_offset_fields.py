import numpy as np
import pytest
import torch
from dcndet.models.engine import EngineError
from dcndet.models.visualization import draw_offset_fields, offset_fields
from torch import nn

from dcn import DeformConv2d
from tests.visualization.toy import toy


def backbone():
    """One layer that moves the left by (3, 4) of its pixels, whose modulation is 0.5 or 0.2."""
    net = nn.Sequential(
        nn.Conv2d(3, 3, 4, 4, bias=False),
        DeformConv2d(3, 3, 3, stride=2, padding=1),
        DeformConv2d(3, 3, 3, padding=1, modulated=False),
    )
    offset = net[1].conv_offset
    with torch.no_grad():
        offset.bias[:18] = torch.tensor([3.0, 4.0]).repeat(9)
        offset.bias[18:24] = np.log(0.2 / 0.8)
    return net


def test_lengths_are_in_pixels_of_the_image():
    detector = toy(backbone(), scale=(2, 1), divisor=32)
    image, fields = offset_fields(detector, (60, 40))
    assert image.shape == (60, 40, 3)
    assert [*fields] == ["backbone.1", "backbone.2"]
    field = fields["backbone.1"]
    # A pixel of the map is 4 high and, as the input is twice as wide as the image, 2 wide.
    assert field.length.shape == (64 // 8, 96 // 8)
    np.testing.assert_allclose(field.length, np.hypot(3 * 4, 4 * 2), rtol=1e-5)
    np.testing.assert_allclose(field.mask, (6 * 0.2 + 3 * 0.5) / 9, rtol=1e-5)
    assert field.extent == (-1.5, 46.5, 61.5, -2.5)  # of pixels 8 high around 1.5, 9.5, ...
    assert fields["backbone.2"].mask is None
    assert not fields["backbone.2"].length.any()
    [only] = offset_fields(detector, (60, 40), ["backbone.2"])[1]
    assert only == "backbone.2"
    drawn = draw_offset_fields(image, fields)
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] > drawn.shape[0]  # three pictures in a row


def test_only_convolutions_have_a_field():
    with pytest.raises(EngineError, match=r"no deformable layer backbone\.0; there are backbone"):
        offset_fields(toy(backbone()), (60, 40), ["backbone.0"])
