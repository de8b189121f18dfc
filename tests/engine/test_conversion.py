"""Converted weights compute what they computed in the library that they come from."""

import os
import re
import runpy
import sys
from pathlib import Path

import dcndet.models  # noqa: F401
import mmcv.ops
import pytest
import torch
import torchvision
from dcndet.models.engine import load_weights
from dcndet.models.engine.conversion import convert_file, convert_state
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from tests.models.test_mmdet_parity import scramble

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "dcnv2"


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


def build(config, **backbone):
    config = get_config(config) if str(config).startswith("mmdet::") else Config.fromfile(config)
    config.model.backbone.init_cfg = None
    config.model.backbone.update(backbone)
    torch.manual_seed(0)
    return MODELS.build(config.model).eval()


def loaded(state, model):
    """`model` with all of the converted weights, every key and shape of which has to match."""
    load_weights(model, {"state_dict": state}, "converted", strict=True)
    return model


def picture():
    torch.manual_seed(1)
    return torch.randn(2, 3, 96, 128)


def close(ours, theirs):
    assert len(ours) == len(theirs)
    for actual, expected in zip(ours, theirs, strict=True):
        assert expected.abs().max() > 0.05
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * scale)


def convert(*args):
    """Run the tool in this process; what it exits with, or None."""
    argv, sys.argv = sys.argv, ["convert_weights.py", *map(str, args)]
    try:
        runpy.run_path(str(ROOT / "tools" / "convert_weights.py"), run_name="__main__")
    except SystemExit as exit:
        return exit.code
    finally:
        sys.argv = argv


# ---------------------------------------------------------------------------------- mmdetection


@pytest.fixture
def mmcv_by_torchvision(monkeypatch):
    """mmcv's deformable convolutions without its compiled operators."""
    conv = torchvision.ops.deform_conv2d
    monkeypatch.setattr(
        mmcv.ops.modulated_deform_conv,
        "modulated_deform_conv2d",
        lambda x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups: (
            conv(x, offset, weight, bias, stride, padding, dilation, mask)
        ),
    )
    monkeypatch.setattr(
        mmcv.ops.deform_conv,
        "deform_conv2d",
        lambda x, offset, weight, stride, padding, dilation, *_: conv(
            x, offset, weight, None, stride, padding, dilation
        ),
    )


DEFORMABLE = [
    ("dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py", dict()),
    ("dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco.py", dict(deform_groups=4)),
    ("dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py", dict(modulated=False)),
]


def of_mmdetection_2(state):
    return {key.replace("conv2.conv_offset.", "conv2_offset."): v for key, v in state.items()}


def of_mmdetection_1(state):
    """Heads beside the backbone; class 0 is the background, and boxes and masks have it too."""
    old = {}
    for key, value in of_mmdetection_2(state).items():
        if "fc_cls" in key:
            value = torch.cat([value[-1:], value[:-1]])
        elif "fc_reg" in key:
            value = torch.cat([torch.full_like(value[:4], 9.0), value])
        elif "conv_logits" in key:
            value = torch.cat([torch.full_like(value[:1], 9.0), value])
        old[key.removeprefix("roi_head.")] = value
    return old


@pytest.mark.parametrize("older", [of_mmdetection_2, of_mmdetection_1])
@pytest.mark.parametrize(("config", "deform"), DEFORMABLE)
def test_deformable_detectors_of_mmdetection(config, deform, older, mmcv_by_torchvision):
    theirs = build(f"mmdet::{config}")
    scramble(theirs)
    state = theirs.state_dict()
    old = older(state)
    assert sum("conv2_offset" in key for key in old) == 2 * 13

    done = convert_state(old, "old.pth")
    assert done.left_out == []
    assert done.renamed == 26 if older is of_mmdetection_2 else 26 + 8
    assert done.state.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(done.state[key], value), key

    config = CONFIGS / "faster-rcnn_r50_fpn_1x_coco.py"
    ours = build(config, deform=dict(stages=(False, True, True, True), **deform))
    with torch.no_grad():
        close(loaded(done.state, ours).backbone(picture()), theirs.backbone(picture()))


def test_mask_rcnn_of_mmdetection_1_and_heads_without_classes():
    state = build("mmdet::_base_/models/mask-rcnn_r50_fpn.py").state_dict()
    done = convert_state(of_mmdetection_1(state), "old.pth")
    assert done.state.keys() == state.keys()
    assert all(torch.equal(done.state[key], value) for key, value in state.items())

    agnostic = dict(state)
    agnostic["roi_head.bbox_head.fc_reg.bias"] = torch.arange(4.0)
    old = {key.removeprefix("roi_head."): value for key, value in agnostic.items()}
    done = convert_state(old, "old.pth")
    assert done.state["roi_head.bbox_head.fc_reg.bias"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("key", ["CLASSES", "dataset_meta"])
def test_class_names_are_kept(key, tmp_path):
    state = {"backbone.layer1.0.conv1.weight": torch.ones(1)}
    meta = {"CLASSES": ("cat", "dog"), "dataset_meta": {"classes": ("cat", "dog")}}
    torch.save({"state_dict": state, "meta": {key: meta[key], "config": "x"}}, tmp_path / "a.pth")
    convert_file(tmp_path / "a.pth", tmp_path / "b.pth")
    written = torch.load(tmp_path / "b.pth", weights_only=True)
    assert written["meta"] == {"dataset_meta": {"classes": ("cat", "dog")}}


# ------------------------------------------------------------------------------------- the file


def test_converted_file_loads_as_load_from_and_init_cfg(tmp_path, capsys):
    state = build(CONFIGS / "faster-rcnn_r50_fpn_1x_coco.py").state_dict()
    old = {f"module.{key}": value for key, value in of_mmdetection_1(state).items()}
    torch.save({"state_dict": {**old, "module.epoch": 3}}, tmp_path / "old.pth")
    out = tmp_path / "new" / "weights.pth"
    assert convert(tmp_path / "old.pth", out) is None
    assert capsys.readouterr().out == (
        f"{out}: {len(state)} tensors of mmdetection 1, 8 renamed; left out: epoch\n"
    )
    assert os.listdir(out.parent) == ["weights.pth"]

    torch.manual_seed(2)
    config = Config.fromfile(CONFIGS / "faster-rcnn_r50_fpn_1x_coco.py").model.backbone
    config.init_cfg = dict(type="Pretrained", prefix="backbone.", checkpoint=str(out))
    backbone = MODELS.build(config)
    assert not torch.equal(backbone.conv1.weight, state["backbone.conv1.weight"])
    backbone.init_weights()
    assert torch.equal(backbone.conv1.weight, state["backbone.conv1.weight"])


def test_an_existing_file_is_replaced_only_when_told(tmp_path):
    source, out = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"backbone.layer1.0.conv1.weight": torch.ones(1)}, source)
    out.write_text("mine")
    assert convert(source, out) == f"error: {out} exists; --overwrite replaces it"
    assert out.read_text() == "mine"
    assert convert(source, out, "--overwrite") is None
    assert torch.load(out, weights_only=True)["state_dict"].keys() == torch.load(source).keys()


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    source, out = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"backbone.layer1.0.conv1.weight": torch.ones(1)}, source)
    out.write_text("mine")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert convert(source, out, "--overwrite") == "error: No space left on device"
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.pth"]
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"encoder.weight": torch.ones(1)},
            r"1 keys \(encoder.weight, ...\), which are no ResNet's",
        ),
        ({"state_dict": [1]}, "holds no weights by name"),
        ({}, "0 keys"),
        (
            {"bbox_head.fc_cls.weight": torch.ones(3), "bbox_head.fc_reg.bias": torch.ones(6)},
            r"bbox_head.fc_reg.bias has the shape \(6,\), which it cannot have in mmdetection 1",
        ),
    ],
)
def test_other_files_are_refused_by_name(content, message, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    error = convert(tmp_path / "other.pth", tmp_path / "out.pth")
    assert re.match(rf"error: .*other\.pth.*{message}", error)
    assert "\n" not in error
    assert os.listdir(tmp_path) == ["other.pth"]
