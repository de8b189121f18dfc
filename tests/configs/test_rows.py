"""The rows of the paper's tables: what their networks hold, that they train and test."""

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


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


def read(name):
    config = Config.fromfile(FOLDER / name)
    config.model.backbone.init_cfg = None  # no download of ImageNet weights
    return config


def on_meta(config):
    with torch.device("meta"):
        return MODELS.build(config.model)


def test_the_folder_is_as_it_was_written():
    files = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert files == make_rows.rows(), "run tools/make_rows.py"


# In parameters. Of a layer with a bias: (inputs + 1) · outputs.
POOLED, HIDDEN = 256 * 49, 1024
FC_HEAD = (POOLED + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN + (HIDDEN + 1) * (81 + 4 * 80)
BACKBONE = 23_508_032  # ResNet-50 without its classifier
# conv5's reduction, and the RPN on conv4: 3×3, 512, with 5 scales × 3 ratios of objectness and box.
DC5 = BACKBONE + (2048 + 1) * 256 + (9 * 1024 + 1) * 512 + (512 + 1) * 15 * 5 + FC_HEAD
LATERAL = sum((c + 1) * 256 for c in (256, 512, 1024, 2048))
FPN = BACKBONE + LATERAL + 4 * (9 * 256 + 1) * 256 + (9 * 256 + 1) * 256 + 257 * 3 * 5 + FC_HEAD
# Four 3×3 convolutions, one that doubles the size, and the masks of 80 classes.
MASK_HEAD = 4 * (9 * 256 + 1) * 256 + (4 * 256 + 1) * 256 + 257 * 80
# The channels of conv3, conv4 and conv5, and how many 3×3 convolutions they have.
STAGES = {128: 4, 256: 6, 512: 3}


def offsets(channels, *stages):
    """Of the 3×3 convolutions that predict so many channels in the deformable layers."""
    return sum(STAGES[c] * (9 * c + 1) * channels for c in stages)


DPOOL = (POOLED + 1) * 98
MDPOOL = (POOLED + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN + (HIDDEN + 1) * 147
# Mask R-CNN's second pooling: its RoIs have 14×14 bins.
MASK_MDPOOL = (4 * POOLED + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN + (HIDDEN + 1) * 3 * 196
CLASSIFIER = (HIDDEN + 1) * 81  # mimicking's, in training only


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("faster-rcnn_r50_dc5", DC5),
        ("faster-rcnn_r50_dc5_roipool", DC5),
        ("faster-rcnn_r50-dconv-c5_dc5", DC5 + offsets(18, 512)),
        ("faster-rcnn_r50-dconv-c5_dc5_dpool", DC5 + offsets(18, 512) + DPOOL),
        ("faster-rcnn_r50-dconv-c4-c5_dc5", DC5 + offsets(18, 256, 512)),
        ("faster-rcnn_r50-dconv-c3-c5_dc5_dpool", DC5 + offsets(18, *STAGES) + DPOOL),
        ("faster-rcnn_r50-mdconv-c3-c5_dc5", DC5 + offsets(27, *STAGES)),
        ("faster-rcnn_r50-mdconv-c3-c5_dc5_mdpool", DC5 + offsets(27, *STAGES) + MDPOOL),
        (
            "faster-rcnn_r50-mdconv-c3-c5_dc5_mdpool_mimic",
            DC5 + offsets(27, *STAGES) + MDPOOL + CLASSIFIER,
        ),
        ("faster-rcnn_r50_dc5_mimic", DC5 + CLASSIFIER),
        ("mask-rcnn_r50_dc5", DC5 + MASK_HEAD),
        (
            "mask-rcnn_r50-mdconv-c3-c5_dc5_mdpool",
            DC5 + MASK_HEAD + offsets(27, *STAGES) + MDPOOL + MASK_MDPOOL,
        ),
        ("faster-rcnn_r50_fpn", FPN),
        # DCNv1's FPN has a layer of offsets per level, DCNv2's pooling one branch for all.
        ("faster-rcnn_r50-dconv-c5_fpn_dpool", FPN + offsets(18, 512) + 4 * DPOOL),
        ("faster-rcnn_r50-mdconv-c3-c5_fpn_mdpool", FPN + offsets(27, *STAGES) + MDPOOL),
    ],
)
def test_parameters(name, expected):
    model = on_meta(read(f"{name}_1x_coco.py"))
    assert sum(p.numel() for p in model.parameters()) == expected


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


@pytest.mark.parametrize("name", NETWORKS)
def test_mmdetections_weights_fit(name):
    """Of the same backbone and neck: every tensor of the regular FPN, and the backbone of DC5."""
    detector, backbone, neck = name.split("_")[:3]
    backbone = backbone.split("-dconv")[0].split("-mdconv")[0]
    folder = detector.replace("-", "_")
    theirs = f"{detector}_{backbone}_fpn_1x_coco"
    if neck == "dc5" and backbone == "r50":
        folder, theirs = "faster_rcnn", "faster-rcnn_r50-caffe-dc5_1x_coco"
    ours = on_meta(read(name)).state_dict()
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
