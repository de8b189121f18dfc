"""Writes detectors as ONNX, for OpenVINO, and as packages that PyTorch compiled ahead of time."""

import importlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from torch import nn
from torch.export import Dim, ExportedProgram

from dcn import CondConv2d, GlobalDeformKernel2d

from ..engine.errors import EngineError
from ..inference.detector import Detector, class_names
from .export_detector import ExportDetector
from .exported_model import EXTRA, METADATA, ExportedModel

# Of a format, the suffix of its files.
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
# Has RoiAlign's, GridSample's and DeformConv's latest versions but bfloat16's.
OPSET = 20
LAST_OPSET = 21


def export(
    detector: Detector,
    file: str | Path,
    size: tuple[int, int],
    *,
    to: str = "onnx",
    batch: int | None = 1,
    preprocess: bool = True,
    opset: int = OPSET,
    deform_conv: bool = True,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a detector; a file that is there is replaced once the new one is whole and checked.

    Args:
        detector: on a CPU.
        file: where to, with the suffix of its format.
        size: (height, width) of the images after the test pipeline's resizing.
        to: 'onnx'; 'openvino' (its IR: an `.xml` and, beside it, a `.bin`); or 'torch', a package
            that AOTInductor compiles for this machine's CPU.
        batch: images at a time; None for any number.
        preprocess: as in `ExportDetector`.
        opset: of ONNX, 19 to 21: of later ones ONNX Runtime 1.32 has no RoIAlign.
        deform_conv: as in `dcn.onnx.translations`, for 'onnx'.
        check: is called with the written file before it takes its place. What it raises leaves the
            file that is there.

    Raises:
        EngineError: an unknown format or another suffix than its own, a size, batch or opset out of
            range, a package or a C++ compiler is missing, or the detector has a part that cannot be
            exported so.
        OSError: the file cannot be written.
    """
    file = Path(file)
    _refuse(detector.model, file, size, to, batch, opset)
    model = ExportDetector(detector.model, size, preprocess)
    metadata = dict(
        classes=detector.classes,
        size=tuple(size),
        batch=batch,
        preprocess=preprocess,
        pipeline=get_test_pipeline_cfg(detector.config),
        data_preprocessor=detector.config.model.data_preprocessor,
        mask_threshold=detector.model.roi_head.test_cfg.get("mask_thr_binary"),
    )
    text = json.dumps(metadata)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        written = Path(folder) / file.name
        program = trace(model, batch)
        if to == "torch":
            _write_torch(program, written, text)
        else:
            onnx = written.with_suffix(".onnx")
            deform_conv = deform_conv or to == "openvino"
            _write_onnx(program, model.output_names, onnx, text, opset, deform_conv)
            if to == "openvino":
                _write_openvino(onnx, written, text)
                onnx.unlink()
        if check is not None:
            check(written)
        for part in Path(folder).iterdir():
            os.replace(part, file.with_name(part.name))


def _refuse(
    model: nn.Module,
    file: Path,
    size: tuple[int, int],
    to: str,
    batch: int | None,
    opset: int,
) -> None:
    """Raise EngineError for what can be refused before any work."""
    if min(size) < 1:
        raise EngineError(f"size: expected a height and a width from 1 up, got {tuple(size)}")
    if file.is_dir():
        raise EngineError(f"{file}: is a folder")
    if file.parent.exists() and not os.access(file.parent, os.W_OK):
        raise EngineError(f"{file.parent}: cannot be written to")
    if to not in FORMATS:
        raise EngineError(f"to: expected one of {', '.join(FORMATS)}, got {to!r}")
    if file.suffix != FORMATS[to]:
        raise EngineError(f"{file}: a file for {to} ends in {FORMATS[to]}")
    if batch is not None and batch < 1:
        raise EngineError(f"batch: expected at least 1, got {batch}")
    if batch is None:
        for name, module in model.named_modules():
            if isinstance(module, CondConv2d | GlobalDeformKernel2d):
                raise EngineError(
                    f"model.{name}: {type(module).__name__} convolves each image by its own "
                    "kernel, as many groups as there are images, so it needs a fixed batch"
                )
    if to == "torch":
        return
    if opset > LAST_OPSET:
        raise EngineError(f"opset: ONNX Runtime runs {LAST_OPSET} at most, got {opset}")
    try:
        from dcn.onnx import translations

        importlib.import_module({"onnx": "onnxruntime", "openvino": "openvino"}[to])
        translations(opset)
    except ModuleNotFoundError as error:
        raise EngineError(f"to {to}: needs {error.name}: {EXTRA}") from error
    except ValueError as error:
        raise EngineError(str(error)) from error


@torch.no_grad()
def trace(model: ExportDetector, batch: int | None = 1) -> ExportedProgram:
    """For that many images, or with a dynamic batch."""
    shapes = None if batch else ({0: Dim.DYNAMIC},)
    with _without_future_warnings():
        return torch.export.export(model, (model.example(batch or 2),), dynamic_shapes=shapes)


@contextmanager
def _without_future_warnings() -> Iterator[None]:
    """Those of torch and torchvision about each other, dozens for a detector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _write_onnx(
    program: ExportedProgram,
    output_names: list[str],
    file: Path,
    metadata: str,
    opset: int,
    deform_conv: bool,
) -> None:
    from dcn.onnx import translations

    # Not the module: mmdet's box coder has another way, which is broken, within torch.onnx.export.
    with _without_future_warnings():
        onnx = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=output_names,
            opset_version=opset,
            custom_translation_table=translations(opset, deform_conv),
        )
    onnx.model.metadata_props[METADATA] = metadata
    onnx.save(file)


def _write_openvino(onnx: Path, file: Path, metadata: str) -> None:
    import openvino
    from openvino import opset8 as op
    from openvino.frontend.onnx import ConversionExtension

    def deform_conv(node):
        """Of the ONNX operator, which the converter does not know (seen in 2026.4)."""
        image, weight, offset, bias, *mask = map(node.get_input, range(node.get_input_size()))
        pads = node.get_attribute("pads")
        out = op.deformable_convolution(
            image,
            offset,
            weight,
            node.get_attribute("strides"),
            pads[:2],
            pads[2:],
            node.get_attribute("dilations"),
            *mask,
            group=node.get_attribute("group"),
            deformable_group=node.get_attribute("offset_group"),
            bilinear_interpolation_pad=True,
        )
        return op.add(out, op.reshape(bias, [1, -1, 1, 1], special_zero=False)).outputs()

    core = openvino.Core()
    core.add_extension(ConversionExtension("DeformConv", deform_conv))
    model = core.read_model(onnx)
    model.set_rt_info(metadata, METADATA)
    openvino.save_model(model, file, compress_to_fp16=False)


def _write_torch(program: ExportedProgram, file: Path, metadata: str) -> None:
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InductorError

    settings = {"aot_inductor.metadata": {METADATA: metadata}}
    try:
        with torch.no_grad():
            aoti_compile_and_package(program, package_path=str(file), inductor_configs=settings)
    except InductorError as error:  # without a compiler, say
        raise EngineError(f"to torch: {str(error).strip().splitlines()[0]}") from error


def use_exported(config: Config, file: str | Path) -> None:
    """Have a config run an exported file in place of its model.

    Raises:
        EngineError: the file was made for other classes than the config's test set has.
    """
    model = ExportedModel(file)
    expected, found = len(class_names(config)), len(model.metadata["classes"])
    if expected != found:
        raise EngineError(f"{file} knows {found} classes, and the config's test set {expected}")
    if any(step["type"] == "Pad" for step in model.metadata["pipeline"]):
        pad_images(config, model.metadata["size"])
    config.model, config.load_from = dict(type="ExportedModel", file=str(file)), None


def pad_images(config: Config, size: tuple[int, int]) -> None:
    """Have the test pipeline pad images to (height, width), at the right and the bottom."""
    pipeline = get_test_pipeline_cfg(config)
    packed = next(i for i, step in enumerate(pipeline) if step["type"].endswith("PackDetInputs"))
    pad = dict(type="Pad", size=tuple(size)[::-1], pad_val=dict(img=(114, 114, 114)))
    pipeline.insert(packed, pad)
