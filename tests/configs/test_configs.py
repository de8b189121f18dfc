import re
from pathlib import Path

import pytest
import torch
from dcndet.models.engine.errors import EngineError
from dcndet.models.engine.optim import with_slow_offsets
from dcndet.models.engine.options import merge_options
from dcndet.models.engine.schedules import resolve
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from dcn import LAYERS, DeformKernelConv2d, LocalDeformKernel2d

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.py")
    if not {"_base_", "studies", "internimage"} & set(path.parts)  # test_internimage.py has those
    and "rcnn" in path.name
    # test_rows.py has all rows.
    and ("dcnv2" not in path.parts or re.match(r"faster-rcnn_r50.*_1x_", path.name))
)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


def build(config):
    config.model.backbone.init_cfg = None  # no download of ImageNet weights
    with torch.device("meta"):
        return MODELS.build(config.model)


@pytest.mark.parametrize("file", FILES)
def test_every_config_builds(file):
    config = Config.fromfile(CONFIGS / file)
    model = build(config)
    names = [name for name, _ in model.named_parameters()]
    assert ("dconv" in file) == any("conv_offset" in name for name in names)
    assert ("dpool" in file) == any("offset_fc" in name for name in names)
    assert ("mimic" in file) == ("mimic.fc_cls.weight" in names)
    if "mimic" in file:
        part = re.search(r"_mimic-?(\w*?)[_.]", file)[1]
        assert model.mimic.on == (part or "foreground")
    folder = file.split("/")[0]
    batch = {"dcnv2": 16, "quickstart": 8, "digits": 8}.get(folder, 4)
    assert config.auto_scale_lr == dict(enable=True, base_batch_size=batch)
    if batch != 16:  # one process changes nothing
        assert config.train_dataloader.batch_size == batch
    for loader in (config.train_dataloader, config.val_dataloader):
        dataset = DATASETS.build(dict(loader.dataset, lazy_init=True))
        classes = dataset.metainfo["classes"]
        assert len(classes) == config.model.roi_head.bbox_head.num_classes


def test_offset_convolutions_learn_at_a_tenth():
    file = "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_mdpool_1x_coco.py"
    config = Config.fromfile(CONFIGS / file)
    model = build(config)
    wrapper = with_slow_offsets(config.optim_wrapper, model)
    groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    slow = {name for name, p in model.named_parameters() if rate.get(id(p)) == pytest.approx(0.002)}
    fast = {name for name, p in model.named_parameters() if rate.get(id(p)) == 0.02}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert slow | fast == trained
    assert slow == {name for name, _ in model.named_parameters() if "conv_offset" in name}
    assert len(slow) == 2 * 13
    assert any("offset_fc" in name for name in fast)  # the paper: the pooling's learn at full rate


def test_offsets_of_deformable_kernels_learn_at_a_tenth():
    kernels = [kind(4, 8, 8, 3, groups=8) for kind in (LocalDeformKernel2d, DeformKernelConv2d)]
    cfg = dict(optimizer=dict(type="SGD", lr=0.02))
    wrapper = with_slow_offsets(cfg, nn.Sequential(*kernels))
    assert wrapper["paramwise_cfg"]["custom_keys"] == {
        "0.rotation_conv": dict(lr_mult=0.1),
        "1.rotation_conv": dict(lr_mult=0.1),
        "1.offset_conv": dict(lr_mult=0.1),
    }


def test_settings_by_parameter_that_are_no_dict_are_named():
    wrapper = dict(optimizer=dict(type="SGD", lr=0.02), paramwise_cfg="{a: 1")
    with pytest.raises(EngineError, match=r"optim_wrapper\.paramwise_cfg: expected a dict, got '"):
        with_slow_offsets(wrapper, nn.Identity())


@pytest.mark.parametrize(
    ("keys", "conv", "pool"),
    [
        ({}, 0.002, 0.0002),
        ({"conv_offset": dict(lr_mult=1.0)}, 0.02, 0.0002),  # DCNv1's convolutions, as its authors
        ({"offset_fc": dict(lr_mult=1.0)}, 0.002, 0.02),
        ({"roi_head": dict(lr_mult=0.5)}, 0.002, 0.0001),
    ],
)
def test_dcnv1s_pooling_learns_at_a_hundredth(keys, conv, pool):
    config = Config.fromfile(CONFIGS / "dcnv2/faster-rcnn_r50-dconv-c5_fpn_dpool_1x_coco.py")
    config.optim_wrapper.paramwise_cfg = dict(custom_keys=keys)
    model = build(config)
    wrapper = with_slow_offsets(config.optim_wrapper, model)
    groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    for part, expected in (("conv_offset", conv), ("offset_fc", pool)):
        (found,) = {rate[id(p)] for name, p in model.named_parameters() if part in name}
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("file", FILES)
def test_a_number_of_layers_can_be_given_to_every_config(file):
    config = Config.fromfile(CONFIGS / file)
    merge_options(config, {"model.backbone.deform.layers": 9})
    config.model.backbone.init_cfg = None
    with torch.device("meta"):
        backbone = MODELS.build(config.model.backbone)
    layer = LAYERS[config.model.backbone.deform.get("conv", "mdconv")].cls
    assert len([m for m in backbone.modules() if isinstance(m, layer)]) == 9


@pytest.mark.parametrize(
    ("file", "epochs", "milestones"),
    [
        ("dcnv2/faster-rcnn_r50_fpn_1x_coco.py", 12, [8, 11]),
        ("dcnv2/faster-rcnn_r50_fpn_1x_coco.py", 24, [16, 22]),
        ("dcnv2/faster-rcnn_r50_fpn_16e-1000px_coco.py", 16, [10, 14]),
    ],
)
def test_schedules_follow_the_length(file, epochs, milestones):
    config = Config.fromfile(CONFIGS / file)
    assert config.train_cfg.max_epochs in (epochs, epochs // 2)
    resolved = resolve(config.param_scheduler[1], epochs, 1000 * epochs)
    assert (resolved["end"], resolved["milestones"]) == (epochs, milestones)


@pytest.mark.parametrize("depth", [18, 101])
def test_weights_of_another_depth_are_refused(depth):
    config = Config.fromfile(CONFIGS / "dcnv2/faster-rcnn_r50_fpn_1x_coco.py")
    config.model.backbone.depth = depth
    with pytest.raises(
        ValueError, match=rf"depth={depth}, but .* depth 50.*torchvision://resnet50"
    ):
        MODELS.build(config.model.backbone)
