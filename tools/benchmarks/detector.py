"""A whole training step and inference of Faster R-CNN R-50-FPN, beside mmdet's own."""

from copy import deepcopy
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import torch
from dcndet.models.engine import OffsetStatisticsHook  # models also registers ours
from dcndet.models.engine.compiling import compile_maps
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from .measure import Call, largest_difference, mmcv_operators, side_by_side

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "dcnv2"
# Ours, and mmdet's of the same architecture.
REGULAR = "faster-rcnn_r50_fpn_1x_coco.py"
PAIRS = {
    "regular": (REGULAR, f"mmdet::faster_rcnn/{REGULAR}"),
    "mdconv c3–c5": (
        "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
        "mmdet::dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
    ),
}
SIZES = {"cpu": (240, 320), "cuda": (800, 1344)}  # height, width
DTYPES = {"cpu": "float32", "cuda": "bfloat16 autocast"}
BATCH, BOXES = 2, 8


def build(config: str) -> nn.Module:
    config = get_config(config) if config.startswith("mmdet::") else Config.fromfile(config)
    config.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    return model


def autocast(model: nn.Module) -> torch.autocast:
    """On a GPU, to bfloat16."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def training_step(model: nn.Module, data: dict, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Returns the losses."""
    torch.manual_seed(0)  # the samplers draw at random
    model.train()
    optimizer.zero_grad()
    with autocast(model):
        losses = model(**model.data_preprocessor(data, training=True), mode="loss")
    loss, terms = model.parse_losses(losses)
    loss.backward()
    optimizer.step()
    return [term.detach() for term in terms.values()]


def watched(step: Call, model: nn.Module) -> Call:
    """The same step, in which `OffsetStatisticsHook` measures."""
    runner = Mock(model=model, iter=0, max_iters=1)
    hook = OffsetStatisticsHook(interval=1)
    hook.before_train(runner)

    def call() -> None:
        hook.before_train_iter(runner, 0)
        step()
        hook.after_train_iter(runner, 0)

    return call


@torch.no_grad()
def inference(model: nn.Module, data: dict) -> None:
    model.eval()
    with autocast(model):
        model.test_step(data)


def run(device: str, repeats: int) -> dict:
    """All measurements; progress goes to standard output.

    mmdet's detectors are left out where mmcv has no compiled operators, which they need.
    """
    MMLogger.get_instance("mmengine", log_level="WARNING")
    init_default_scope("mmdet")
    data = demo_mm_inputs(BATCH, (3, *SIZES[device]), num_items=[BOXES] * BATCH, num_classes=80)
    models = {}
    for kind, (ours, theirs) in PAIRS.items():
        own = models[f"dcn, {kind}"] = build(str(CONFIGS / ours))
        for name, parameter in own.named_parameters():
            if "conv_offset.bias" in name:  # offsets of a pixel or two, masks around a half
                nn.init.normal_(parameter)
        own.to(device, memory_format=torch.channels_last)  # as dcndet.models.engine.Runner does
        if mmcv_operators() is not None:
            other = models[f"mmdet, {kind}"] = build(theirs).to(device)
            other.load_state_dict(own.state_dict())
    name = "dcn, mdconv c3–c5"
    models[f"{name}, compiled"] = deepcopy(models[name])
    compile_maps(models[f"{name}, compiled"])
    # A rate of zero, so that every step is the same work on the same weights.
    optimizer = partial(torch.optim.SGD, lr=0.0, momentum=0.9)
    steps = {
        name: partial(training_step, model, data, optimizer(model.parameters()))
        for name, model in models.items()
    }
    differences = [
        largest_difference(steps[f"dcn, {kind}"](), steps[f"mmdet, {kind}"]())
        for kind in PAIRS
        if device == "cpu" and f"mmdet, {kind}" in steps  # on a GPU the two round differently
    ]
    steps[f"{name}, offsets measured"] = watched(steps[name], models[name])
    infer = {name: partial(inference, model, data) for name, model in models.items()}
    rows = {name: {"model": name} for name in steps}
    for kind, calls in (("train", steps), ("inference", infer)):
        for name, figures in side_by_side(calls, repeats, device).items():
            rows[name] |= {f"{kind}_{key}": value for key, value in figures.items()}
            print(f"{kind}: {name}: {figures.get('ms', figures.get('error'))} ms", flush=True)
    return {"models": list(rows.values()), "loss_difference": max(differences, default=None)}
