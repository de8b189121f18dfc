"""The configs of classification: every one builds, trains a step and is evaluated."""

from pathlib import Path

import pytest
import torch
from dcndet.models.engine import Runner
from mmengine.config import Config
from mmengine.registry import init_default_scope

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path.name for path in (CONFIGS / "mnist").glob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_every_config_runs(file, tmp_path, monkeypatch):
    init_default_scope("mmdet")
    config = Config.fromfile(CONFIGS / "mnist" / file)
    name, *_ = file.removesuffix(".py").split("_")
    conv = config.model.backbone.get("deform", {}).get("conv", "")
    assert f"-{conv.replace('_', '-')}" in name if conv else "-" not in name.replace("scaled-", "")
    assert f"_{config.train_cfg.max_epochs}e_" in file
    assert (config.model.get("frozen") is not None) == ("frozen" in file)
    options = {"work_dir": str(tmp_path), "visualizer.vis_backends": [], "load_from": None}
    config.merge_from_dict(options | {"train_cfg.max_epochs": 1})
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, batch_size=2)
        for dataset in loader.dataset.get("datasets", [loader.dataset]):
            dataset.update(type="SmallDigits", indices=2)
    runner = Runner.from_cfg(config)
    runner.train()
    metrics = runner.val_evaluator.metrics[0]
    assert runner.message_hub.get_scalar("val/accuracy/top1").current() in (0, 25, 50, 75, 100)
    weights = torch.load(tmp_path / "epoch_1.pth", weights_only=True)["state_dict"]
    assert weights.keys() == runner.model.state_dict().keys()
    assert metrics.topk == (1,)
