"""Detectors of random weights, and pictures for them."""

from pathlib import Path

import dcndet.models  # noqa: F401
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tools" / "tiny.py"
QUICKSTART = ROOT / "configs/quickstart/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_digits.py"


def save_random_weights(config, path, classes):
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    meta = {"dataset_meta": {"classes": classes}} if classes else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Of tests/tools/tiny.py; it calls the class another name than the config does."""
    return save_random_weights(TINY, tmp_path_factory.mktemp("tiny") / "tiny.pth", ("thing",))


@pytest.fixture(scope="session")
def quickstart_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("quickstart") / "epoch_4.pth"
    return save_random_weights(QUICKSTART, path, tuple("0123456789"))


@pytest.fixture
def photo(tmp_path):
    """A path of noise, 48 pixels high, 64 wide."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"
