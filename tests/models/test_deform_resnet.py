import dcndet.models  # noqa: F401  (registers the backbones)
import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from torch import nn

from dcn import DeformConv2d


def build(depth=50, deform=None, type="DeformResNet", **kwargs):
    return MODELS.build(
        dict(type=type, depth=depth, base_channels=8, deform=deform, _scope_="mmdet", **kwargs)
    )


def deformed(backbone):
    return [name for name, m in backbone.named_modules() if isinstance(m, DeformConv2d)]


@pytest.mark.parametrize(
    ("depth", "layers", "first"),
    [
        (50, 3, "layer4.0.conv2"),
        (50, 9, "layer3.0.conv2"),
        (50, 12, "layer2.1.conv2"),
        (50, 13, "layer2.0.conv2"),
        (18, 1, "layer4.1.conv2"),
        (18, 12, "layer2.0.conv1"),
        (34, 26, "layer2.0.conv1"),
        (101, 30, "layer2.0.conv2"),
    ],
)
def test_layers_are_counted_from_the_output(depth, layers, first):
    names = deformed(build(depth, dict(layers=layers)))
    assert len(names) == layers
    assert names[0] == first


def test_no_layers_is_the_regular_network():
    assert deformed(build(50, dict(layers=0))) == deformed(build(50)) == []


@pytest.mark.parametrize(("depth", "count"), [(18, 12), (34, 26), (50, 13), (101, 30)])
def test_stages(depth, count):
    names = deformed(build(depth, dict(stages=(False, True, True, True))))
    assert len(names) == count
    assert not [name for name in names if name.startswith("layer1")]


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("dc5", [False, True])
def test_geometry_is_the_regular_layers(depth, style, dc5):
    """Zero offsets and a plain (DCNv1) kernel: the deformable network is the regular one."""
    geometry = dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)) if dc5 else {}
    kwargs = dict(style=style, **geometry)
    regular = build(depth, **kwargs)
    ours = build(depth, dict(layers=12, modulated=False), **kwargs)
    missing, unexpected = ours.load_state_dict(regular.state_dict(), strict=False)
    assert unexpected == []
    assert all("conv_offset" in key for key in missing)
    regular.eval()
    ours.eval()
    x = torch.randn(2, 3, 64, 96)
    for a, b in zip(regular(x), ours(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_resnext_keeps_its_groups():
    backbone = build(50, dict(layers=13, deform_groups=2), "DeformResNeXt", groups=4, base_width=8)
    convs = [m for m in backbone.modules() if isinstance(m, DeformConv2d)]
    assert len(convs) == 13
    assert {(m.groups, m.deform_groups) for m in convs} == {(4, 2)}
    assert [tuple(f.shape) for f in backbone(torch.randn(2, 3, 32, 32))][-1] == (2, 256, 1, 1)


def test_frozen_stages_norm_and_checkpointing():
    backbone = build(
        50,
        dict(layers=13),
        frozen_stages=2,
        norm_cfg=dict(type="GN", num_groups=2),
        with_cp=True,
    )
    backbone.train()
    assert not any(p.requires_grad for p in backbone.layer2.parameters())
    assert all(p.requires_grad for p in backbone.layer3.parameters())
    # A deformable layer of a frozen stage is frozen too.
    assert isinstance(backbone.layer2[0].conv2, DeformConv2d)
    backbone(torch.randn(1, 3, 64, 64, requires_grad=True))[-1].sum().backward()
    assert backbone.layer3[0].conv2.conv_offset.weight.grad.abs().sum() > 0
    assert backbone.layer2[0].conv2.conv_offset.weight.grad is None


def test_init_weights_keeps_offsets_at_zero_and_initialises_the_rest():
    backbone = build(50, dict(layers=13))
    conv = backbone.layer3[0].conv2
    before = conv.weight.clone()
    backbone.init_weights()
    assert conv.conv_offset.weight.abs().max() == conv.conv_offset.bias.abs().max() == 0
    assert not torch.equal(before, conv.weight)  # Kaiming, as the regular layers


def test_pretrained_weights_load_from_a_local_file(tmp_path):
    source = ResNet(18, base_channels=8, init_cfg=None)
    path = tmp_path / "resnet.pth"
    torch.save(source.state_dict(), path)
    init = dict(type="Pretrained", checkpoint=str(path))
    backbone = build(18, dict(layers=12), init_cfg=init)
    backbone.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[name]), name


def test_torchvision_weights_load(monkeypatch):
    """torchvision://resnet50 names its weights as this backbone does; no download in a test."""
    import torchvision

    state = torchvision.models.resnet50(weights=None).state_dict()
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: dict(state))
    init = dict(type="Pretrained", checkpoint="torchvision://resnet50")
    backbone = MODELS.build(
        dict(type="DeformResNet", depth=50, deform=dict(layers=12), init_cfg=init, _scope_="mmdet")
    )
    backbone.init_weights()
    loaded = backbone.state_dict()
    for name, value in state.items():
        if not name.startswith("fc."):
            assert torch.equal(value, loaded[name]), name


@pytest.mark.parametrize(
    ("deform", "message"),
    [
        (dict(), "layers or stages"),
        (dict(layers=17), "17.*16"),
        (dict(layers=-1), "-1"),
        (dict(stages=(True, True)), "4 stages"),
        (dict(layers=3, modulate=True), "modulate"),
        (dict(layers=3, deform_groups=7), "deform_groups"),
    ],
)
def test_errors_name_the_setting(deform, message):
    with pytest.raises(ValueError, match=message):
        build(50, deform)


def test_only_a_plain_convolution_is_replaced():
    with pytest.raises(ValueError, match="ConvWS2d"):
        build(18, dict(layers=1), conv_cfg=dict(type="ConvWS"))


def test_a_regular_conv_is_gone():
    backbone = build(18, dict(layers=16))
    blocks = [getattr(backbone, name) for name in backbone.res_layers]
    convs = [m for layer in blocks for m in layer.modules() if type(m) is nn.Conv2d]
    assert all(m.kernel_size == (1, 1) or m.out_channels == 27 for m in convs)
