"""ExportDetector finds what mmdet's predict finds."""

import pytest
import torch
from dcndet.models.deploy import ExportDetector, compare, trace
from dcndet.models.engine.errors import EngineError
from dcndet.models.inference import Detections
from mmdet.structures import DetDataSample
from mmengine.config import Config

from tests.deploy.conftest import ROOT, SIZE, scrambled

QUICKSTART = "quickstart/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_digits.py"
CONFIGS = [
    QUICKSTART,
    "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_mdpool_mimic_1x_coco.py",
    "dcnv2/faster-rcnn_r50_dc5_roipool_1x_coco.py",
    "dcnv2/mask-rcnn_r50-dconv-c3-c5_dc5_dpool_1x_coco.py",
    "internimage/mask-rcnn_flash-internimage-t_fpn_1x_coco.py",
    "digits/faster-rcnn_mobilenet-v2-dk-local_fpn_digits.py",
    "custom/faster-rcnn_lite0-mdconv_fpn_mdpool.py",
]


def config(file, **options):
    found = Config.fromfile(ROOT / "configs" / file)
    found.merge_from_dict(options)
    return found


def pictures(count=2):
    """uint8 BGR, as a test pipeline gives them, and what mmdet asks to know of them."""
    torch.manual_seed(1)
    images = torch.nn.functional.interpolate(torch.rand(count, 3, 15, 19) * 255, SIZE)
    meta = dict(img_shape=SIZE, ori_shape=SIZE, scale_factor=(1.0, 1.0))
    return images.byte(), [DetDataSample(metainfo=dict(meta)) for _ in images]


def detections(boxes, scores, labels):
    return Detections(boxes, scores, labels, (), None)


@pytest.mark.parametrize(
    ("file", "preprocess"), [(QUICKSTART, False), *((file, True) for file in CONFIGS)]
)
@torch.no_grad()
def test_it_finds_what_predict_finds(file, preprocess):
    model = scrambled(config(file))
    images, samples = pictures()
    expected = model.test_step(dict(inputs=[*images], data_samples=samples))
    if preprocess:
        given = images.flip(1)  # RGB
    else:
        given = model.data_preprocessor(dict(inputs=[*images], data_samples=samples))["inputs"]
    boxes, scores, labels, *masks = ExportDetector(model, SIZE, preprocess)(given)
    for i, sample in enumerate(expected):
        wanted, found = sample.pred_instances, scores[i] > 0
        assert len(wanted) > 5
        difference = compare(
            detections(wanted.bboxes, wanted.scores, wanted.labels),
            detections(boxes[i][found], scores[i][found], labels[i][found]),
        )
        assert difference.complete, difference
        assert max(difference.boxes, 100 * difference.scores) < 1e-3
        assert (scores[i].diff() <= 0).all()
    assert bool(masks) == model.with_mask


@torch.no_grad()
def test_proposals_that_are_too_small_find_nothing():
    """In mmdet they are removed; here they keep their place."""
    changed = {"model.test_cfg.rpn.min_bbox_size": 24}
    model = scrambled(config(QUICKSTART, **changed))
    images, samples = pictures()
    expected = model.test_step(dict(inputs=[*images], data_samples=samples))
    boxes, scores, _ = ExportDetector(model, SIZE)(images.flip(1))
    for i, sample in enumerate(expected):
        found = scores[i] > 0
        torch.testing.assert_close(boxes[i][found], sample.pred_instances.bboxes)


@torch.no_grad()
def test_an_image_in_which_nothing_is_found():
    model = scrambled(config(QUICKSTART, **{"model.test_cfg.rcnn.score_thr": 1.0}))
    boxes, scores, labels = ExportDetector(model, SIZE)(pictures()[0])
    assert boxes.shape == (2, 100, 4)
    assert labels.shape == scores.shape == (2, 100)
    assert not scores.any()


@pytest.mark.parametrize("found", [0, 1, 2])
@torch.no_grad()
def test_a_trace_serves_images_in_which_little_is_found(found):
    """torchvision tells a trace that NMS keeps two boxes at least."""
    model = scrambled(config(QUICKSTART))
    best = ExportDetector(model, SIZE)(pictures(1)[0])[1][0]
    model.roi_head.test_cfg.score_thr = ((best[found - 1] if found else 1) + best[found]).item() / 2
    model = ExportDetector(model, SIZE)
    outputs = trace(model).module()(pictures(1)[0])
    assert (outputs[1] > 0).sum() == found
    for output, expected in zip(outputs, model(pictures(1)[0]), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_images_do_not_see_each_other():
    model = ExportDetector(scrambled(config(QUICKSTART)), SIZE)
    images = pictures(3)[0]
    for together, alone in zip(model(images), model(images[2:]), strict=True):
        torch.testing.assert_close(together[2:], alone, rtol=1e-5, atol=1e-4)


def test_one_trace_serves_any_number_of_images():
    model = ExportDetector(scrambled(config(QUICKSTART)), SIZE)
    program = trace(model, batch=None).module()
    images = pictures(3)[0]
    for found, expected in zip(program(images), model(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_samples_lie_beyond_every_border():
    """Of the detectors here, as what runtimes differ in."""
    model = scrambled(config(CONFIGS[1]))
    layer = model.backbone.layer4[2].conv2
    samples = layer.samples(torch.rand(1, layer.in_channels, 4, 5))
    for at, most in ((samples.y, 3), (samples.x, 4)):
        assert (at < 0).any()
        assert (at > most).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.test_cfg.rcnn.nms.type": "soft_nms"},
            r"model\.roi_head\.test_cfg\.nms: .*soft_nms.* cannot be exported; type='nms'",
        ),
        (
            {
                "model.roi_head.bbox_roi_extractor": dict(
                    _delete_=True,
                    type="SingleRoIExtractor",
                    roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
                    out_channels=256,
                    featmap_strides=[4, 8, 16, 32],
                )
            },
            r"model\.roi_head\.bbox_roi_extractor\.roi_layers\.0: mmcv's RoIAlign cannot be",
        ),
    ],
)
def test_a_part_that_it_cannot_state_is_named(change, message):
    with pytest.raises(EngineError, match=message):
        ExportDetector(scrambled(config(QUICKSTART, **change)), SIZE)


@pytest.mark.parametrize(
    "change",
    [
        {"model.test_cfg.rcnn.nms.score_threshold": 0.3},
        {"model.test_cfg.rcnn.max_per_img": -1},
        {"model.rpn_head.bbox_coder.clip_border": False},
        {"model.roi_head.bbox_head.bbox_coder.clip_border": False},
    ],
)
def test_a_setting_that_it_cannot_state_is_named(change):
    (key,) = change
    with pytest.raises(EngineError, match=rf"{key.split('.')[-1]}.* cannot be exported"):
        ExportDetector(scrambled(config(QUICKSTART, **change)), SIZE)


def test_another_roi_head_is_named():
    model = scrambled(config(QUICKSTART))
    model.roi_head.__class__ = type("OtherRoIHead", (type(model.roi_head),), {})
    with pytest.raises(
        EngineError, match=r"model\.roi_head: OtherRoIHead cannot be exported; Stan"
    ):
        ExportDetector(model, SIZE)


def test_a_detector_of_one_stage_is_named():
    model = torch.nn.Module()
    with pytest.raises(EngineError, match=r"model: Module cannot be exported; Faster and Mask"):
        ExportDetector(model, SIZE)
