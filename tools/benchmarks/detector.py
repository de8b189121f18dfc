"""A whole training step and inference of Faster R-CNN R-50-FPN, beside mmdet's own."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from dcndet.models.engine import OffsetStatisticsHook  # models also registers ours
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .measure import mmcv_operators, side_by_side

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "dcnv2"
# Ours, and mmdet's of the same architecture.
PAIRS = {
    "regular": (
        "faster-rcnn_r50_fpn_1x_coco.py",
        "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    ),
    "mdconv c3–c5": (
        "faster-rcnn_r50_fpn_mdconv-c3-c5_1x_coco.py",
        "mmdet::dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
    ),
}
DEFORMABLE = "dcn, mdconv c3–c5"
WATCHED = f"{DEFORMABLE}, offsets measured"
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


def batch(height: int, width: int) -> dict:
    """Random images with random boxes, the same every time."""
    gen = torch.Generator().manual_seed(0)
    size, samples = (height, width), []
    for _ in range(BATCH):
        sample = DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=0)
        )
        corner = torch.rand(BOXES, 2, generator=gen) * torch.tensor([width, height]) * 0.7
        extent = torch.rand(BOXES, 2, generator=gen) * 70 + 16
        end = torch.minimum(corner + extent, torch.tensor([width, height]) - 1.0)
        sample.gt_instances = InstanceData(
            bboxes=torch.cat((corner, end), 1),
            labels=torch.randint(0, 80, (BOXES,), generator=gen),
        )
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *size), generator=gen, dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)


def losses(model: nn.Module, data: dict) -> dict[str, Tensor]:
    torch.manual_seed(0)  # the samplers draw at random
    model.train()
    terms = model(**model.data_preprocessor(data, training=True), mode="loss")
    return {name: sum(v) if isinstance(v, list) else v for name, v in terms.items()}


def autocast(model: nn.Module) -> torch.autocast:
    """On a GPU, to bfloat16."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def training_step(model: nn.Module, data: dict) -> Callable[[], tuple]:
    # A rate of zero, so that every step is the same work on the same weights.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> tuple:
        optimizer.zero_grad()
        with autocast(model):
            terms = losses(model, data)
        sum(v for name, v in terms.items() if "loss" in name).backward()
        optimizer.step()
        return ()

    return step


def watched_step(model: nn.Module, data: dict) -> Callable[[], tuple]:
    """A training step in which `OffsetStatisticsHook` measures."""
    step = training_step(model, data)
    runner = SimpleNamespace(
        model=model, iter=0, max_iters=1, visualizer=SimpleNamespace(add_scalars=lambda *_, **__: 0)
    )
    hook = OffsetStatisticsHook(interval=1)
    hook.before_train(runner)

    def watched() -> tuple:
        hook.before_train_iter(runner, 0)
        step()
        hook.after_train_iter(runner, 0)
        return ()

    return watched


def inference(model: nn.Module, data: dict) -> Callable[[], tuple]:
    @torch.no_grad()
    def infer() -> tuple:
        model.eval()
        with autocast(model):
            model(**model.data_preprocessor(data, training=False), mode="predict")
        return ()

    return infer


def run(device: str, repeats: int) -> dict:
    """All measurements; progress goes to standard output.

    mmdet's detectors are left out where mmcv has no compiled operators, which they need.
    """
    MMLogger.get_instance("mmengine", log_level="WARNING")
    init_default_scope("mmdet")
    data = batch(*SIZES[device])
    models, differences = {}, []
    for kind, (ours, theirs) in PAIRS.items():
        own = models[f"dcn, {kind}"] = build(str(CONFIGS / ours))
        for name, parameter in own.named_parameters():
            if "conv_offset.bias" in name:  # offsets of a pixel or two, masks around a half
                nn.init.normal_(parameter)
        own.to(device, memory_format=torch.channels_last)  # as dcndet.models.engine.Runner does
        if mmcv_operators() is None:
            continue
        other = models[f"mmdet, {kind}"] = build(theirs).to(device)
        other.load_state_dict(own.state_dict())
        if device == "cpu":  # on a GPU the two round differently
            expected = losses(other, data)
            differences += [
                (value - expected[name]).abs().item() / (expected[name].abs().item() or 1.0)
                for name, value in losses(own, data).items()
            ]
    train = {name: training_step(model, data) for name, model in models.items()}
    train[WATCHED] = watched_step(models[DEFORMABLE], data)
    infer = {name: inference(model, data) for name, model in models.items()}
    rows = {name: {"model": name} for name in train}
    for kind, calls in (("train", train), ("inference", infer)):
        for name, figures in side_by_side(calls, repeats, device).items():
            rows[name] |= {f"{kind}_{key}": value for key, value in figures.items()}
            print(f"{kind}: {name}: {figures.get('ms', figures.get('error'))} ms", flush=True)
    return {"models": list(rows.values()), "loss_difference": max(differences, default=None)}
