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
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_align_is_mmdets_extractor(strides, sampling_ratio):
    theirs = MODELS.build(
        dict(
            type="SingleRoIExtractor",
            roi_layer=dict(
                type="RoIAlign",
                output_size=7,
                sampling_ratio=sampling_ratio,
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
@pytest.mark.parametrize("shared_fc", [True, False])
def test_deformable_pooling_starts_as_align(pool, factor, shared_fc):
    feats = maps()
    extractor = build(pool, deform=dict(fc_channels=16, shared_fc=shared_fc))
    torch.testing.assert_close(extractor(feats, ROIS), factor * build()(feats, ROIS))


def test_mmdets_pooling_weights_load():
    layer = dict(type="ModulatedDeformRoIPoolPack", output_size=7, output_channels=6)
    theirs = MODELS.build(
        dict(
            type="GenericRoIExtractor",
            roi_layer=layer,
            out_channels=6,
            featmap_strides=[4, 8, 16, 32],
            _scope_="mmdet",
        )
    )
    build("mdpool", deform=dict(shared_fc=False)).load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize("pool", ["align", "dpool", "mdpool"])
def test_no_rois_keeps_everything_in_the_graph(pool):
    feats = maps()
    extractor = build(pool, deform=dict(fc_channels=16) if pool != "align" else None)
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
