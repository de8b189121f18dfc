"""The rows of the paper's tables: what their networks hold, that they train and test."""

import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import make_rows

FOLDER = make_rows.FOLDER
NETWORKS = sorted(name for name in make_rows.rows() if "_1x_" in name)  # schedules change none


@pytest.fixture(autouse=True, scope="module")
def scope():
    init_default_scope("mmdet")


def read(name):
    config = Config.fromfile(FOLDER / name)
    config.model.backbone.init_cfg = None  # no download of ImageNet weights
    return config


def on_meta(config):
    with torch.device("meta"):
        return MODELS.build(config.model)


@pytest.fixture(scope="module", params=NETWORKS)
def row(request, scope):
    """The parts of its name, its config and its network, built once for all tests of it."""
    config = read(request.param)
    return parts(request.param), config, on_meta(config)


def parts(name):
    """Detector, backbone, convolution, neck, pooling and mimicking; what is not there is ''."""
    pattern = r"([^_]+)_(.+?)(?:-(m?dconv-.+))?_(fpn|dc5)(?:_(.*pool))?(?:_(mimic.*))?_1x_coco\.py"
    return re.fullmatch(pattern, name).groups("")


def test_the_folder_is_as_it_was_written():
    assert len(NETWORKS) == 104
    files = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert files == make_rows.rows(), "run tools/make_rows.py"


# Numbers of parameters: a layer with a bias has (inputs + 1) · outputs.
POOLED, HIDDEN = 256 * 49, 1024
# Without classifiers; the 3×3 convolutions of conv3, conv4 and conv5; their channels in conv3.
BACKBONES = {
    "r50": (23_508_032, (4, 6, 3), 128),
    "r101": (42_500_160, (4, 23, 3), 128),
    "x101-32x4d": (42_128_704, (4, 23, 3), 256),
    "x101-64x4d": (81_406_272, (4, 23, 3), 512),
}
# Objectness and boxes of 3 ratios at each place of an FPN; on conv4 of 5 scales × 3 ratios.
RPN = {"fpn": (9 * 256 + 1) * 256 + 257 * 3 * 5, "dc5": (9 * 1024 + 1) * 512 + 513 * 15 * 5}
NECK = {
    "fpn": sum((c + 1) * 256 for c in (256, 512, 1024, 2048)) + 4 * (9 * 256 + 1) * 256,
    "dc5": (2048 + 1) * 256,
}
BOX_HEAD = (POOLED + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN + (HIDDEN + 1) * (81 + 4 * 80)
# Four 3×3 convolutions, one that doubles the size, and the masks of 80 classes.
MASK_HEAD = 4 * (9 * 256 + 1) * 256 + (4 * 256 + 1) * 256 + 257 * 80
CLASSIFIER = (HIDDEN + 1) * 81  # mimicking's, in training only


def conv_offsets(backbone, conv):
    """Of the convolutions that predict offsets and, in mdconv, masks."""
    _, depths, width = BACKBONES[backbone]
    kind, first = conv.split("-")[:2]
    outputs = {"dconv": 18, "mdconv": 27}[kind]
    stages = {f"c{3 + i}": (n, 2**i * width) for i, n in enumerate(depths)}
    return sum(n * (9 * c + 1) * outputs for stage, (n, c) in stages.items() if stage >= first)


def pool_offsets(pool, neck, bins):
    """Of dpool's layer, on an FPN one per level as in DCNv1, or of mdpool's three."""
    if pool == "dpool":
        return (4 if neck == "fpn" else 1) * (256 * bins + 1) * 2 * bins
    if pool == "mdpool":
        return (256 * bins + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN + (HIDDEN + 1) * 3 * bins
    return 0


def test_parameters(row):
    (detector, backbone, conv, neck, pool, mimic), _, network = row
    expected = BACKBONES[backbone][0] + NECK[neck] + RPN[neck] + BOX_HEAD
    expected += pool_offsets(pool, neck, 7 * 7)
    if conv:
        expected += conv_offsets(backbone, conv)
    if detector == "mask-rcnn":
        expected += MASK_HEAD + pool_offsets(pool, neck, 14 * 14)
    if mimic:
        expected += CLASSIFIER
    assert sum(p.numel() for p in network.parameters()) == expected


def test_what_is_pooled_and_mimicked_is_as_the_name_says(row):
    (detector, *_, pool, mimic), config, network = row
    for part in ("bbox", "mask")[: 1 + (detector == "mask-rcnn")]:
        assert config.model.roi_head[f"{part}_roi_extractor"].pool == (pool or "align")
    if mimic:
        assert network.mimic.on == (mimic.partition("-")[2] or "foreground")


@pytest.mark.parametrize(
    ("schedule", "epochs", "milestones", "scale"),
    [
        ("1x", 12, [8 / 12, 11 / 12], (1333, 800)),
        ("16e-800px", 16, [10 / 16, 14 / 16], (1333, 800)),
        ("16e-1000px", 16, [10 / 16, 14 / 16], (1667, 1000)),
    ],
)
@pytest.mark.parametrize("detector", ["faster-rcnn", "mask-rcnn"])
@pytest.mark.parametrize("neck", ["fpn", "dc5"])
def test_training_is_the_papers(detector, neck, schedule, epochs, milestones, scale):
    """Section 5.1 for the 16 epochs; the 1x schedule is mmdetection's."""
    config = read(f"{detector}_r50-mdconv-c3-c5_{neck}_mdpool_mimic_{schedule}_coco.py")
    assert config.train_cfg.max_epochs == epochs
    assert config.param_scheduler[1].milestones == pytest.approx(milestones)
    assert config.optim_wrapper.optimizer == dict(
        type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4
    )
    assert config.auto_scale_lr.base_batch_size == 16
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        (resize,) = (step for step in loader.dataset.pipeline if step.type == "Resize")
        (load,) = (step for step in loader.dataset.pipeline if step.type == "LoadAnnotations")
        assert (tuple(resize.scale), resize.keep_ratio) == (scale, True)
        assert load.get("with_mask", False) == (detector == "mask-rcnn")
    model = config.model
    anchors = model.rpn_head.anchor_generator
    assert len(anchors.ratios) == 3
    assert len(anchors.scales) * len(anchors.strides) == 5
    proposals, sampled = model.train_cfg.rpn_proposal, model.train_cfg.rpn.sampler
    assert proposals.max_per_img == (1000 if neck == "fpn" else 2000)
    assert model.test_cfg.rpn.max_per_img == 1000
    assert proposals.nms.iou_threshold == model.test_cfg.rpn.nms.iou_threshold == 0.7
    assert (sampled.num, sampled.pos_fraction) == (256, 0.5)
    assert (model.train_cfg.rcnn.sampler.num, model.train_cfg.rcnn.sampler.pos_fraction) == (
        512,
        0.25,
    )
    assert (model.test_cfg.rcnn.nms.iou_threshold, model.test_cfg.rcnn.max_per_img) == (0.5, 100)
    assert model.backbone.frozen_stages == 1
    (flip,) = (s for s in config.train_dataloader.dataset.pipeline if s.type == "RandomFlip")
    assert flip.prob == 0.5
    warm_up = config.param_scheduler[0]
    assert (warm_up.end, warm_up.start_factor) == (500, 0.001 if schedule == "1x" else 1 / 3)
    sides = [scale * stride for scale in anchors.scales for stride in anchors.strides]
    assert sides == [32, 64, 128, 256, 512]
    if neck == "dc5":
        losses = (model.rpn_head.loss_bbox, model.roi_head.bbox_head.loss_bbox)
        assert [(loss.type, loss.beta) for loss in losses] == [
            ("SmoothL1Loss", 1 / 9),
            ("SmoothL1Loss", 1),
        ]
    built = on_meta(config)
    assert (built.mimic.num_rois, built.mimic.crop.size, built.mimic.with_gt) == (32, 224, False)
    assert built.mimic.loss_mimic.loss_weight == built.mimic.loss_cls.loss_weight == 0.1
    norms = [m for m in built.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    assert not any(norm.training for norm in built.train().modules() if norm in norms)


def test_a_longer_schedule_trains_the_same_network():
    def network(name):
        bases, model = (FOLDER / name).read_text().split("]\n", 1)
        return [line for line in bases.splitlines() if "/models/" in line], model

    for name in NETWORKS:
        for schedule in ("16e-800px", "16e-1000px"):
            assert network(name.replace("1x", schedule)) == network(name)


def test_the_box_head_of_dc5_starts_as_the_authors():
    config = read("faster-rcnn_r50-mdconv-c3-c5_dc5_mdpool_mimic_1x_coco.py")
    torch.manual_seed(0)
    head = MODELS.build(dict(config.model.roi_head.bbox_head, num_classes=3))
    head.init_weights()
    for layer in (*head.shared_fcs, head.fc_cls, head.fc_reg):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not layer.bias.any()


def test_mmdetections_weights_fit(row):
    """Of the same backbone and neck: every tensor of the regular FPN, and the backbone of DC5."""
    (detector, backbone, _, neck, *_), _, network = row
    folder = detector.replace("-", "_")
    theirs = f"{detector}_{backbone}_fpn_1x_coco"
    if neck == "dc5" and backbone == "r50":
        folder, theirs = "faster_rcnn", "faster-rcnn_r50-caffe-dc5_1x_coco"
    ours = network.state_dict()
    for key, shape in shapes_of_mmdet(f"mmdet::{folder}/{theirs}.py").items():
        if neck == "fpn" or key.startswith("backbone."):
            assert ours[key].shape == shape, key


@cache
def shapes_of_mmdet(name):
    config = get_config(name)
    config.model.backbone.init_cfg = None
    return {key: tensor.shape for key, tensor in on_meta(config).state_dict().items()}


def small(config):
    """The row's network with few channels."""
    model = config.model
    model.backbone.base_channels = 8
    if "groups" in model.backbone:
        model.backbone.update(groups=2, base_width=4)
    if isinstance(model.neck.in_channels, int):
        model.neck.update(in_channels=256, out_channels=16)
        model.rpn_head.update(in_channels=128, feat_channels=16)
    else:
        model.neck.update(in_channels=[32, 64, 128, 256], out_channels=16)
        model.rpn_head.update(in_channels=16, feat_channels=16)
    for part in ("bbox", "mask"):
        if extractor := model.roi_head.get(f"{part}_roi_extractor"):
            extractor.out_channels = 16
            if extractor.pool == "mdpool":
                extractor.deform = dict(fc_channels=16)
            model.roi_head[f"{part}_head"].in_channels = 16
    model.roi_head.bbox_head.fc_out_channels = 16
    if "mask_head" in model.roi_head:
        model.roi_head.mask_head.conv_out_channels = 16
    model.train_cfg.rcnn.sampler.num = 32
    for proposals in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        proposals.max_per_img = 50
    model.test_cfg.rcnn.max_per_img = 10
    if "mimic" in model:
        model.mimic.update(num_rois=2, crop_size=64, with_gt=True)
    return config


def batch(model, training):
    size = (64, 64)
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=0)
    sample = DetDataSample(metainfo=meta)
    masks = BitmapMasks(np.ones((1, *size), np.uint8), *size)
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[5.0, 5, 60, 60]]), labels=torch.tensor([1]), masks=masks
    )
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    return model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), training)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_row_trains_a_step_and_tests(name):
    torch.manual_seed(0)
    config = small(read(name))
    config.model.test_cfg.rcnn.score_thr = 0.0
    model = MODELS.build(config.model)
    losses = model.train()(**batch(model, True), mode="loss")
    losses = {k: sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k}
    assert ("loss_mimic" in losses) == ("mimic" in name)
    assert ("loss_mask" in losses) == name.startswith("mask-rcnn")
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    left = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not left
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    with torch.no_grad():
        (result,) = model.eval()(**batch(model, False), mode="predict")
    found = result.pred_instances
    assert len(found) > 0
    assert found.scores.isfinite().all()
    assert ("masks" in found) == name.startswith("mask-rcnn")
