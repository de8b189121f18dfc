"""Converted weights compute what they computed in the library that they come from."""

import math
import os
import pickle
import re
from pathlib import Path

import dcndet.models  # noqa: F401
import mmcv.ops
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from dcndet.models.engine import CheckpointError, load_weights
from dcndet.models.engine.conversion import convert_file, convert_state
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from torch import nn

from tests.command import run_tool
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
        scale = expected.abs().max().item()
        assert scale > 0.01
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * scale)


def convert(*args):
    return run_tool("convert_weights.py", *args)


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


# ----------------------------------------------------------------------------------- detectron2


class FrozenBatchNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("weight", torch.rand(channels) + 0.5)
        self.register_buffer("bias", 0.1 * torch.randn(channels))
        self.register_buffer("running_mean", 0.1 * torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class NormedConv(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, bias=False, **kwargs)
        self.norm = FrozenBatchNorm(self.out_channels)

    def forward(self, x, offset=None, mask=None):
        if offset is None:
            return self.norm(super().forward(x))
        size = (self.stride, self.padding, self.dilation)
        return self.norm(
            torchvision.ops.deform_conv2d(x, offset, self.weight, None, *size, mask=mask)
        )


class Bottleneck(nn.Module):
    """DeformBottleneckBlock, or BottleneckBlock where `offsets` is 0."""

    def __init__(self, channels, width, stride, stride_in_1x1, offsets):
        super().__init__()
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = None
        if channels != 4 * width:
            self.shortcut = NormedConv(channels, 4 * width, 1, stride)
        self.conv1 = NormedConv(channels, width, 1, stride_1x1)
        self.conv2_offset = None
        if offsets:
            self.conv2_offset = nn.Conv2d(width, offsets, 3, stride_3x3, 1)
            nn.init.normal_(self.conv2_offset.weight, std=0.05)
        self.conv2 = NormedConv(width, width, 3, stride_3x3, 1)
        self.conv3 = NormedConv(width, 4 * width, 1)

    def forward(self, x):
        out = F.relu(self.conv1(x))
        if self.conv2_offset is None:
            out = self.conv2(out)
        elif self.conv2_offset.out_channels % 27 == 0:
            offset_x, offset_y, mask = self.conv2_offset(out).chunk(3, dim=1)
            out = self.conv2(out, torch.cat((offset_x, offset_y), dim=1), mask.sigmoid())
        else:
            out = self.conv2(out, self.conv2_offset(out))
        out = self.conv3(F.relu(out))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


def modules(**named):
    return nn.ModuleDict(named)


class MaskRCNN(nn.Module):
    """detectron2's Mask R-CNN, ResNet-50 with an FPN: its modules' names and what they compute."""

    def __init__(self, stride_in_1x1, offsets):
        super().__init__()
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        body, channels = modules(stem=modules(conv1=NormedConv(3, 64, 7, 2, 3))), 64
        for i, blocks in enumerate((3, 4, 6, 3)):
            stage = []
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                deformable = offsets if i > 0 else 0
                stage.append(Bottleneck(channels, 64 << i, stride, stride_in_1x1, deformable))
                channels = 256 << i
            body[f"res{i + 2}"] = nn.Sequential(*stage)
        self.backbone = modules(bottom_up=body)
        for i in range(4):
            self.backbone[f"fpn_lateral{i + 2}"] = nn.Conv2d(256 << i, 256, 1)
            self.backbone[f"fpn_output{i + 2}"] = nn.Conv2d(256, 256, 3, padding=1)
        rpn = modules(
            conv=nn.Conv2d(256, 256, 3, padding=1),
            objectness_logits=nn.Conv2d(256, 3, 1),
            anchor_deltas=nn.Conv2d(256, 12, 1),
        )
        self.proposal_generator = modules(rpn_head=rpn)
        masks = {f"mask_fcn{i + 1}": nn.Conv2d(256, 256, 3, padding=1) for i in range(4)}
        masks["deconv"] = nn.ConvTranspose2d(256, 256, 2, 2)
        self.roi_heads = modules(
            box_head=modules(fc1=nn.Linear(256 * 49, 1024), fc2=nn.Linear(1024, 1024)),
            box_predictor=modules(cls_score=nn.Linear(1024, 81), bbox_pred=nn.Linear(1024, 320)),
            mask_head=modules(**masks, predictor=nn.Conv2d(256, 80, 1)),
        )

    def maps(self, x):
        body = self.backbone["bottom_up"]
        x = F.max_pool2d(F.relu(body["stem"]["conv1"](x)), 3, 2, 1)
        inner = []
        for i in range(2, 6):
            x = body[f"res{i}"](x)
            inner.append(self.backbone[f"fpn_lateral{i}"](x))
        for i in (2, 1, 0):
            inner[i] = inner[i] + F.interpolate(inner[i + 1], scale_factor=2, mode="nearest")
        maps = [self.backbone[f"fpn_output{i + 2}"](x) for i, x in enumerate(inner)]
        return [*maps, F.max_pool2d(maps[-1], 1, 2)]

    def proposals(self, maps):
        head = self.proposal_generator["rpn_head"]
        hidden = [F.relu(head["conv"](x)) for x in maps]
        return [[head[name](x) for x in hidden] for name in ("objectness_logits", "anchor_deltas")]

    def boxes(self, pooled):
        head, predictor = self.roi_heads["box_head"], self.roi_heads["box_predictor"]
        x = F.relu(head["fc2"](F.relu(head["fc1"](pooled.flatten(1)))))
        return predictor["cls_score"](x), predictor["bbox_pred"](x)

    def masks(self, x):
        head = self.roi_heads["mask_head"]
        for i in range(4):
            x = F.relu(head[f"mask_fcn{i + 1}"](x))
        return head["predictor"](F.relu(head["deconv"](x)))


# Of detectron2's published checkpoints.
PUBLISHED = """
backbone.bottom_up.stem.conv1.weight
backbone.bottom_up.stem.conv1.norm.running_var
backbone.bottom_up.res2.0.shortcut.weight
backbone.bottom_up.res2.0.shortcut.norm.bias
backbone.bottom_up.res2.0.conv1.norm.weight
backbone.bottom_up.res3.0.conv2.weight
backbone.bottom_up.res3.0.conv2.norm.running_mean
backbone.bottom_up.res3.0.conv2_offset.weight
backbone.bottom_up.res5.2.conv2_offset.bias
backbone.fpn_lateral2.weight
backbone.fpn_output5.bias
proposal_generator.rpn_head.conv.weight
proposal_generator.rpn_head.objectness_logits.weight
proposal_generator.rpn_head.anchor_deltas.bias
roi_heads.box_head.fc1.weight
roi_heads.box_head.fc2.bias
roi_heads.box_predictor.cls_score.weight
roi_heads.box_predictor.bbox_pred.bias
roi_heads.mask_head.mask_fcn1.weight
roi_heads.mask_head.deconv.weight
roi_heads.mask_head.predictor.bias
"""


@pytest.mark.parametrize(
    ("stride_in_1x1", "offsets", "deform"),
    [
        (True, 27, dict()),
        (True, 2 * 27, dict(deform_groups=2)),
        (False, 18, dict(modulated=False)),
    ],
)
def test_mask_rcnn_of_detectron2(stride_in_1x1, offsets, deform, tmp_path):
    torch.manual_seed(0)
    theirs = MaskRCNN(stride_in_1x1, offsets).eval()
    state = theirs.state_dict()
    assert set(PUBLISHED.split()) <= state.keys()
    arrays = {key: value.numpy() for key, value in state.items()}
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), "f4")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "d2"}))
    done = convert_file(tmp_path / "model.pkl", tmp_path / "model.pth")
    assert done.library == "detectron2"
    assert done.left_out == ["pixel_mean", "proposal_generator.anchor_generator.cell_anchors.0"]
    assert done.renamed == len(state) - 1

    ours = build(
        "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
        type="DeformResNet",
        style="caffe" if stride_in_1x1 else "pytorch",
        deform=dict(stages=(False, True, True, True), **deform),
    )
    loaded(torch.load(tmp_path / "model.pth", weights_only=True)["state_dict"], ours)
    with torch.no_grad():
        maps = theirs.maps(picture())
        close(ours.neck(ours.backbone(picture())), maps)
        for actual, expected in zip(ours.rpn_head(maps), theirs.proposals(maps), strict=True):
            close(actual, expected)
        pooled = torch.randn(5, 256, 7, 7)
        close(ours.roi_head.bbox_head(pooled), theirs.boxes(pooled))
        pooled = torch.randn(5, 256, 14, 14)
        close([ours.roi_head.mask_head(pooled)], [theirs.masks(pooled)])


def anchors_of_detectron2(sizes):
    """At (0, 0): for each size, for each height / width."""
    anchors = []
    for size in sizes:
        for ratio in (0.5, 1.0, 2.0):
            width, height = size / ratio**0.5, size * ratio**0.5
            anchors.append((-width / 2, -height / 2, width / 2, height / 2))
    return torch.tensor(anchors)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ("faster-rcnn_r50_fpn_1x_coco.py", [[32], [64], [128], [256], [512]]),
        ("faster-rcnn_r50_dc5_1x_coco.py", [[32, 64, 128, 256, 512]]),
    ],
)
def test_anchors_of_detectron2_keep_their_predictions(config, sizes):
    generator = build(CONFIGS / config).rpn_head.prior_generator
    count = 3 * len(sizes[0])
    rpn = "proposal_generator.rpn_head."
    state = {
        "backbone.stem.conv1.weight": torch.ones(1),
        f"{rpn}objectness_logits.bias": torch.arange(count),
        f"{rpn}objectness_logits.weight": torch.arange(count * 2).reshape(count, 2, 1, 1),
        f"{rpn}anchor_deltas.bias": torch.arange(count * 4),
    }
    state = convert_state(state, "model").state
    order = state["rpn_head.rpn_cls.bias"]
    for ours, theirs in zip(generator.base_anchors, map(anchors_of_detectron2, sizes), strict=True):
        torch.testing.assert_close(ours, theirs[order])
    assert torch.equal(state["rpn_head.rpn_cls.weight"][:, 0, 0, 0], 2 * order)
    assert torch.equal(state["rpn_head.rpn_reg.bias"].view(-1, 4)[:, 1], 4 * order + 1)


def test_boxes_of_detectron2_mean_the_same():
    """Box2BoxTransform.apply_deltas with the weights of the RPN and of the box head."""
    model = build(CONFIGS / "faster-rcnn_r50_fpn_1x_coco.py")
    torch.manual_seed(3)
    boxes = 100 * torch.rand(50, 4)
    boxes[:, 2:] += boxes[:, :2] + 1
    deltas = 20 * torch.randn(50, 4)  # some beyond the largest width, where both stop
    deltas[:, 2:].clamp_(min=-4)  # mmdet stops at a 63rd of the width as well
    size = boxes[:, 2:] - boxes[:, :2]
    center = boxes[:, :2] + 0.5 * size
    for coder, weights in (
        (model.rpn_head.bbox_coder, (1.0, 1.0, 1.0, 1.0)),
        (model.roi_head.bbox_head.bbox_coder, (10.0, 10.0, 5.0, 5.0)),
    ):
        scaled = deltas / torch.tensor(weights)
        moved = center + scaled[:, :2] * size
        grown = size * scaled[:, 2:].clamp(max=math.log(1000 / 16)).exp()
        expected = torch.cat((moved - 0.5 * grown, moved + 0.5 * grown), dim=1)
        torch.testing.assert_close(coder.decode(boxes, deltas), expected)


def test_classifier_of_detectron2():
    state = {
        "stem.conv1.weight": torch.ones(1),
        "res2.0.shortcut.norm.weight": torch.ones(2),
        "res5.2.conv3.norm.bias": torch.ones(3),
        "linear.weight": torch.ones(4),
    }
    done = convert_state(state, "R-50.pkl")
    assert {key: len(value) for key, value in done.state.items()} == {
        "backbone.conv1.weight": 1,
        "backbone.layer1.0.downsample.1.weight": 2,
        "backbone.layer4.2.bn3.bias": 3,
    }
    assert done.left_out == ["linear.weight"]


# ----------------------------------------------------------------------------------- torchvision


def randomise(model):
    """Statistics and predictions as of a model that was trained."""
    torch.manual_seed(4)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "type", "backbone"),
    [
        ("resnet50", "DeformResNet", dict(depth=50)),
        ("resnet18", "DeformResNet", dict(depth=18)),
        ("resnext50_32x4d", "DeformResNeXt", dict(depth=50, groups=32, base_width=4)),
    ],
)
@torch.no_grad()
def test_resnets_of_torchvision(name, type, backbone):
    theirs = randomise(torchvision.models.get_model(name, weights=None))
    done = convert_state(theirs.state_dict(), name)
    assert done.left_out == ["fc.weight", "fc.bias"]
    ours = MODELS.build(dict(type=type, **backbone))
    ours.eval()
    loaded({key.removeprefix("backbone."): value for key, value in done.state.items()}, ours)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(picture()))))
    stages = [x := getattr(theirs, f"layer{i}")(x) for i in range(1, 5)]
    close(ours(picture()), stages)


def of_torchvision_0_12(state):
    """Names before Conv2dNormActivation."""
    old = {}
    for key, value in state.items():
        key = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", key)
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        key = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)
        old[key] = value
    return old


# COCO's ids, which run to 90, of its 80 classes.
UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
KEPT = [i for i in range(1, 91) if i not in UNUSED]


@pytest.mark.parametrize("names", [dict, of_torchvision_0_12])
@torch.no_grad()
def test_mask_rcnn_of_torchvision(names):
    theirs = randomise(
        torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    )
    done = convert_state(names(theirs.state_dict()), "maskrcnn")
    assert done.left_out == []
    ours = build("mmdet::_base_/models/mask-rcnn_r50_fpn.py", type="DeformResNet")
    loaded(done.state, ours)

    maps = list(theirs.backbone(picture()).values())
    close(ours.neck(ours.backbone(picture())), maps)
    for actual, expected in zip(ours.rpn_head(maps), theirs.rpn.head(maps), strict=True):
        close(actual, expected)
    pooled = torch.randn(5, 256, 7, 7)
    scores, deltas = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))
    deltas = deltas.view(5, 91, 4)[:, KEPT].flatten(1)
    close(ours.roi_head.bbox_head(pooled), [scores[:, [*KEPT, 0]], deltas])
    pooled = torch.randn(5, 256, 14, 14)
    masks = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(pooled))
    close([ours.roi_head.mask_head(pooled)], [masks[:, KEPT]])


@torch.no_grad()
def test_faster_rcnn_of_torchvision_with_classes_of_its_own():
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4
    )
    state = convert_state(theirs.state_dict(), "fasterrcnn").state
    pooled = torch.randn(5, 1024)
    scores, deltas = theirs.roi_heads.box_predictor(pooled)
    head = {key.removeprefix("roi_head.bbox_head."): value for key, value in state.items()}
    close(
        [
            F.linear(pooled, head["fc_cls.weight"], head["fc_cls.bias"]),
            F.linear(pooled, head["fc_reg.weight"], head["fc_reg.bias"]),
        ],
        [scores[:, [1, 2, 3, 0]], deltas[:, 4:]],
    )


def test_second_versions_of_torchvisions_detectors_are_refused():
    """They have two convolutions in the RPN and four in the box head, all normalised."""
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None
    )
    with pytest.raises(
        CheckpointError, match=r"v2\.pth.*no ResNet's and no Faster or Mask R-CNN's"
    ):
        convert_state(theirs.state_dict(), "v2.pth")


# -------------------------------------------------------------------- configs of docs/weights.md


def documented(number, tmp_path):
    """The model of one of the page's configs, as a user would save it."""
    text = (ROOT / "docs" / "weights.md").read_text()
    config = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]
    (tmp_path / "config.py").write_text(config.replace('"../dcnv2/', f'"{CONFIGS}/'))
    return build(tmp_path / "config.py")


@pytest.mark.parametrize("number", [0, 1])
def test_regions_are_pooled_as_torchvision_does(number, tmp_path):
    extract = documented(number, tmp_path).roi_head.bbox_roi_extractor
    torch.manual_seed(5)
    maps = [torch.randn(1, 256, 128 >> i, 128 >> i) for i in range(4)]
    boxes = 300 * torch.rand(40, 4)
    boxes[:, 2:] = boxes[:, :2] + 200 * torch.rand(40, 2) + 1
    pool = torchvision.ops.MultiScaleRoIAlign(list("0123"), output_size=7, sampling_ratio=2)
    expected = pool(dict(zip("0123", maps, strict=True)), [boxes], [(512, 512)])
    actual = extract(maps, torch.cat([torch.zeros(40, 1), boxes], dim=1))
    torch.testing.assert_close(actual, expected)


def test_anchors_and_boxes_of_mmdetection_1(tmp_path):
    model = documented(0, tmp_path)
    for anchors, stride in zip(
        model.rpn_head.prior_generator.base_anchors, (4, 8, 16, 32, 64), strict=True
    ):
        ratios = torch.tensor([0.5, 1.0, 2.0])
        size = torch.stack([stride * 8 / ratios.sqrt(), stride * 8 * ratios.sqrt()], dim=1)
        center = 0.5 * (stride - 1)
        expected = torch.cat([center - 0.5 * (size - 1), center + 0.5 * (size - 1)], dim=1)
        assert torch.equal(anchors, expected.round())
    for coder in (model.rpn_head.bbox_coder, model.roi_head.bbox_head.bbox_coder):
        box = torch.tensor([[10.0, 20, 29, 59]])  # 20 by 40 pixels, the last ones included
        assert coder.decode(box, torch.zeros(1, 4)).tolist() == [[9.5, 19.5, 29.5, 59.5]]
        delta = coder.encode(box, torch.tensor([[10.0, 20, 49, 59]]))[0, 2] * coder.stds[2]
        assert delta.item() == pytest.approx(math.log(2))


def test_batch_normalisation_of_torchvisions_published_detectors(tmp_path):
    norms = [m for m in documented(1, tmp_path).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {0.0}


# ------------------------------------------------------------------------------------- the file


def test_converted_file_loads_as_load_from_and_init_cfg(tmp_path, capsys):
    state = build(CONFIGS / "faster-rcnn_r50_fpn_1x_coco.py").state_dict()
    old = {f"module.{key}": value for key, value in of_mmdetection_1(state).items()}
    torch.save({"state_dict": {**old, "module.epoch": 3}}, tmp_path / "old.pth")
    out = tmp_path / "new" / "weights.pth"
    assert convert(tmp_path / "old.pth", out) is None
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == (
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
