import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.py")
    if not {"_base_", "studies"} & set(path.parts)
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
    for loader in (config.train_dataloader, config.val_dataloader):
        dataset = DATASETS.build(dict(loader.dataset, lazy_init=True))
        classes = dataset.metainfo["classes"]
        assert len(classes) == config.model.roi_head.bbox_head.num_classes


def test_offset_convolutions_learn_at_a_tenth():
    config = Config.fromfile(CONFIGS / "dcnv2/faster-rcnn_r50_fpn_mdconv-c3-c5_mdpool_1x_coco.py")
    model = build(config)
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    slow = {name for name, p in model.named_parameters() if rate.get(id(p)) == 0.002}
    fast = {name for name, p in model.named_parameters() if rate.get(id(p)) == 0.02}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert slow | fast == trained
    assert slow == {name for name, _ in model.named_parameters() if "conv_offset" in name}
    assert len(slow) == 2 * 13
    assert any("offset_fc" in name for name in fast)  # the paper: the pooling's learn at full rate
