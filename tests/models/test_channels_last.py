"""A detector of channels-last weights trains without converting a feature map on the way."""

from pathlib import Path

import dcndet.models  # noqa: F401
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch.utils._python_dispatch import TorchDispatchMode

CONFIGS = Path(__file__).parents[2] / "configs" / "bccd"


class Maps(TorchDispatchMode):
    """Notes the operators that take or copy a feature map that is not channels-last."""

    WATCHED = ("convolution", "deform", "batch_norm", "max_pool", "clone", "copy_")

    def __init__(self):
        super().__init__()
        self.seen = 0
        self.converted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(name in str(func) for name in self.WATCHED):
            for value in (*args, *(out if isinstance(out, tuple) else (out,))):
                if torch.is_tensor(value) and value.dim() == 4 and value.shape[:1] == (2,):
                    self.seen += 1
                    converted = not value.is_contiguous(memory_format=torch.channels_last)
                    if "deform_conv2d" in str(func) and value.shape[1] == 18:
                        # A slice of the prediction: its pixels have gaps between them, no more.
                        converted = value.stride(1) != 1
                    if converted and value.shape[1] > 3:
                        self.converted.append(f"{func}: {tuple(value.shape)}")
        return out


@pytest.mark.parametrize("row", ["_fpn", "-mdconv-c3-c5_fpn", "-mdconv-c3-c5_fpn_mdpool"])
def test_no_feature_map_is_converted(row):
    init_default_scope("mmdet")
    torch.manual_seed(0)
    config = Config.fromfile(CONFIGS / f"faster-rcnn_r18{row}_6e_bccd.py")
    model = MODELS.build(config.model).to(memory_format=torch.channels_last).train()
    sample = DetDataSample(metainfo=dict(img_shape=(96, 128), ori_shape=(96, 128)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 60, 70]]), labels=torch.tensor([1])
    )
    images = [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8) for _ in range(2)]
    data = model.data_preprocessor(dict(inputs=images, data_samples=[sample, sample]), True)
    with Maps() as maps:
        losses = model(**data, mode="loss")
        sum(
            sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k
        ).backward()
    assert maps.seen > 100
    assert not maps.converted
