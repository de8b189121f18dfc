import dcndet.models  # noqa: F401  (registers the backbones)
import pytest
import torch
from mmdet.registry import MODELS

from dcn import LAYERS, LocalDeformKernel2d

NETWORKS = {
    "ResNet50DW": dict(base_channels=8, norm_eval=False),
    "DeformMobileNetV2": dict(widen_factor=0.25),
}
each_network = pytest.mark.parametrize("type", NETWORKS)


def build(type, deform=None, **kwargs):
    return MODELS.build(dict(type=type, deform=deform, _scope_="mmdet", **NETWORKS[type], **kwargs))


def replaced(backbone):
    kinds = tuple(layer.cls for layer in LAYERS.values())
    return [name for name, m in backbone.named_modules() if isinstance(m, kinds)]


def test_every_bottleneck_is_depthwise():
    for width in (1, 2):
        backbone = build("ResNet50DW", width=width)
        convs = [m for m in backbone.modules() if getattr(m, "kernel_size", 0) == (3, 3)]
        assert len(convs) == 16
        assert {m.groups // m.in_channels for m in convs} == {1}
        assert convs[-1].in_channels == 64 * width
        assert backbone(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 256, 2, 2)


@each_network
@pytest.mark.parametrize("conv", ["dconv", "dk_local", "dk_global", "dk_dconv", "condconv"])
def test_starts_as_the_regular_network(type, conv):
    torch.manual_seed(0)
    regular, x = build(type), torch.randn(2, 3, 64, 64)
    ours = build(type, dict(conv=conv, layers=3))
    assert len(replaced(ours)) == 3
    assert not ours.load_state_dict(regular.state_dict(), strict=False).unexpected_keys
    for a, b in zip(regular(x), ours(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    sum(out.square().mean() for out in ours(x)).backward()
    ours.init_weights()
    predictors = ("rotation_conv", "conv_offset", "offset_conv", "fc")
    offsets = [p for n, p in ours.named_parameters() if n.split(".")[-2] in predictors]
    assert len(offsets) == (12 if conv == "dk_dconv" else 6)
    assert not any(p.any() for p in offsets)


def test_parameters_are_named_as_mmdets():
    theirs = MODELS.build(dict(type="mmdet.MobileNetV2", **NETWORKS["DeformMobileNetV2"]))
    ours = build("DeformMobileNetV2")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    theirs.eval()
    ours.eval()
    for a, b in zip(theirs(x), ours(x), strict=True):
        torch.testing.assert_close(a, b)


@each_network
def test_layers_and_stages(type):
    count, stages = (16, 4) if type == "ResNet50DW" else (17, 7)
    settings = dict(conv="dk_local", scope_size=5, rotation_groups=2)
    every = build(type, dict(stages=[True] * stages, **settings))
    assert len(replaced(every)) == count
    layer = next(m for m in every.modules() if isinstance(m, LocalDeformKernel2d))
    assert (layer.scope_size, layer.rotation_groups) == ((5, 5), 2)
    assert replaced(build(type, dict(layers=2, **settings))) == replaced(every)[-2:]
    for wrong in (
        dict(conv="dk", layers=1),
        dict(conv="dk_local"),
        dict(conv="dk_local", layers=99),
        dict(conv="dk_local", stages=[True]),
    ):
        with pytest.raises(ValueError, match=r"^deform: "):
            build(type, wrong)


def test_frozen_stages():
    deform = dict(conv="dk_local", stages=[True] * 4)
    backbone = build("ResNet50DW", deform, frozen_stages=1)
    frozen = {n.split(".")[0] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    regular = build("ResNet50DW", frozen_stages=1)
    assert not any(p.requires_grad for p in regular.layer1.parameters())


@pytest.mark.parametrize("setting", ["depth", "groups", "dcn", "conv_cfg", "width"])
def test_settings_of_resnet_that_resnet50dw_does_not_have(setting):
    with pytest.raises(ValueError, match=setting):
        build("ResNet50DW", **{setting: 0})
