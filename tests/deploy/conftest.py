"""Detectors whose weights are random, but find something and look beyond every border."""

from pathlib import Path

import dcndet.models  # noqa: F401
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
SIZE = (120, 150)  # of the pictures; not a multiple of 32


def scrambled(config):
    """The config's model, in evaluation."""
    init_default_scope("mmdet")
    config.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    for name, parameter in model.named_parameters():
        predicts = ("conv_offset", "rotation_conv", "offset_conv", "offset_mask", ".offset.")
        if any(part in name for part in predicts) and name.endswith("bias"):
            nn.init.uniform_(parameter, -6, 6)
        elif "offset_fc" in name and name.endswith("bias"):
            nn.init.uniform_(parameter, -4, 4)
        elif "fc_cls.weight" in name:
            nn.init.normal_(parameter, std=0.3)  # confident enough to pass the threshold
        elif name.endswith("mask_head.conv_logits.weight"):
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Of a config's file below configs/, what `Detector` takes: the config and a checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def save(file):
        config, path = Config.fromfile(ROOT / "configs" / file), folder / f"{Path(file).stem}.pth"
        config.model.backbone.init_cfg = None
        if not path.exists():
            torch.save({"state_dict": scrambled(config).state_dict()}, path)
        return config, path

    return save


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for i in range(3):
        image = noise.integers(0, 256, (15, 19, 3)).astype(np.uint8)
        Image.fromarray(image).resize(SIZE[::-1], Image.BICUBIC).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(3)]
