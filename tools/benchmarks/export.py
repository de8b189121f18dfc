"""Inference of a whole detector: here, compiled, exported, and in mmdet with the same weights."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from dcndet.models.deploy import FORMATS, ExportDetector, ExportedModel, compare, export, trace
from dcndet.models.inference import Detections, Detector
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .detector import CONFIGS, PAIRS, build
from .measure import mmcv_operators, side_by_side

OURS, THEIRS = PAIRS["mdconv c3–c5"]
SIZES = ((240, 320), (800, 1333))  # height, width
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "torch": "AOTInductor"}


def saved(folder: Path) -> Path:
    """Weights by which something is found and offsets move."""
    model = build(str(CONFIGS / OURS))
    for name, parameter in model.named_parameters():
        if "conv_offset.bias" in name:  # offsets of a pixel or two, masks around a half
            nn.init.normal_(parameter)
        elif "fc_cls.weight" in name:
            nn.init.normal_(parameter, std=0.3)
    torch.save({"state_dict": model.state_dict()}, folder / "detector.pth")
    return folder / "detector.pth"


@torch.no_grad()
def step(model: nn.Module | ExportedModel, image: Tensor) -> list[Tensor]:
    """From a picture, as the test pipeline gives it, to boxes, scores and labels."""
    shape = tuple(image.shape[1:])
    meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    samples = model.test_step(dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta)]))
    found = samples[0].pred_instances
    return [found.bboxes, found.scores, found.labels]


def compiled(model: ExportDetector) -> Callable[[Tensor], list[Tensor]]:
    """The graph that is exported, by `torch.compile`."""
    # How many boxes pass NMS is a size within the graph.
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    graph = torch.compile(trace(model).module())

    @torch.no_grad()
    def call(image: Tensor) -> list[Tensor]:
        outputs = graph(image.flip(0)[None])
        return [output[0][outputs[1][0] > 0] for output in outputs]

    return call


def run(device: str, repeats: int) -> dict:
    """All measurements, on a CPU; progress goes to standard output.

    mmdet's detector is left out where mmcv has no compiled operators, which it needs.
    """
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        config = Config.fromfile(CONFIGS / OURS)
        config.model.backbone.init_cfg = None
        own = Detector(config, saved(Path(folder)), device="cpu")
        for size in SIZES:
            torch.manual_seed(0)
            small = torch.rand(1, 3, size[0] // 8, size[1] // 8)
            image = interpolate(small * 255, size)[0].byte()
            calls = {"dcn, eager": partial(step, own.model, image)}
            calls["dcn, torch.compile"] = partial(compiled(ExportDetector(own.model, size)), image)
            for to, runtime in RUNTIMES.items():
                file = Path(folder) / f"{size[0]}{FORMATS[to]}"
                export(own, file, size, to=to)
                print(f"{size[0]}×{size[1]}: {to} is written", flush=True)
                calls[runtime] = partial(step, ExportedModel(file), image)
            if mmcv_operators() is not None:
                theirs = build(THEIRS).eval()
                theirs.load_state_dict(own.model.state_dict())
                calls["mmdet, eager"] = partial(step, theirs, image)
            expected = Detections(*calls["dcn, eager"](), own.classes, None)
            rows = []
            for name, figures in side_by_side(calls, repeats, device).items():
                row = {"runtime": name, **figures}
                if "error" not in row:
                    difference = compare(expected, Detections(*calls[name](), own.classes, None))
                    row["found"], row["matched"] = difference.found[1], difference.matched
                    row["boxes"], row["scores"] = difference.boxes, difference.scores
                rows.append(row)
                print(f"{name}: {row.get('ms', row.get('error'))} ms", flush=True)
            cases.append({"size": "{}×{}".format(*size), "rows": rows})
    return {"cases": cases}
