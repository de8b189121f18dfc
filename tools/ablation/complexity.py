"""Parameters and operations of a detector in inference."""

import copy
import json
from contextlib import suppress

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.flop_counter import FlopCounterMode

import dcn.flops  # noqa: F401  # has it count deformable convolutions

from .results import write_text
from .study import Run


def complexity(run: Run) -> dict[str, float]:
    """`parameters` and `gflops` of a run's detector; kept in a file beside its folder.

    GFLOPs are 1e9 multiply-adds of convolutions and matrix products in inference, on the first
    image of the evaluation, with untrained weights; sampling and pooling are not counted.
    """
    path = run.folder.parent / "complexity.json"
    with suppress(OSError, ValueError):  # not there, or cut off
        return json.loads(path.read_text(encoding="utf-8"))
    config = copy.deepcopy(run.content)
    config.model.backbone.init_cfg = None  # no download
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    parameters = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("mimic."))
    sample = DATASETS.build(config.val_dataloader.dataset)[0]
    data = model.data_preprocessor(pseudo_collate([sample]), False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**data, mode="tensor")
    found = {"parameters": parameters, "gflops": counter.get_total_flops() / 2 / 1e9}
    write_text(path, json.dumps(found) + "\n")
    return found
