"""A detector in a file of another format, as a model that mmengine's loops and `Detector` run."""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from ..engine.errors import EngineError

METADATA = "dcndet"  # the key under which a file holds `ExportedModel.metadata`, as JSON
KEYS = ("classes", "size", "batch", "preprocess", "pipeline", "data_preprocessor", "mask_threshold")
EXTRA = "pip install -r requirements-export.txt"

Run = Callable[[np.ndarray], Sequence[np.ndarray]]


@MODELS.register_module()
class ExportedModel(BaseModel):
    """What `tools/export.py` wrote, run on a CPU by the runtime of its format.

    Args:
        file: an `.onnx` (ONNX Runtime), an `.xml` (OpenVINO) or a `.pt2` (PyTorch, compiled ahead
            of time). A `.pt2` holds machine code, so it has to come from where you trust. Threads
            are as many as PyTorch uses at this moment.

    Attributes:
        metadata: dict with `classes` (names), `size` ([height, width] of the images), `batch` (how
            many there are at a time; None for any number), `preprocess` (whether the file holds
            what `data_preprocessor` says), `pipeline`, `data_preprocessor` and `mask_threshold` (of
            the config; None without masks).

    Raises:
        EngineError: the file is missing or damaged, another format or not one of `tools/export.py`,
            or its runtime is not installed.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = str(file)
        if not Path(file).is_file():
            raise EngineError(f"no such file: {file}")
        suffix = Path(file).suffix
        if suffix not in OPEN:
            raise EngineError(f"{file}: expected one of {', '.join(OPEN)}, got {suffix or 'none'}")
        try:
            run, metadata = OPEN[suffix](self.file)
            found = None if metadata is None else json.loads(metadata)
        except ModuleNotFoundError as error:
            raise EngineError(f"{file} needs {error.name}: {EXTRA}") from error
        except Exception as error:  # the runtimes' own have no class in common
            reason = " ".join(str(error).split())[:200]
            raise EngineError(f"{file}: its runtime cannot read it: {reason}") from error
        if not isinstance(found, dict) or not set(KEYS) <= set(found):
            raise EngineError(f"{file}: was not written by tools/export.py")
        self.metadata = found
        super().__init__(MODELS.build(self.metadata["data_preprocessor"]))
        self._run = run

    def extra_repr(self) -> str:
        return self.file

    def forward(self, inputs, data_samples=None, mode="predict"):
        if mode != "predict":
            raise EngineError(f"{self.file}: an exported model cannot be trained")
        return self.test_step(dict(inputs=inputs, data_samples=data_samples))

    @torch.no_grad()
    def test_step(self, data: dict[str, list]) -> list[DetDataSample]:
        """As of mmdet's detectors: `inputs`, uint8 [3, height, width] each, and `data_samples`.

        Raises:
            EngineError: an image of another size.
        """
        samples = data["data_samples"]
        for image in data["inputs"]:
            self.check_size(image)
        images = torch.stack(list(data["inputs"]))
        if self.metadata["preprocess"]:
            images = images.flip(1)  # from BGR
        else:
            images = self.data_preprocessor(dict(inputs=images, data_samples=None))["inputs"]
        whole = self.metadata["batch"] or len(images)
        for first in range(0, len(images), whole):
            part = images[first : first + whole]
            rest = whole - len(part)  # of a last batch that is not full
            outputs = self._run(torch.cat((part, part[:1].expand(rest, -1, -1, -1))).numpy())
            found = zip(*map(torch.as_tensor, outputs), strict=True)
            for sample, output in zip(samples[first : first + whole], found, strict=False):
                sample.pred_instances = self._instances(sample, *output)
        return samples

    def check_size(self, image: Tensor) -> None:
        """Raise EngineError unless images [3, height, width] are what the file takes."""
        (_, height, width), (own_height, own_width) = image.shape, self.metadata["size"]
        if (height, width) != (own_height, own_width):
            raise EngineError(
                f"an image of {width}×{height} pixels after the test pipeline's resizing, where "
                f"{self.file} takes {own_width}×{own_height}; tools/export.py has --size {height} "
                f"{width}, and --pad for all images up to a size"
            )

    def _instances(
        self, sample: DetDataSample, boxes: Tensor, scores: Tensor, labels: Tensor, *masks: Tensor
    ) -> InstanceData:
        """What was found in one image, in its own pixels."""
        found = scores > 0
        scale = boxes.new_tensor(sample.scale_factor).repeat(2)
        instances = InstanceData(
            bboxes=boxes[found] / scale, scores=scores[found], labels=labels[found]
        )
        for own in masks:
            height, width = sample.ori_shape[:2]
            full = torch.zeros(len(instances), height, width, dtype=torch.bool)
            for image, mask, box in zip(full, own[found], instances.bboxes, strict=True):
                pasted, where = _do_paste_mask(
                    mask[None, None], box[None], height, width, skip_empty=True
                )
                image[where] = pasted[0] >= self.metadata["mask_threshold"]
            instances.masks = full
        return instances


def _open_onnx(file: str) -> tuple[Run, str | None]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # shapes that depend on the data are no reason to warn
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map.get(METADATA)
    return lambda images: session.run(None, {"images": images}), metadata


def _open_openvino(file: str) -> tuple[Run, str | None]:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    metadata = model.get_rt_info(METADATA).astype(str) if model.has_rt_info(METADATA) else None
    # Where the CPU has bfloat16, OpenVINO would compute in it.
    hint = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", hint)
    return lambda images: list(compiled({"images": images}).values()), metadata


def _open_torch(file: str) -> tuple[Run, str | None]:
    from torch._inductor import aoti_load_package

    # At one that is not its own PyTorch would end the process.
    with zipfile.ZipFile(file) as package:
        if not any("/data/aotinductor/" in name for name in package.namelist()):
            raise ValueError("no package of AOTInductor")
    run = aoti_load_package(file)
    return lambda images: run(torch.from_numpy(images)), run.get_metadata().get(METADATA)


OPEN = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_torch}
