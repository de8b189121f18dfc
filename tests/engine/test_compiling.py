"""Backbones compile without a graph break, and a compiled run is the run that it would be."""

import pytest
import torch
from dcndet.models.engine import EngineError, merge_options
from dcndet.models.engine.compiling import compile_maps
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn
from torch._dynamo.utils import counters

from tests.engine.test_offsets import start
from tests.engine.toy import Toy, train

SHALLOW = dict(num_stages=1, strides=(2,), dilations=(1,), out_indices=(0,))
RESNET = dict(type="DeformResNet", depth=18, base_channels=8, **SHALLOW)
DEPTHWISE = dict(type="ResNet50DW", base_channels=8, frozen_stages=0, **SHALLOW)
LEVEL = dict(channels=8, depths=(1,), groups=(2,), out_indices=(0,), drop_path_rate=0.0)
BACKBONES = {
    "mdconv": RESNET | dict(deform=dict(layers=4)),
    "dconv": RESNET | dict(deform=dict(layers=4, conv="dconv"), with_cp=True),
    "conv_offset": RESNET | dict(deform=dict(layers=1, conv="conv_offset")),
    "condconv": RESNET | dict(deform=dict(layers=1, conv="condconv")),
    "dk_local": DEPTHWISE | dict(deform=dict(layers=1, conv="dk_local", scope_size=4)),
    "dk_global": DEPTHWISE | dict(deform=dict(layers=1, conv="dk_global", scope_size=4)),
    "dk_dconv": DEPTHWISE | dict(deform=dict(layers=1, conv="dk_dconv", scope_size=4)),
    "dcnv3": dict(type="InternImage", **LEVEL),
    "dcnv4": dict(type="FlashInternImage", **LEVEL),
    "timm": dict(
        type="TimmBackbone",
        model_name="efficientnet_lite0",
        out_indices=(0, 1),
        deform=dict(layers=2),
    ),
    "mobilenet": dict(type="DeformMobileNetV2", widen_factor=0.1, deform=dict(layers=2)),
}


@pytest.fixture(autouse=True)
def _compiler():
    init_default_scope("mmdet")
    torch.compiler.reset()
    counters.clear()


QUICK = ("mdconv", "dk_local", "dcnv4")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in BACKBONES]
)
def test_a_backbone_has_no_graph_break_and_does_not_recompile_for_every_size(name):
    torch.manual_seed(0)
    backbone = MODELS.build(BACKBONES[name]).to(memory_format=torch.channels_last)
    backbone.train()
    for part, parameter in backbone.named_parameters():
        if "offset" in part or "rotation" in part:  # at zero, samples would not move
            nn.init.normal_(parameter, std=0.1)

    def results(forward, x):
        backbone.zero_grad()
        out = forward(x)
        sum(map(torch.norm, out)).backward()
        return out, [p.grad for p in backbone.parameters() if p.requires_grad]

    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((64, 96), (96, 64), (128, 160)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(results(compiled, x), results(backbone, x), rtol=1e-3, atol=1e-3)
    assert counters["stats"]["unique_graphs"] <= 2  # some differ in landscape and portrait


def test_a_compiled_run_has_the_same_losses_and_names(tmp_path):
    expected, _ = train(tmp_path / "eager", validate=True)
    options = dict(compile=dict(backend="aot_eager"))
    found, _ = train(tmp_path / "compiled", validate=True, cfg=options)
    assert found == pytest.approx(expected, rel=1e-5)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    saved = torch.load(tmp_path / "compiled" / "epoch_3.pth")["state_dict"]
    assert saved.keys() == Toy().state_dict().keys()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "compile: expected True, False or a dict, got 3"),
        (dict(backnd="eager"), "compile: .*backnd"),
        (dict(backend="none"), "compile: .*none"),
    ],
)
def test_what_cannot_be_compiled_is_refused(value, message, tmp_path):
    with pytest.raises(EngineError, match=message):
        train(tmp_path, cfg=dict(compile=value))
    with pytest.raises(EngineError, match="compile: Linear has no backbone"):
        compile_maps(nn.Linear(1, 1))


def test_a_misspelt_option_is_refused():
    with pytest.raises(EngineError, match=r"compile.dynamc; did you mean compile.dynamic\?"):
        merge_options(Config(dict(compile=None)), {"compile.dynamc": True})


def test_offsets_of_a_compiled_layer_are_measured():
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = MODELS.build(RESNET | dict(deform=dict(layers=1)))
    model.forward = lambda x: model.backbone(x)
    compile_maps(model, backend="eager")
    hook, runner = start(model, interval=2)
    for _ in range(4):
        runner.step(hook, torch.randn(1, 3, 32, 32))
    assert [step for step, _ in runner.logged] == [2, 4]
    assert all(found for _, found in runner.logged)
    assert counters["stats"]["unique_graphs"] == 1
