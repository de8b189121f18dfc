"""Weights of mmdet's own deformable detectors give the same results in ours."""

from pathlib import Path

import dcndet.models  # noqa: F401
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

CONFIGS = Path(__file__).parents[2] / "configs" / "dcnv2"


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


def build(config, **extractor):
    """From a file of ours, or from mmdet's own configs ("mmdet::...")."""
    config = get_config(config) if isinstance(config, str) else Config.fromfile(config)
    config.model.backbone.init_cfg = None
    if extractor:
        config.model.roi_head.bbox_roi_extractor.update(extractor)
    torch.manual_seed(0)
    return MODELS.build(config.model)


def scramble(model):
    """Weights that a trained model could have: offsets move, masks differ, statistics are real."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "conv_offset" in name:
            torch.nn.init.normal_(parameter, std=0.02)
        elif "_fc.4" in name or "mask_fc.2" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        elif "fc_cls.weight" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # confident enough to pass the threshold
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)


def batch(model):
    torch.manual_seed(2)
    samples = []
    for _ in range(2):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(120, 150), ori_shape=(120, 150), scale_factor=(1.0, 1.0), img_id=0
            )
        )
        boxes = torch.tensor([[10.0, 10, 60, 70], [50, 30, 140, 110], [5, 60, 40, 100]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 5, 7]))
        samples.append(sample)
    inputs = [torch.randint(0, 255, (3, 120, 150), dtype=torch.uint8) for _ in samples]
    return model.data_preprocessor(dict(inputs=inputs, data_samples=samples), training=False)


def losses(model):
    torch.manual_seed(3)  # the samplers draw at random
    data = batch(model)
    result = model.train()(**data, mode="loss")
    result = {name: sum(v) if isinstance(v, list) else v for name, v in result.items()}
    return {name: value.detach() for name, value in result.items()}


@torch.no_grad()
def predictions(model):
    """Of each image: boxes, scores and labels."""
    found = [s.pred_instances for s in model.eval()(**batch(model), mode="predict")]
    return [(f.bboxes, f.scores, f.labels) for f in found]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py", "mdconv-c3-c5"),
        ("dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py", "dconv-c3-c5"),
    ],
)
def test_deformable_backbone_gives_the_results_of_mmcv(theirs, ours, from_mmcv):
    theirs = build(f"mmdet::{theirs}")
    scramble(theirs)
    ours = build(CONFIGS / f"faster-rcnn_r50-{ours}_fpn_1x_coco.py")
    ours.load_state_dict(theirs.state_dict(), strict=True)

    expected_losses, expected = from_mmcv(lambda: (losses(theirs), predictions(theirs)))
    actual_losses = losses(ours)
    assert actual_losses.keys() == expected_losses.keys()
    for name, value in actual_losses.items():
        torch.testing.assert_close(value, expected_losses[name], rtol=1e-4, atol=1e-5, msg=name)

    for (boxes, scores, labels), theirs in zip(predictions(ours), expected, strict=True):
        assert len(theirs[0]) > 0
        torch.testing.assert_close(boxes, theirs[0], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(scores, theirs[1], rtol=1e-4, atol=1e-5)
        assert torch.equal(labels, theirs[2])


@pytest.mark.parametrize(
    ("theirs", "pool", "layout"),
    [
        ("dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py", "mdpool", dict(shared_fc=False)),
        ("dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py", "dpool", dict(fc_channels=1024)),
    ],
)
def test_deformable_pooling_runs_without_a_gpu(theirs, pool, layout):
    """mmcv's deformable RoI pooling has no CPU kernel, so values are compared in tests/dcn."""
    theirs = build(f"mmdet::{theirs}")
    scramble(theirs)
    ours = build(
        CONFIGS / "faster-rcnn_r50_fpn_1x_coco.py", pool=pool, deform=dict(layout, per_level=True)
    )
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert all(scores.isfinite().all() for _, scores, _ in predictions(ours))
    assert all(value.isfinite() for value in losses(ours).values())
