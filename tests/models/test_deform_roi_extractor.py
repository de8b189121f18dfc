import math

import dcndet.models  # noqa: F401  (registers the extractor)
import pytest
import torch
from mmdet.registry import MODELS

ROIS = torch.tensor(
    [[0, 3.0, 4, 40, 50], [1, 0, 0, 250, 180], [0, 10, 10, 12, 13], [1, 30, 20, 190, 150]]
)


def build(pool="align", strides=(4, 8, 16, 32), **kwargs):
    return MODELS.build(
        dict(
            type="DeformRoIExtractor",
            pool=pool,
            out_channels=6,
            featmap_strides=list(strides),
            _scope_="mmdet",
            **kwargs,
        )
    )


def maps(strides=(4, 8, 16, 32), dtype=torch.float32):
    torch.manual_seed(0)
    return tuple(torch.randn(2, 6, 192 // s, 256 // s).to(dtype).requires_grad_() for s in strides)


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (16,)])
@pytest.mark.parametrize("sampling_ratio", [None, 2])
def test_align_is_mmdets_extractor(strides, sampling_ratio):
    theirs = MODELS.build(
        dict(
            type="SingleRoIExtractor",
            roi_layer=dict(
                type="RoIAlign",
                output_size=7,
                sampling_ratio=sampling_ratio or 0,
                use_torchvision=True,  # mmcv's own needs its compiled operators
            ),
            out_channels=6,
            featmap_strides=list(strides),
            _scope_="mmdet",
        )
    )
    feats = maps(strides)
    ours = build(strides=strides, sampling_ratio=sampling_ratio)(feats, ROIS)
    expected = theirs(feats, ROIS)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, feats, grad),
        torch.autograd.grad(expected, feats, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pool", "factor"), [("dpool", 1.0), ("mdpool", 0.5)])
@pytest.mark.parametrize(
    ("deform", "sampling_ratio"),
    [
        (None, None),
        (dict(fc_channels=16, shared_fc=False, per_level=True), 0),  # mmcv's layout
    ],
)
def test_deformable_pooling_starts_as_align(pool, factor, deform, sampling_ratio):
    feats = maps()
    extractor = build(pool, deform=deform, sampling_ratio=sampling_ratio)
    samples = sampling_ratio if sampling_ratio is not None else {"dpool": 4, "mdpool": 2}[pool]
    plain = build(sampling_ratio=samples)
    torch.testing.assert_close(extractor(feats, ROIS), factor * plain(feats, ROIS))


def test_roipool_takes_the_maxima_of_whole_pixels():
    feats = maps()
    pooled = build("roipool")(feats, ROIS)
    # The first RoI, 37×46 pixels, is pooled from the map of stride 4.
    x1, y1, x2, y2 = (math.floor(float(v) / 4 + 0.5) for v in ROIS[0, 1:])
    width, height = max(x2 - x1 + 1, 1) / 7, max(y2 - y1 + 1, 1) / 7
    for i in range(7):
        for j in range(7):
            rows = slice(y1 + math.floor(i * height), y1 + math.ceil((i + 1) * height))
            columns = slice(x1 + math.floor(j * width), x1 + math.ceil((j + 1) * width))
            expected = feats[0][0, :, rows, columns].amax((1, 2))
            torch.testing.assert_close(pooled[0, :, i, j], expected)
    bfloat16 = build("roipool")(tuple(f.bfloat16() for f in feats), ROIS)
    assert bfloat16.dtype == torch.bfloat16


def test_levels_share_a_branch_unless_told_otherwise():
    """Two RoIs that look the same are pooled alike from two maps."""
    torch.manual_seed(0)
    size = torch.tensor([[0, 60.0, 60, 110, 110], [0, 60, 60, 172, 172]])  # of stride 4 and of 8
    flat = tuple(torch.full((1, 6, 192 // s, 256 // s), 0.5) for s in (4, 8, 16, 32))
    for per_level in (False, True):
        extractor = build("mdpool", deform=dict(fc_channels=16, per_level=per_level))
        for parameter in extractor.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        first, second = extractor(flat, size)
        assert torch.allclose(first, second) != per_level
        assert len(extractor.roi_layers) == (4 if per_level else 1)


@pytest.mark.parametrize(
    ("pool", "deform", "count"),
    [
        ("dpool", None, 6 * 49 * 98 + 98),
        ("mdpool", dict(fc_channels=8), 6 * 49 * 8 + 8 + 8 * 8 + 8 + 8 * 147 + 147),
        ("dpool", dict(fc_channels=(5,)), 6 * 49 * 5 + 5 + 5 * 98 + 98),
    ],
)
def test_the_branch_has_the_layers_that_were_asked_for(pool, deform, count):
    assert sum(p.numel() for p in build(pool, deform=deform).parameters()) == count


@pytest.mark.parametrize(
    ("pool", "pack", "deform"),
    [
        ("mdpool", "ModulatedDeformRoIPoolPack", dict(shared_fc=False)),
        ("dpool", "DeformRoIPoolPack", dict(fc_channels=1024)),
    ],
)
def test_mmdets_pooling_weights_load(pool, pack, deform):
    layer = dict(type=pack, output_size=7, output_channels=6)
    theirs = MODELS.build(
        dict(
            type="GenericRoIExtractor",
            roi_layer=layer,
            out_channels=6,
            featmap_strides=[4, 8, 16, 32],
            _scope_="mmdet",
        )
    )
    ours = build(pool, deform=dict(deform, per_level=True))
    ours.load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize("pool", ["roipool", "align", "dpool", "mdpool"])
def test_no_rois_keeps_everything_in_the_graph(pool):
    feats = maps()
    extractor = build(pool, deform=dict(fc_channels=16))
    out = extractor(feats, ROIS[:0])
    assert out.shape == (0, 6, 7, 7)
    out.sum().backward()
    for tensor in (*feats, *extractor.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() == 0


def test_coordinates_keep_their_precision_in_16_bits():
    feats = maps(dtype=torch.bfloat16)
    rois = ROIS + torch.tensor([0, 0.3, 0.3, 0.3, 0.3])  # lost if cast to bfloat16
    out = build()(feats, rois)
    assert out.dtype == torch.bfloat16
    expected = build()(tuple(f.float() for f in feats), rois)
    torch.testing.assert_close(out.float(), expected, rtol=2**-8, atol=1e-6)


def test_pool_alone_switches():
    assert list(build("align", deform=dict(fc_channels=16)).parameters()) == []


def test_error_names_the_pool():
    with pytest.raises(ValueError, match=r"pool.*max"):
        build("max")
