"""InternImage's and FlashInternImage's detectors: that they are the releases', that they train."""

from pathlib import Path

import dcndet.models  # noqa: F401  (registers the parts)
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

FOLDER = Path(__file__).parents[2] / "configs" / "internimage"
# What the 3x schedules of FlashInternImage-S and -B have of their own: 64 images at twice the rate.
LARGE = ("flash-internimage-s_fpn_ms-crop-3x", "flash-internimage-b_fpn_ms-crop-3x")
DROP_PATH = {
    "internimage": dict(t=0.2, s=0.3, b=0.4),
    "flash-internimage_1x": dict(t=0.2, s=0.3, b=0.3),
    "flash-internimage_3x": dict(t=0.2, s=0.4, b=0.4),
}


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


@pytest.mark.parametrize("length", ["1x", "3x"])
@pytest.mark.parametrize("arch", ["t", "s", "b"])
@pytest.mark.parametrize("name", ["internimage", "flash-internimage"])
def test_configs_are_the_releases(name, arch, length):
    schedule = dict(zip(("1x", "3x"), ("1x", "ms-crop-3x"), strict=True))[length]
    file = f"{name}-{arch}_fpn_{schedule}"
    config = Config.fromfile(FOLDER / f"mask-rcnn_{file}_coco.py")
    flash = name == "flash-internimage"
    folder, stem = ("DCNv4", "flash_intern_image") if flash else ("InternImage", "internimage")
    url = f"https://huggingface.co/OpenGVLab/{folder}/resolve/main/{stem}_{arch}_1k_224.pth"
    assert config.model.backbone.pop("init_cfg") == dict(type="Pretrained", checkpoint=url)
    with torch.device("meta"):
        model = MODELS.build(config.model)
    size = sum(p.numel() for p in model.parameters())
    assert round(size / 1e6) == dict(t=49, s=69, b=115)[arch]  # as the releases' tables have it
    assert ("neck.fpn_convs.3.ln.weight" in model.state_dict()) == flash
    rate = model.backbone.levels[-1].blocks[-1].drop_path.drop_prob
    assert rate == pytest.approx(DROP_PATH[f"{name}_{length}" if flash else name][arch])

    assert (config.train_cfg.max_epochs, config.param_scheduler[1].milestones) == (
        (12, [8 / 12, 11 / 12]) if length == "1x" else (36, [27 / 36, 33 / 36])
    )
    steps = [step.type for step in config.train_dataloader.dataset.pipeline]
    assert ("RandomChoice" in steps, "Resize" in steps) == (length == "3x", length == "1x")
    DATASETS.build(dict(config.train_dataloader.dataset, lazy_init=True))
    assert config.auto_scale_lr == dict(enable=True, base_batch_size=64 if file in LARGE else 16)
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        (parameter,) = group["params"]
        assert group["lr"] == (2e-4 if file in LARGE else 1e-4)
        assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("name", ["internimage", "flash-internimage"])
def test_detectors_train_a_step_and_test(name):
    torch.manual_seed(0)
    cfg = Config.fromfile(FOLDER / f"mask-rcnn_{name}-t_fpn_1x_coco.py").model
    cfg.backbone.update(channels=8, depths=(1, 1, 1, 1), groups=(1, 2, 4, 2), init_cfg=None)
    cfg.neck.in_channels = [8, 16, 32, 64]
    cfg.train_cfg.rpn_proposal.max_per_img = cfg.test_cfg.rpn.max_per_img = 20
    cfg.train_cfg.rcnn.sampler.num = 8
    model = MODELS.build(cfg).train()
    inputs = demo_mm_inputs(1, [[3, 64, 96]], num_items=[2], num_classes=80, with_mask=True)
    losses = model(**model.data_preprocessor(inputs, training=True), mode="loss")
    model.parse_losses(losses)[0].backward()
    assert "loss_mask" in losses
    assert all(p.grad is not None for p in model.backbone.parameters())
    with torch.no_grad():
        data = model.eval().data_preprocessor(inputs, training=False)
        (result,) = model(**data, mode="predict")
    assert result.pred_instances.scores.isfinite().all()
