"""Exported files find what the detector finds, in the tools too; bad input is named."""

import json
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
from dcndet.models.deploy import (
    ExportDetector,
    ExportedDetector,
    compare,
    export,
    pad_images,
    use_exported,
)
from dcndet.models.engine.errors import EngineError
from dcndet.models.inference import Detector
from mmengine.config import Config

from tests.command import run_tool
from tests.deploy.conftest import ROOT, SIZE, scrambled

REASON = "requirements-export.txt is not installed"
for package in ("onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package, reason=REASON)

QUICKSTART = "quickstart/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_digits.py"
RESNET50 = "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_mdpool_mimic_1x_coco.py"
MASK_RCNN = "../tests/tools/tiny_mask.py"
ZIP = b"PK\x05\x06" + bytes(18)  # without files
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


@pytest.fixture(scope="module")
def detector(saved):
    """Of a config below configs/, for pictures as they are."""

    def build(file):
        config, checkpoint = saved(file)
        for step in config.test_dataloader.dataset.pipeline:
            if step["type"] == "Resize":
                step["scale"] = SIZE[::-1]
        # All of them, as rounding decides on the last of a hundred.
        config.model.test_cfg.rcnn.update(score_thr=0.1, max_per_img=300)
        return Detector(config, checkpoint, device="cpu")

    return build


@pytest.mark.parametrize(
    ("file", "to", "settings"),
    [
        (RESNET50, "onnx", {}),
        (RESNET50, "openvino", {}),
        (QUICKSTART, "onnx", {"deform_conv": False, "preprocess": False}),
        (QUICKSTART, "openvino", {"batch": None}),
        (MASK_RCNN, "onnx", {"batch": 2}),
        pytest.param(QUICKSTART, "torch", {"batch": None}, marks=pytest.mark.slow),
    ],
)
def test_a_file_finds_what_the_detector_finds(file, to, settings, detector, photos, tmp_path):
    own, path = detector(file), tmp_path / f"detector{SUFFIX[to]}"
    export(own, path, SIZE, to=to, **settings)
    exported = ExportedDetector(path)
    assert exported.classes == own.classes
    found = exported(photos, score_thr=0.1, batch_size=3)
    for one, other in zip(own(photos, score_thr=0.1), found, strict=True):
        assert 5 < len(one) < 300
        difference = compare(one, other)
        assert difference.complete, difference
        assert difference.boxes < 0.01
        assert difference.scores < 1e-4
    if own.model.with_mask:
        batch = own.prepare(photos)[1]
        for one, other in zip(
            own.model.test_step(deepcopy(batch)), exported.model.test_step(batch), strict=True
        ):
            expected, masks = one.pred_instances.masks, other.pred_instances.masks
            assert expected.any()
            assert (expected == masks).float().mean() > 0.9999
    assert sorted(p.suffix for p in tmp_path.iterdir()) == sorted(
        {SUFFIX[to]} | ({".bin"} if to == "openvino" else set())
    )


@pytest.fixture(scope="module")
def small(detector, tmp_path_factory):
    """A file of the quickstart's detector, and the detector."""
    path, own = tmp_path_factory.mktemp("small") / "small.onnx", detector(QUICKSTART)
    export(own, path, SIZE)
    return path, own


@pytest.fixture
def tool(capfd):
    """Runs one; what it exits with, and what it prints."""

    def run(name, *args):
        return run_tool(name, *args), "".join(capfd.readouterr())

    return run


def test_the_tool_exports_and_compares(tool, saved, photos, tmp_path):
    checkpoint = saved(QUICKSTART)[1]
    out = tmp_path / "deep" / "detector.onnx"
    status, printed = tool(
        *("export.py", ROOT / "configs" / QUICKSTART, checkpoint),
        *("--out", out, "--size", 128, 160, "--pad", "--dynamic-batch", "--check", *photos[:2]),
    )
    assert status is None, printed
    assert f"{out}: " in printed
    assert printed.count("detections match; boxes differ by at most") == 2
    metadata = ExportedDetector(out).model.metadata
    assert metadata["size"] == [128, 160]
    assert metadata["batch"] is None


def test_the_tool_fails_where_results_differ(tool, saved, photos, tmp_path, monkeypatch):
    checkpoint = saved(QUICKSTART)[1]
    prepare = ExportDetector.prepare
    monkeypatch.setattr(ExportDetector, "prepare", lambda self, x: prepare(self, x.flip(1)))
    args = ("--out", tmp_path / "wrong.onnx", "--check", photos[0])
    status, printed = tool("export.py", ROOT / "configs" / QUICKSTART, checkpoint, *args)
    assert "wrong.onnx would not find what the detector finds: not written" in str(status), printed
    assert not list(tmp_path.iterdir())


def test_detect_takes_a_file_in_place_of_config_and_checkpoint(tool, small, photos, tmp_path):
    path, own = small
    status, printed = tool("detect.py", path, *photos, "--out-dir", tmp_path, "--score-thr", 0.05)
    assert status is None, printed
    items = json.loads((tmp_path / "detections.json").read_text())
    assert len(items) == sum(len(own(photo, score_thr=0.05)) for photo in photos)
    assert (tmp_path / "pictures" / Path(photos[0]).name).exists()


def test_detect_names_an_image_of_another_size(tool, small, tmp_path):
    other = tmp_path / "other.png"
    own = small[1](Path(ROOT / "docs/images").glob("*.png").__next__()).draw().resize((90, 90))
    own.save(other)
    status, printed = tool("detect.py", small[0], other, "--out-dir", tmp_path / "out")
    assert "nothing could be read (1 skipped)" in status
    assert f"skipped: {other}: an image of " in printed
    assert f"{small[0]} takes 150×120; tools/export.py has --size" in printed


def test_detect_names_an_argument_too_many(tool, small, photos, saved):
    checkpoint = saved(QUICKSTART)[1]
    status, printed = tool("detect.py", small[0], checkpoint, photos[0])
    assert status == 2
    assert f"{small[0]} holds its weights: leave out {checkpoint}" in printed
    status, printed = tool("detect.py", "config.py", small[0], photos[0])
    assert status == 2
    assert f"{small[0]} takes the place of the config too: leave out config.py" in printed


@pytest.mark.parametrize("flags", [["--amp"], ["--device", "cuda"]])
def test_detect_refuses_what_a_file_does_not_do(tool, small, photos, flags):
    status, printed = tool("detect.py", small[0], photos[0], *flags)
    assert status == 2
    assert "an exported file runs on the CPU, in its own precision" in printed


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.onnx", None, r"no such file: .*none\.onnx"),
        ("bad.onnx", b"abc", r"bad\.onnx: its runtime cannot read it: .*Protobuf parsing failed"),
        ("bad.xml", b"abc", r"bad\.xml: its runtime cannot read it: .*Unable to read the model"),
        ("bad.pt2", b"abc", r"bad\.pt2: its runtime cannot read it: File is not a zip file"),
        ("zip.pt2", ZIP, r"zip\.pt2: its runtime cannot read it: no package of AOTInductor"),
        ("model.pth", b"abc", r"model\.pth: expected one of \.onnx, \.xml, \.pt2, got \.pth"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EngineError, match=message):
        ExportedDetector(tmp_path / name)


def test_half_a_file_is_named(small, tmp_path):
    half = tmp_path / "half.onnx"
    half.write_bytes(small[0].read_bytes()[:100_000])
    with pytest.raises(EngineError, match=r"half\.onnx: its runtime cannot read it"):
        ExportedDetector(half)


def test_a_file_of_another_program_is_named(tmp_path):
    import onnx

    images, out = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
        for name in ("images", "out")
    )
    node = onnx.helper.make_node("Identity", ["images"], ["out"])
    graph = onnx.helper.make_graph([node], "same", [images], [out])
    onnx.save(onnx.helper.make_model(graph, ir_version=10), tmp_path / "other.onnx")
    with pytest.raises(EngineError, match=r"other\.onnx: was not written by tools/export\.py"):
        ExportedDetector(tmp_path / "other.onnx")


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_a_runtime_that_is_missing_is_named(package, small, monkeypatch, tmp_path):
    suffix = {"onnxruntime": ".onnx", "openvino": ".xml"}[package]
    (tmp_path / f"model{suffix}").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"needs {package}: pip install -r requirements-export\.txt"
    with pytest.raises(EngineError, match=message):
        ExportedDetector(tmp_path / f"model{suffix}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "tensorrt"}, r"to: expected one of onnx, openvino, torch, got 'tensorrt'"),
        ({"to": "torch"}, r"model\.onnx: a file for torch ends in \.pt2"),
        ({"opset": 18}, r"opset_version: 18 has no DeformConv, which came with 19"),
        ({"opset": 22}, r"opset: ONNX Runtime runs 21 at most, got 22"),
        ({"batch": 0}, r"batch: expected at least 1, got 0"),
        ({"size": (0, 5)}, r"size: expected a height and a width from 1 up, got \(0, 5\)"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_any_work(
    settings, message, small, tmp_path, monkeypatch
):
    monkeypatch.setattr("dcndet.models.deploy.exporting.trace", None)
    with pytest.raises(EngineError, match=message):
        export(small[1], tmp_path / "model.onnx", **(dict(size=SIZE) | settings))
    assert not list(tmp_path.iterdir())


def test_layers_of_one_kernel_per_image_take_no_dynamic_batch(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("dcndet.models.deploy.exporting.trace", None)
    config, _ = saved(QUICKSTART)
    config.model.backbone.deform = dict(layers=1, conv="condconv")
    own = SimpleNamespace(model=scrambled(config))
    message = r"model\.backbone\.layer4\.1\.conv2: CondConv2d convolves .* needs a fixed batch"
    with pytest.raises(EngineError, match=message):
        export(own, tmp_path / "model.onnx", SIZE, batch=None)


def test_a_config_of_other_classes_is_named(small):
    config = Config.fromfile(ROOT / "tests/tools/tiny.py")
    message = r"small\.onnx knows 10 classes, and the config's test set 1"
    with pytest.raises(EngineError, match=message):
        use_exported(config, small[0])


def test_a_config_pads_as_the_file_did(detector, tmp_path):
    own = detector(QUICKSTART)
    pad_images(own.config, (160, 192))
    export(own, tmp_path / "padded.onnx", (160, 192))
    config = Config.fromfile(ROOT / "configs" / QUICKSTART)
    use_exported(config, tmp_path / "padded.onnx")
    assert config.model.type == "ExportedModel"
    *_, pad, _ = config.test_dataloader.dataset.pipeline
    assert (pad["type"], tuple(pad["size"])) == ("Pad", (192, 160))


def test_a_file_stays_where_the_next_one_fails(small, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dcndet.models.deploy.exporting._write_onnx", fail)
    with pytest.raises(OSError, match="No space left"):
        export(small[1], path, SIZE)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
