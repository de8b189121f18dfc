"""tools/benchmark.py on shapes so small that only its form counts; a CPU stands in for a GPU."""

import json
import math
import re
import sys
import time
from functools import partial
from pathlib import Path

import matplotlib.image
import pytest
import torch

from tools import benchmark
from tools.benchmarks import family, measure, ops, report

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"


@pytest.fixture
def small(monkeypatch):
    shapes = tuple(case._replace(size=(32, 5, 6)) for case in ops.CONVS)
    monkeypatch.setattr(ops, "CONVS", shapes)
    monkeypatch.setattr(ops, "LARGE", shapes[0])
    monkeypatch.setattr(ops, "NUM_ROIS", {"cpu": (3,), "cuda": (3, 5)})
    monkeypatch.setattr(ops, "POOL_MAP", (8, 50, 84))
    depthwise = [case._replace(size=(32, 5, 6), groups=32) for case in ops.DEPTHWISE[:1]]
    monkeypatch.setattr(ops, "DEPTHWISE", depthwise)
    monkeypatch.setattr(ops, "COPY_BYTES", dict.fromkeys(ops.COPY_BYTES, 4))
    monkeypatch.setattr(ops, "MATMUL_SIZE", dict.fromkeys(ops.MATMUL_SIZE, 4))
    for name in ("AGGREGATIONS", "DEFORM_KERNELS"):
        cases = [case._replace(size=(32, 5, 6)) for case in getattr(family, name)[:1]]
        monkeypatch.setattr(family, name, cases)
    monkeypatch.setattr(family, "IMAGE", (32, 32))
    monkeypatch.setattr(measure.gc, "collect", lambda: 0)  # takes longer than all the calls


@pytest.fixture
def run(tmp_path, monkeypatch):
    threads, tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # and back afterwards

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--out", str(tmp_path)])
        benchmark.main()
        name = "_".join(arguments[0:3:2])
        page = (tmp_path / f"{name}.md").read_text()
        return json.loads((tmp_path / f"{name}.json").read_text()), page

    yield call
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = tf32


class Event:
    """Of a GPU that does everything at once."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def query(self):
        return False

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


@pytest.fixture
def gpu(monkeypatch):
    """The calls to torch.cuda, served by a CPU."""
    machine = measure.machine() | dict(gpu="A GPU", cuda="13.0", driver="580.1")
    for name, value in dict(
        is_available=True, memory_allocated=0, max_memory_allocated=10**7
    ).items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name in ("_sleep", "synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(measure, "flush_cache", lambda: None)
    monkeypatch.setattr(measure, "machine", lambda: machine)
    rates = dict.fromkeys(("bfloat16", "float16", "float32"), 1e12)
    rates = {"bytes_per_s": 1e9, "operations_per_s": rates}
    monkeypatch.setattr(ops, "measure_rates", lambda repeats, device: rates)
    for case, build in ops.BUILDERS.items():
        monkeypatch.setitem(ops.BUILDERS, case, lambda *args, f=build: f(*args[:-1], "cpu"))


def test_ops_on_a_cpu(small, run, tmp_path):
    result, text = run("ops", "--device", "cpu", "--repeats", "1")
    assert result["machine"]["threads"] == result["settings"]["threads"] == 2
    assert f"--out {tmp_path}" in text
    sections = result["sections"]
    rows = sections["convolution"] + sections["variants"]
    assert len(rows) == 3 + 6 * 3
    for row in rows:
        assert {"F.conv2d (NCHW)", "F.conv2d (NHWC)", "dcn", "torchvision"} <= set(row["results"])
        for name, values in row["results"].items():
            assert values["forward_ms"] > 0
            # Every implementation computes the same function of the same numbers.
            assert name.startswith("F.conv2d") or values["difference"] < 1e-5, (row["case"], name)
    for row in sections["pooling"]:
        assert all(values["difference"] < 1e-4 for values in row["results"].values())
    assert len(sections["threads"]) == 4
    assert text.count("\n| conv3, ") == 1 + 6
    assert ("mmcv's rows were skipped" in text) == (ops.MMCV is None)
    assert matplotlib.image.imread(tmp_path / "ops_cpu.png").ndim == 3


def test_family_on_a_cpu(small, run):
    result, text = run("family", "--device", "cpu", "--repeats", "1")
    sections = result["sections"]
    assert len(sections["narrow"]) == 3
    for name in ("narrow", "depthwise", "aggregation", "deform_kernel", "network"):
        for row in sections[name]:
            for implementation, values in row["results"].items():
                assert values["forward_ms"] > 0
                assert values.get("difference", 0) < 1e-5, (name, implementation)
            assert "difference" in row["results"]["dcn"]
    assert sections["network"][0]["results"].keys() == {"dcn", "grid_sample"}
    assert [*sections["classifier"][0]["results"]] == ["plain", "dcn", "dcn, ConvOffset2D"]
    assert text.count("\n| digits, 32×1×28×28 | plain | ") == 1
    assert text.count("\n| InternImage-T, 3×32×32 | dcn | ") == 1
    assert text.startswith("# The rest of the family on a CPU")


def test_family_on_a_gpu(small, gpu, run):
    result, _ = run("family", "--device", "cuda", "--repeats", "1")
    sections = result["sections"]
    assert len(sections["aggregation"]) == len(sections["deform_kernel"]) == 3
    assert "network" not in sections


def test_ops_on_a_gpu(small, gpu, run, monkeypatch):
    deform_conv2d = ops.torchvision.ops.deform_conv2d

    def no_float16(**tensors):
        if tensors["input"].dtype == torch.float16:
            raise NotImplementedError("not implemented for 'Half'")
        return deform_conv2d(**tensors)

    monkeypatch.setattr(ops.torchvision.ops, "deform_conv2d", no_float16)
    result, text = run("ops", "--device", "cuda", "--repeats", "1")
    assert "Machine: A GPU, driver 580.1, CUDA 13.0" in text
    sections = result["sections"]
    assert len(sections["convolution"]) == 3 * 3 * 3
    assert len(sections["pooling"]) == 2 * 2 * 2
    exact = {"bfloat16": 2e-2, "float16": 2e-3, "float32": 1e-4}
    for row in sections["convolution"] + sections["pooling"]:
        for name, values in row["results"].items():
            dtype = values.get("dtype", row["dtype"])
            assert (dtype == "float32") or (name, row["dtype"]) != ("torchvision", "bfloat16")
            if name == "torchvision" and dtype == "float16":
                assert values["both_error"] == "NotImplementedError: not implemented for 'Half'"
                continue
            assert min(values["forward_ms"], values["both_host_us"], values["both_mb"]) > 0
            assert values.get("difference", 0) < exact[dtype], (row["case"], name)
            assert ("difference" in values) != (name[0] == "F" or "batch" in row["case"])
    assert text.count("| torchvision | – / – | – / – |") == 9
    assert text.count("NotImplementedError: not implemented for 'Half'") == 9 * 2


@pytest.mark.usefixtures("small", "gpu", "run")
def test_what_gpu_check_measures(monkeypatch, tmp_path):
    """Less, by settings of the benchmark that its code names."""
    script = (DOCS.parents[1] / "scripts/gpu_check.sh").read_text()
    code = re.search(r"^benchmark='$(.*?)^'$", script, re.MULTILINE | re.DOTALL)[1]
    monkeypatch.setattr(ops, "GPU_BATCHES", ops.GPU_BATCHES)  # and back afterwards
    for name in ("DTYPES", "POOL_DTYPES"):
        monkeypatch.setattr(ops, name, dict(getattr(ops, name)))
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path)])
    exec(code.replace('"20"', '"1"'), {})
    sections = json.loads((tmp_path / "ops_cuda.json").read_text())["sections"]
    assert len(sections["convolution"]) == 2 * 3
    assert len(sections["pooling"]) == 2 * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpus_time_and_memory():
    big = torch.ones(2**24, device="cuda")

    def call():
        time.sleep(1e-3)
        large = big + 1  # 64 MiB
        return (large[:1000].clone(),)

    figures = measure.side_by_side({"call": call}, 5, "cuda", measure.gpu_clock)["call"]
    assert figures["ms"] < 1 < figures["host_us"] / 1e3
    assert figures["late"] == 0
    assert 67 < figures["mb"] < 70


@pytest.mark.parametrize("name", sorted(file.stem for file in DOCS.glob("*.json")))
def test_pages_are_written_from_their_figures(name):
    assert (DOCS / f"{name}.md").read_text() == report.page(
        json.loads((DOCS / f"{name}.json").read_text())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_offsets_are_exact_and_between_pixels(dtype):
    offset = ops.between_pixels(torch.randn(10_000) * 3, dtype)
    assert torch.equal(offset.to(dtype).float(), offset)
    assert (offset - offset.round()).abs().min() >= 1 / 128


def test_least_work_and_the_time_it_takes():
    case = ops.CONVS[0]._replace(size=(128, 4, 168), batch=2)
    conv = ops.conv_functions(case)["dcn"].least_work()
    assert conv["both_operations"] == 3 * 2 * 2 * 4 * 168 * 128 * 128 * 9
    values = dict(both_bytes=4e9, both_operations=5e12)
    rates = {"bytes_per_s": 2e12, "operations_per_s": {"float16": 1e15}}
    assert report.floor_ms(values, "both", "float16", rates) == pytest.approx(5)
    assert report.floor_ms(values | dict(both_operations=0), "both", "float16", rates) == 2


def test_peak_memory_sees_what_a_call_frees_again():
    assert 35 < measure.peak_extra_memory(lambda: (torch.ones(10**7)[: 10**6] * 2,), "cpu") < 45


def test_functions_take_turns_and_what_fails_is_named():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    figures = measure.side_by_side(functions | {"c": lambda: 1 / 0}, 2, "cpu")
    assert calls == [*"ab", *"abab", *"ab"]  # warming up, timed, and for the memory
    assert figures["c"] == {"error": "ZeroDivisionError: division by zero"}
    assert len(figures["a"]["ms_all"]) == 2


def test_difference_is_relative_to_each_tensor():
    expected = [torch.tensor([100.0, 1.0]), torch.tensor([0.5])]
    actual = [torch.tensor([101.0, 1.0]), torch.tensor([0.5])]
    assert measure.largest_difference(actual, expected) == pytest.approx(0.01)
    actual[0][1] = torch.nan
    assert math.isnan(measure.largest_difference(actual, expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ops", "--repeats", "0"], "argument --repeats: expected at least 1, got 0"),
        (["ops", "--device", "cuda"], "--device cuda: PyTorch finds no GPU"),
        (["ops", "--out", __file__], f"--out {__file__}: File exists"),
        (["report", __file__], f"{__file__}: not what a benchmark wrote"),
    ],
)
def test_bad_arguments(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_detector(run, monkeypatch):
    """Also that our detectors and mmdet's, of the same weights, have the same losses."""
    detector = pytest.importorskip("tools.benchmarks.detector", reason="mmdet is not installed")
    monkeypatch.setattr(detector, "SIZES", {"cpu": (96, 128)})
    result, text = run("detector", "--device", "cpu", "--repeats", "1")
    compiled = measure.mmcv_operators() is not None
    assert len(result["sections"]["models"]) == (6 if compiled else 4)
    assert ("mmdet's detectors were skipped" in text) != compiled
    assert not compiled or result["sections"]["loss_difference"] < 1e-3


@pytest.mark.slow
def test_export(run, monkeypatch):
    """Of a small detector, by the runtimes that compile nothing."""
    reason = "requirements-export.txt is not installed"
    for runtime in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(runtime, reason=reason)
    export = pytest.importorskip("tools.benchmarks.export", reason=reason)
    small = DOCS.parents[1] / "configs/quickstart/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_digits.py"
    monkeypatch.setattr(export, "OURS", small)
    monkeypatch.setattr(export, "SIZES", ((64, 96),))
    monkeypatch.setattr(export, "RUNTIMES", {"onnx": "ONNX Runtime", "openvino": "OpenVINO"})
    monkeypatch.setattr(export, "mmcv_operators", lambda: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    result, text = run("export", "--device", "cpu", "--repeats", "1")
    (case,) = result["sections"]["cases"]
    names = ["dcn, eager", "dcn, torch.compile", "ONNX Runtime", "OpenVINO"]
    assert [row["runtime"] for row in case["rows"]] == names
    assert all(row["matched"] == case["rows"][0]["found"] > 0 for row in case["rows"])
    assert text.count("\n## 64×96\n") == 1
