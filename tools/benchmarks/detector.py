"""A whole training step and inference of Faster R-CNN R-50-FPN, beside mmdet's own."""

import statistics
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

from .measure import peak_extra_memory, times

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
WATCHED = "dcn, offsets measured"
HEIGHT, WIDTH, BATCH, BOXES = 240, 320, 2, 8


def build(config: str) -> nn.Module:
    config = get_config(config) if config.startswith("mmdet::") else Config.fromfile(config)
    config.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    return model


def build_pair(ours: str, theirs: str) -> tuple[nn.Module, nn.Module]:
    """With the same weights; offsets are a pixel or two, masks spread around a half."""
    own, other = build(str(CONFIGS / ours)), build(theirs)
    for name, parameter in own.named_parameters():
        if "conv_offset.bias" in name:
            nn.init.normal_(parameter)
    other.load_state_dict(own.state_dict())
    # As dcndet.models.engine.Runner does.
    return own.to(memory_format=torch.channels_last), other


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


def autocast(model: nn.Module, amp: bool) -> torch.autocast:
    """To bfloat16, where the model is."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=amp)


def training_step(model: nn.Module, data: dict, amp: bool = False) -> Callable[[], tuple]:
    # A rate of zero, so that every step is the same work on the same weights.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> tuple:
        optimizer.zero_grad()
        with autocast(model, amp):
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


def inference(model: nn.Module, data: dict, amp: bool = False) -> Callable[[], tuple]:
    @torch.no_grad()
    def infer() -> tuple:
        model.eval()
        with autocast(model, amp):
            model(**model.data_preprocessor(data, training=False), mode="predict")
        return ()

    return infer


def set_up() -> None:
    MMLogger.get_instance("mmengine", log_level="WARNING")
    init_default_scope("mmdet")


def run(repeats: int) -> dict:
    """All measurements; progress goes to standard output."""
    set_up()
    data = batch(HEIGHT, WIDTH)
    detectors, difference = {}, 0.0
    for kind, (ours, theirs) in PAIRS.items():
        own, other = build_pair(ours, theirs)
        detectors[f"dcn, {kind}"], detectors[f"mmdet, {kind}"] = own, other
        expected = losses(other, data)
        for name, value in losses(own, data).items():
            scale = expected[name].abs().item() or 1.0
            difference = max(difference, (value - expected[name]).abs().item() / scale)
    deformable = next(model for name, model in detectors.items() if name.startswith("dcn, md"))
    steps = {name: training_step(m, data) for name, m in detectors.items()}
    train = times({**steps, WATCHED: watched_step(deformable, data)}, repeats)
    infer = times({name: inference(m, data) for name, m in detectors.items()}, repeats)
    rows = []
    for name, model in detectors.items():
        rows.append(
            {
                "model": name,
                "train_s": statistics.median(train[name]) / 1e3,
                "inference_s": statistics.median(infer[name]) / 1e3,
                "train_s_all": [t / 1e3 for t in train[name]],
                "inference_s_all": [t / 1e3 for t in infer[name]],
                "train_mb": peak_extra_memory(training_step(model, data))[0],
            }
        )
        print(
            f"{name:20} training step {rows[-1]['train_s']:.2f} s, "
            f"inference {rows[-1]['inference_s']:.2f} s",
            flush=True,
        )
    watched = statistics.median(train[WATCHED]) / 1e3
    return {"models": rows, "loss_difference": difference, "watched_step_s": watched}
