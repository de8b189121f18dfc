"""R-CNN feature mimicking against a slow version written from the paper's formula."""

import copy
import math
from pathlib import Path

import pytest
import torch
from dcndet.models.detectors import calls_of
from dcndet.models.detectors.mimic import CropRoIs, FeatureMimic, MimicLoss, batch_statistics
from dcndet.models.engine import load_weights
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch.utils.flop_counter import FlopCounterMode

CONFIGS = Path(__file__).parents[2] / "configs"
PLAIN = "quickstart/faster-rcnn_r18_fpn_digits.py"
FULL = "quickstart/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_digits.py"


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


def build(file=FULL, **model):
    config = Config.fromfile(CONFIGS / file)
    config.model.backbone.init_cfg = None
    config.merge_from_dict({f"model.{key}": value for key, value in model.items()})
    if config.model.get("mimic"):
        config.model.mimic.setdefault("with_gt", True)  # an RPN of random weights finds no object
    torch.manual_seed(0)
    built = MODELS.build(config.model).to(memory_format=torch.channels_last)
    # Weights of a network that has learnt something: its features are not all alike.
    for parameter in built.roi_head.bbox_head.shared_fcs.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return built.train()


def batch(model, images=2, objects=True):
    torch.manual_seed(1)
    samples, inputs = [], []
    for i in range(images):
        shape = (96, 128 - 32 * i)
        sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1, 1)))
        boxes = torch.tensor([[10.0, 10, 60, 70], [50, 30, 90, 90], [0, 40, 30, 96]])
        labels = torch.tensor([1, 0, 7])
        keep = slice(None) if objects else slice(0)
        sample.gt_instances = InstanceData(bboxes=boxes[keep], labels=labels[keep])
        samples.append(sample)
        inputs.append(torch.randint(0, 256, (3, *shape), dtype=torch.uint8))
    return model.data_preprocessor(dict(inputs=inputs, data_samples=samples), True)


def total(losses):
    return sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k)


class Spy:
    """Keeps what goes into a module and what comes out."""

    def __init__(self, module):
        self.calls = []
        module.register_forward_hook(lambda m, args, out: self.calls.append((args, out)))


# The crop


def slow_crop(image, roi, shape, size):
    """Pixel by pixel, as a resize of the RoI's part of the image."""
    height, width = shape
    x1, x2 = (min(max(v, 0), width) for v in (roi[1], roi[3]))
    y1, y2 = (min(max(v, 0), height) for v in (roi[2], roi[4]))
    out = torch.zeros(image.shape[0], size, size)
    for i in range(size):
        for j in range(size):
            y = min(max(y1 + (i + 0.5) * (y2 - y1) / size - 0.5, 0), height - 1)
            x = min(max(x1 + (j + 0.5) * (x2 - x1) / size - 0.5, 0), width - 1)
            for r in (math.floor(y), math.ceil(y)):
                for c in (math.floor(x), math.ceil(x)):
                    if (
                        (r, c) == (math.ceil(y), math.ceil(x))
                        or r != math.ceil(y)
                        or c != math.ceil(x)
                    ):
                        weight = max(0, 1 - abs(y - r)) * max(0, 1 - abs(x - c))
                        repeats = (math.floor(y) == math.ceil(y)) + (math.floor(x) == math.ceil(x))
                        out[:, i, j] += weight * image[:, r, c] / 2**repeats
    return out


ROIS = torch.tensor(
    [
        [0, 2.0, 3.0, 9.0, 8.0],
        [1, 0.0, 0.0, 10.0, 7.0],
        [1, -4.5, 2.25, 6.75, 30.0],  # beyond the image
        [0, 8.3, 1.1, 14.0, 2.2],
        [1, 3.0, 3.0, 3.0, 6.0],  # no width
    ]
)
SHAPES = [(11, 14), (7, 10)]


@pytest.mark.parametrize("size", [4, 9])
def test_crops_are_those_of_the_slow_version(size):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 16, 16)
    crops = CropRoIs(size)(images, ROIS, SHAPES)
    expected = [slow_crop(images[int(r[0])], r.tolist(), SHAPES[int(r[0])], size) for r in ROIS]
    torch.testing.assert_close(crops, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_an_roi_of_the_crops_size_is_copied():
    images = torch.randn(1, 3, 12, 16)
    crop = CropRoIs(8)(images, torch.tensor([[0, 3.0, 2.0, 11.0, 10.0]]), [(12, 16)])
    torch.testing.assert_close(crop[0], images[0, :, 2:10, 3:11], rtol=1e-5, atol=1e-5)


def test_padding_is_in_no_crop():
    images = torch.full((2, 3, 16, 16), math.inf)
    for image, (height, width) in zip(images, SHAPES, strict=True):
        image[:, :height, :width] = 1
    # Sampled between two pixels, 0 · inf would be NaN: nothing outside is touched.
    images[images.isinf()] = 1e6
    crops = CropRoIs(9)(images, ROIS, SHAPES)
    torch.testing.assert_close(crops, torch.ones_like(crops))


def test_crops_keep_the_memory_format():
    images = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    assert CropRoIs(8)(images, ROIS, SHAPES).is_contiguous(memory_format=torch.channels_last)


# Ω

IMAGES = torch.tensor([0.0] * 6 + [1.0] * 6 + [2.0] * 2)
LABELS = torch.tensor([0, 1, 0, 3, 3, 3] * 2 + [3, 3])  # 3 is background
IS_GT = torch.tensor([False, True, False, False, False, False] * 2 + [False, False])


@pytest.mark.parametrize("on", ["foreground", "background", "both"])
@pytest.mark.parametrize("num_rois", [1, 2, 32])
@pytest.mark.parametrize("with_gt", [False, True])
def test_omega_is_drawn_from_each_image(on, num_rois, with_gt):
    mimic = FeatureMimic(8, 3, num_rois, on=on, with_gt=with_gt)
    chosen = mimic.sample(IMAGES, LABELS, IS_GT)
    assert len(chosen.unique()) == len(chosen)
    own = 3 if with_gt else 2
    available = dict(foreground=(own, own, 0), background=(3, 3, 2), both=(own + 3, own + 3, 2))[on]
    for image, count in enumerate(available):
        assert (IMAGES[chosen] == image).sum() == min(num_rois, count)
    if on != "both":
        assert ((LABELS[chosen] < 3) == (on == "foreground")).all()
    assert with_gt or not IS_GT[chosen].any()


def test_omega_is_random_and_even():
    mimic = FeatureMimic(8, 3, 2, on="both")
    torch.manual_seed(0)
    counts = torch.zeros(6)
    for _ in range(600):
        counts[mimic.sample(IMAGES[:6], LABELS[:6], torch.zeros(6, dtype=torch.bool))] += 1
    assert (counts / 600 - 1 / 3).abs().max() < 0.08


# The losses


def slow_losses(f_rcnn, f_frcnn, scores, labels, num_images):
    mimic = classification = 0.0
    for a, b, score, label in zip(f_rcnn, f_frcnn, scores, labels, strict=True):
        mimic = mimic + 1 - (a @ b) / (a @ a).sqrt() / (b @ b).sqrt()
        classification = classification - score[label] + score.exp().sum().log()
    return 0.1 * mimic / num_images, 0.1 * classification / len(labels)


def test_losses_and_gradients_are_those_of_the_formula():
    torch.manual_seed(0)
    mimic = FeatureMimic(8, 3).double()
    mimic.fc_cls.weight.data.normal_()
    a, b = torch.rand(2, 5, 8, dtype=torch.float64).unbind()
    a, b = a.requires_grad_(), b.requires_grad_()
    labels = torch.tensor([0, 2, 1, 3, 0])
    found = mimic.loss(a, b, labels, num_images=2)
    scores = mimic.fc_cls(a)
    expected = slow_losses(a, b, scores, labels, 2)
    inputs = (a, b, *mimic.fc_cls.parameters())
    for key, value in zip(("loss_mimic", "loss_mimic_cls"), expected, strict=True):
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=0, check_dtype=False)
        for ours, theirs in zip(
            torch.autograd.grad(found[key], inputs, retain_graph=True, allow_unused=True),
            torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True),
            strict=True,
        ):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    cosine = torch.nn.functional.cosine_similarity(a, b).mean()
    torch.testing.assert_close(found["mimic_cos"], cosine.detach().float())
    right = (scores.argmax(1) == labels).double().mean() * 100
    assert float(found["mimic_acc"]) == pytest.approx(float(right))


def test_the_mean_does_not_grow_with_the_rois():
    f_rcnn = torch.tensor([[2.0, 0.0]] * 4)
    f_frcnn = torch.tensor([[0.0, 3.0], [1.0, 3**0.5], [5.0, 0.0], [1.0, 0.0]])  # cos 0, 0.5, 1, 1
    assert float(MimicLoss()(f_rcnn, f_frcnn, 2)) == pytest.approx(0.1 * 1.5 / 2)
    assert float(MimicLoss("mean", loss_weight=1)(f_rcnn, f_frcnn, 2)) == pytest.approx(1.5 / 4)


# The detector


@pytest.mark.parametrize("on", ["foreground", "background", "both"])
def test_the_detector_does_what_the_formula_says(on):
    """One crop after the other, through a network whose BatchNorms are frozen."""
    settings = {"mimic.on": on, "mimic.num_rois": 12, "mimic.loss_mimic.loss_weight": 0.1}
    model = build(**{"backbone.norm_eval": True} | settings)
    data = batch(model)
    cropped, classified = Spy(model.mimic.crop), Spy(model.mimic.fc_cls)
    losses = model(**data, mode="loss")
    (images, rois, shapes), crops = cropped.calls[0]
    assert images is data["inputs"]
    assert shapes == [(96, 128), (96, 96)]
    maps = model.extract_feat(images)
    whole = torch.tensor([[0, 0.0, 0.0, 96.0, 96.0]])
    f_rcnn = torch.cat([feature(model, model.extract_feat(crop[None]), whole) for crop in crops])
    f_frcnn = torch.cat([feature(model, maps, roi[None]) for roi in rois])
    (seen,), scores = classified.calls[0]
    torch.testing.assert_close(f_rcnn, seen, rtol=1e-3, atol=1e-4)
    labels = torch.tensor([label_of(roi, data["data_samples"]) for roi in rois])
    expected = slow_losses(f_rcnn, f_frcnn, scores, labels, 2)
    for key, value in zip(("loss_mimic", "loss_mimic_cls"), expected, strict=True):
        torch.testing.assert_close(losses[key], value, rtol=1e-3, atol=1e-5)
        assert losses[key] > 0.01
    assert (labels < 10).all() == (on == "foreground")
    assert (labels == 10).all() == (on == "background")


def feature(model, maps, rois):
    """What the classifier of the detector sees of RoIs, layer by layer."""
    head = model.roi_head.bbox_head
    pooled = model.roi_head.bbox_roi_extractor(maps[:4], rois)
    x = pooled.flatten(1)
    for fc in head.shared_fcs:
        x = (x @ fc.weight.T + fc.bias).clamp(min=0)
    torch.testing.assert_close(head.fc_cls(x), head(pooled)[0], rtol=1e-4, atol=1e-5)
    return x


def label_of(roi, samples):
    """The class of the object that an RoI overlaps by half, or 10, the background."""
    objects = samples[int(roi[0])].gt_instances
    overlaps = bbox_overlaps(roi[None, 1:], objects.bboxes)[0]
    return int(objects.labels[overlaps.argmax()]) if overlaps.max() >= 0.5 else 10


@pytest.mark.parametrize(
    ("file", "crop_size", "stride"),
    [
        ("bccd/faster-rcnn_r18-mdconv-c3-c5_fpn_mdpool_mimic_6e_bccd.py", 224, 16),
        ("bccd/faster-rcnn_r18-mdconv-c3-c5_fpn_mdpool_mimic_6e_bccd.py", 112, 8),
        (FULL, 96, 16),
    ],
)
def test_the_map_that_a_crop_is_pooled_from(file, crop_size, stride):
    settings = {"mimic.crop_size": crop_size, "mimic.num_rois": 1}
    model = build(file, **{"roi_head.bbox_head.num_classes": 10} | settings)
    (layer,) = model.roi_head.bbox_roi_extractor.roi_layers  # that image and crops share
    spy = Spy(layer)
    model(**batch(model), mode="loss")
    assert len(spy.calls) == 8  # a map after the other, of the images and then of the crops
    for (input, rois, scale), _ in spy.calls[4:]:  # the second pass is the crops'
        assert input.shape[-1] == math.ceil(crop_size * scale)
        assert len(rois) == (2 if scale == 1 / stride else 0)


def test_dc5_has_one_map():
    model = build(
        "dcnv2/faster-rcnn_r50-mdconv-c3-c5_dc5_mdpool_mimic_1x_coco.py",
        **{"mimic.crop_size": 64, "mimic.num_rois": 1}
        | {"roi_head.bbox_head.fc_out_channels": 32}
        | {"roi_head.bbox_roi_extractor.deform": dict(fc_channels=16)},
    )
    crops, rpn = Spy(model.roi_head.bbox_roi_extractor.roi_layers[0]), Spy(model.rpn_head.rpn_conv)
    losses = model(**batch(model), mode="loss")
    total(losses).backward()
    assert crops.calls[1][0][0].shape == (2, 256, 4, 4)  # conv5, reduced
    assert [args[0].shape for args, _ in rpn.calls] == [(2, 1024, 6, 8)]  # conv4, of images only
    assert all(args[0].min() == 0 for args, _ in crops.calls)  # behind a ReLU
    assert losses["loss_mimic"] > 0
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_gradients_flow_into_both_branches():
    """Of the loss of mimicking alone: with respect to the backbone's maps of images and crops."""
    model = build()
    maps = Spy(model.backbone)
    losses = model(**batch(model), mode="loss")
    images, crops = (out for _, out in maps.calls)
    gradients = torch.autograd.grad(losses["loss_mimic"], [images[2], crops[2]])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("with_gt", [False, True])
def test_annotated_boxes_are_mimicked_only_if_asked_for(with_gt, monkeypatch):
    """With an RPN that proposes them a little off."""
    model = build(**{"mimic.with_gt": with_gt, "mimic.num_rois": 32})
    data = batch(model)
    annotated = [sample.gt_instances.bboxes for sample in data["data_samples"]]
    off = torch.tensor([2.0, -1, 1, 2])
    found = [
        InstanceData(bboxes=boxes + off, scores=torch.ones(3), labels=torch.zeros(3).long())
        for boxes in annotated
    ]
    monkeypatch.setattr(model.rpn_head, "loss_and_predict", lambda *_, **__: ({}, found))
    cropped = Spy(model.mimic.crop)
    model(**data, mode="loss")
    (_, rois, _), _ = cropped.calls[0]
    expected = sorted(
        (i, *box) for i, boxes in enumerate(annotated) for box in (boxes + off).tolist()
    )
    if with_gt:
        own = [(i, *box) for i, boxes in enumerate(annotated) for box in boxes.tolist()]
        expected = sorted(expected + own)
    assert sorted(map(tuple, rois.tolist())) == expected


def test_every_parameter_learns():
    model = build()
    total(model(**batch(model), mode="loss")).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert model.mimic.fc_cls.weight.grad.abs().sum() > 0


def test_without_an_object_the_losses_are_zero_and_nothing_leaves_the_graph():
    model = build()
    crops = Spy(model.mimic.crop)
    losses = model(**batch(model, objects=False), mode="loss")
    assert not crops.calls
    assert all(losses[key] == 0 for key in ("loss_mimic", "loss_mimic_cls"))
    assert {"mimic_cos", "mimic_acc"} < losses.keys()
    (losses["loss_mimic"] + losses["loss_mimic_cls"]).backward(retain_graph=True)
    assert (model.mimic.fc_cls.weight.grad == 0).all()
    total(losses).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_running_statistics_are_those_of_the_images():
    plain, mimic = build(mimic=None), build()
    mimic.load_state_dict(plain.state_dict(), strict=False)
    for model in (plain, mimic):
        torch.manual_seed(0)
        model(**batch(model), mode="loss")
    buffers = dict(mimic.named_buffers())
    assert sum("running" in name for name in buffers) == 40
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert all(m.training for m in mimic.modules())


def test_crops_are_normalised_by_their_own_statistics():
    for kind in (torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm):
        norm = kind(3)
        norm.running_mean.fill_(7)
        x = 5 + 3 * torch.randn(4, 3, 6, 6)
        with batch_statistics(norm):
            out = norm(x)
        torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        assert norm.training
        assert (norm.running_mean == 7).all()
        assert norm.num_batches_tracked == 0
    frozen = torch.nn.BatchNorm2d(3).eval()
    with batch_statistics(frozen):
        torch.testing.assert_close(frozen(x), x, rtol=1e-4, atol=1e-4)


def test_inference_is_that_of_the_plain_detector():
    mimic = build(**{"test_cfg.rcnn.score_thr": 0.0}).eval()
    plain = build(mimic=None, **{"test_cfg.rcnn.score_thr": 0.0}).eval()
    assert not [name for name in plain.state_dict() if "mimic" in name]
    # Strictly: nothing but the auxiliary classifier is left unused.
    load_weights(plain, {"state_dict": mimic.state_dict()}, "the trained one", strict=True)
    data = batch(mimic)
    found = []
    for model in (mimic, plain):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            results = model(**data, mode="predict")
        found.append((counter.get_total_flops(), [r.pred_instances for r in results]))
    (flops, ours), (plain_flops, theirs) = found
    assert flops == plain_flops
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) > 10
        for key in ("bboxes", "scores", "labels"):
            assert torch.equal(a[key], b[key])


def test_only_the_auxiliary_classifier_is_new_to_mmdets_detector():
    config = Config.fromfile(CONFIGS / FULL).model
    config.type = "FasterRCNN"
    del config.mimic
    theirs, weights = MODELS.build(config), build().state_dict()
    load_weights(theirs, {"state_dict": weights}, "the trained one", strict=True)
    assert "mimic.fc_cls.weight" in weights
    keys = theirs.load_state_dict(weights, strict=False)
    assert keys.missing_keys == []
    assert keys.unexpected_keys == ["mimic.fc_cls.weight", "mimic.fc_cls.bias"]


def test_the_regular_network_can_mimic():
    model = build(PLAIN, **{"mimic": dict(num_rois=2, crop_size=64)})
    assert model(**batch(model), mode="loss")["loss_mimic"] > 0


@pytest.mark.parametrize(
    ("mimic", "message"),
    [
        (dict(on="positives"), "mimic: on: .*'positives'"),
        (dict(num_rois=0), "mimic: num_rois: .*0"),
        (dict(crop_size=32), "mimic: crop_size: .*64.*32"),
        (dict(loss_mimic=dict(reduction="none")), "loss_mimic: reduction: .*'none'"),
        (dict(rois=32), "unexpected keyword argument 'rois'"),
    ],
)
def test_errors_name_the_key(mimic, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build(PLAIN, mimic=mimic)


def test_recomputed_batch_statistics_are_refused():
    with pytest.raises(ValueError, match="mimic: with_cp"):
        build(**{"backbone.with_cp": True})
    build(**{"backbone.with_cp": True, "backbone.norm_eval": True})


def cascade(config):
    """The config's RoI head as that of a Cascade R-CNN."""
    head = config.roi_head
    head.update(type="CascadeRoIHead", num_stages=2, stage_loss_weights=[1, 0.5])
    head.bbox_head = [dict(head.bbox_head, reg_class_agnostic=True) for _ in range(2)]
    rcnn = config.train_cfg.rcnn
    config.train_cfg.rcnn = [rcnn, copy.deepcopy(rcnn)]


def convolutions(config):
    config.roi_head.bbox_head.update(type="Shared4Conv1FCBBoxHead", conv_out_channels=16)


def double(config):
    head = config.roi_head
    head.update(type="DoubleHeadRoIHead", reg_roi_scale_factor=1.3)
    head.bbox_head.update(type="DoubleConvFCBBoxHead", num_convs=2, num_fcs=2, conv_out_channels=16)
    del head.bbox_head.reg_class_agnostic


@pytest.mark.parametrize("change", [cascade, convolutions, double])
def test_other_two_stage_detectors_mimic(change):
    config = Config.fromfile(CONFIGS / FULL).model
    config.backbone.norm_eval = True
    config.mimic.update(num_rois=4, with_gt=True)
    change(config)
    torch.manual_seed(0)
    model = MODELS.build(config).train()
    data = batch(model)
    head = model.roi_head.bbox_head
    last = head[-1] if isinstance(head, torch.nn.ModuleList) else head
    own, cropped = Spy(last.fc_cls), Spy(model.mimic.crop)
    seen = Spy(model.mimic.fc_cls)
    with calls_of(model.mimic, "loss") as calls:
        losses = model(**data, mode="loss")
    (_, rois, _), crops = cropped.calls[0]
    assert 3 <= len(rois) <= 8
    # f_FRCNN is that of the RoIs that were cropped.
    with torch.no_grad():
        expected = model.features_of(model.extract_feat(data["inputs"]), rois)
    torch.testing.assert_close(calls[0]["f_frcnn"], expected, rtol=1e-3, atol=1e-4)
    own.calls.pop()
    # f_RCNN is what the detector's classifier sees of the crops, whatever layers lead there.
    torch.testing.assert_close(seen.calls[0][0][0], own.calls[-1][0][0])
    assert len(own.calls[-1][0][0]) == len(crops)
    assert losses["loss_mimic"] > 0
    total(losses).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ("roi_head", "message"),
    [
        (dict(bbox_head=None), r"mimic: needs a box head .*fc_cls.*, got NoneType"),
        (
            dict(bbox_head=dict(type="MultiInstanceBBoxHead", num_instance=2, num_shared_fcs=2)),
            "mimic: needs a box head .*, got MultiInstanceBBoxHead",
        ),
        (
            dict(type="SparseRoIHead", num_stages=1, stage_loss_weights=[1]),
            "mimic: needs an RoI head that samples proposals, got SparseRoIHead",
        ),
    ],
)
def test_heads_without_a_classifier_or_proposals_are_refused(roi_head, message):
    config = Config.fromfile(CONFIGS / FULL).model
    config.roi_head.update(roi_head)
    if "type" in roi_head:
        dynamic = dict(type="DynamicConv", in_channels=64, feat_channels=16, out_channels=64)
        config.roi_head.bbox_head = [
            dict(type="DIIHead", num_classes=10, in_channels=64, dynamic_conv_cfg=dynamic)
        ]
        config.train_cfg.rcnn.sampler = dict(type="PseudoSampler")
        config.train_cfg.rcnn = [config.train_cfg.rcnn]
    with pytest.raises(ValueError, match=message):
        MODELS.build(config)


def test_only_losses_travel_among_the_losses():
    model = build()
    losses = model(**batch(model), mode="loss")
    assert all(torch.is_tensor(v) or isinstance(v, list) for v in losses.values())
    assert "bbox_loss" not in vars(model.roi_head)
    assert "forward" not in vars(model.roi_head.bbox_head.fc_cls)
