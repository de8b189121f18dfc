"""tools/benchmark.py --device cuda, with the CPU in place of a GPU, on the smallest of shapes."""

import json
import time
from dataclasses import replace

import pytest
import torch

from tools import benchmark
from tools.benchmarks import measure, measure_cuda, ops, ops_cuda, report, report_cuda

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


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
    """The calls to torch.cuda, served by a CPU that has allocated 10 MB at its peak."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 10_000_000)
    monkeypatch.setattr(measure_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(measure_cuda, "FLUSH_BYTES", 8)
    monkeypatch.setattr(measure_cuda, "available", lambda: True)
    machine = measure.machine() | dict(gpu="A GPU", cuda="13.0", driver="580.1")
    monkeypatch.setattr(measure, "machine", lambda: machine)


@pytest.fixture
def small(monkeypatch):
    shapes = tuple(replace(case, channels=32, height=5, width=6) for case in ops.CONVS)
    monkeypatch.setattr(ops, "CONVS", shapes)
    monkeypatch.setattr(ops, "POOL_MAP", (8, 50, 84))
    monkeypatch.setattr(ops_cuda, "NUM_ROIS", (3, 5))
    monkeypatch.setattr(ops_cuda, "COPY_BYTES", 1024)
    monkeypatch.setattr(ops_cuda, "MATMUL_SIZE", 64)


@pytest.fixture
def run(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    tf32 = torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # and back afterwards

    def call(*arguments):
        monkeypatch.setattr(
            "sys.argv", ["benchmark.py", *arguments, "--threads", "1", "--out", str(tmp_path)]
        )
        benchmark.main()
        written, tables = (tmp_path / f"{arguments[0]}_cuda{end}" for end in (".json", ".md"))
        return json.loads(written.read_text()), tables.read_text()

    yield call
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = tf32


def rows_of(text):
    """Cells of the table lines that name an implementation or a floor."""
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line] for line in lines if len(line) == 7]


def test_ops(gpu, small, run, monkeypatch):
    deform_conv2d = ops.torchvision.ops.deform_conv2d

    def no_float16(**tensors):
        if tensors["input"].dtype == torch.float16:
            raise NotImplementedError("not implemented for 'Half'")
        return deform_conv2d(**tensors)

    monkeypatch.setattr(ops.torchvision.ops, "deform_conv2d", no_float16)
    run("ops", "--device", "cuda", "--empty")  # which measurements may replace
    result, text = run("ops", "--device", "cuda", "--repeats", "2")
    assert "Machine: A GPU, driver 580.1, CUDA 13.0" in text
    assert "triton" in result["versions"]
    assert report_cuda.NOT_MEASURED not in text
    sections = result["sections"]
    assert set(sections["rates"]["operations_per_s"]) == {"bfloat16", "float16", "float32"}
    assert len(sections["convolution"]) == 3 * 3 * 3
    assert len(sections["pooling"]) == 2 * 2 * 2 * 2

    exact = {"bfloat16": 2e-2, "float16": 2e-3, "float32": 1e-4}
    for row in sections["convolution"] + sections["pooling"]:
        first = not row["case"].endswith(("batch 2", "batch 16"))
        for name, values in row["results"].items():
            if (name, values["dtype"]) == ("torchvision", "float16"):
                assert values["both_error"] == "NotImplementedError: not implemented for 'Half'"
                continue
            assert values["forward_ms"] > 0
            assert values["both_us"] > 0
            assert 0 < values["both_mb"] < values["forward_mb"] < 10
            same = name == "dcn" or (
                name == "torchvision" and not row["case"].endswith("offsets and masks")
            )
            assert ("both_difference" in values) == (same and first)
            assert values.get("both_difference", 0) < exact[values["dtype"]], (row["case"], name)

    rows = rows_of(text)
    assert len([row for row in rows if row[1].startswith("floor: ")]) == 27 + 16
    assert len([row for row in rows if row[1] == "**dcn**"]) == 27 + 16
    assert len([row for row in rows if row[1] == "torchvision, float32 (TF32)"]) == 9
    assert len([row for row in rows if row[1] == "torchvision, float32"]) == 8
    failed = [row[1] for row in rows if row[2] == "NotImplementedError / NotImplementedError"]
    assert failed == ["torchvision"] * 9
    measured = [bar[4] for bar in result["bars"]]
    assert [isinstance(value, float) for value in measured] == [True, True, False, True, False]
    assert measured[2] == measured[4] == "NotImplementedError"


def test_float64_is_of_the_rounded_inputs():
    functions, exact = ops.conv_functions(replace(ops.CONVS[0], height=4), torch.bfloat16)
    for name, tensor in exact.tensors.items():
        assert functions["dcn"].tensors[name].dtype == torch.bfloat16
        assert torch.equal(functions["dcn"].tensors[name].double(), tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_offsets_are_exact_and_between_pixels(dtype):
    offset = ops.between_pixels(torch.randn(10_000) * 3, dtype)
    assert torch.equal(offset.to(dtype).float(), offset)
    assert (offset - offset.round()).abs().min() >= 1 / 128
    if dtype == torch.float16:
        position = torch.arange(168)[:, None] + offset
        assert torch.equal(position.half().float(), position)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_tensors(dtype):
    case = replace(ops.CONVS[0], height=4, batch=2)
    row, function = ops_cuda.conv_row(case, dtype), ops.conv_functions(case, dtype)[0]["dcn"]
    taken = sum(t.nbytes for t in function.tensors.values())
    made = function.grad.nbytes
    assert row["forward_bytes"] == taken + made
    assert row["both_bytes"] == 3 * taken + 2 * made
    assert row["both_operations"] == 3 * 2 * 2 * 4 * 168 * 128 * 128 * 9

    functions, _ = ops.pool_functions(2, 3, dtype)
    for name, deformed in (("dcn", False), ("dcn, offsets and masks", True)):
        tensors, made = dict(functions[name].tensors), functions[name].grad.nbytes
        rois = tensors.pop("rois").nbytes
        taken = sum(t.nbytes for t in tensors.values())
        row = ops_cuda.pool_row(3, 2, deformed, dtype)
        assert row["forward_bytes"] == taken + rois + made
        assert row["both_bytes"] == (3 if deformed else 2) * taken + 2 * (rois + made)


def test_floor_is_the_longer_of_the_two():
    row = dict(dtype="float16", forward_bytes=4e9, forward_operations=5e12)
    rates = {"bytes_per_s": 2e12, "operations_per_s": {"float16": 1e15}}
    assert report_cuda.floor_ms(row, "forward", rates) == pytest.approx(5)
    assert report_cuda.floor_ms(row | dict(forward_operations=0), "forward", rates) == 2
    assert report_cuda.floor_ms(row, "forward", {}) is None


@pytest.fixture
def measured():
    """Every case took 1 ms and 1 MB, whoever it was."""
    sections = ops_cuda.empty()
    for row in sections["convolution"] + sections["pooling"]:
        for values in row["results"].values():
            values.update(dict.fromkeys(("forward_ms", "both_ms", "forward_mb", "both_mb"), 1.0))
    return sections


def values_of(rows, name, dtype, *case):
    """Of the one row whose case has all these words."""
    (row,) = (
        row for row in rows if row["dtype"] == dtype and all(word in row["case"] for word in case)
    )
    return row["results"][name]


def test_bars_take_the_worst(measured):
    def conv(name, dtype, case, batch):
        return values_of(measured["convolution"], name, dtype, case, f"batch {batch}")

    conv("dcn", "bfloat16", "conv5", 16)["forward_ms"] = 1.25
    conv("F.conv2d (NHWC)", "bfloat16", "conv4", 2)["both_ms"] = 0.5
    conv("dcn", "float16", "conv4", 2)["forward_ms"] = 9.0  # is of no bar
    conv("F.conv2d (NCHW)", "bfloat16", "conv4", 2)["both_ms"] = 0.1  # nor is this
    for row in measured["convolution"] + measured["pooling"]:
        row["results"]["torchvision"].update(both_ms=10.0, forward_mb=5.0, both_mb=5.0)
    conv("torchvision", "bfloat16", "conv3", 2)["both_ms"] = 4.0
    conv("dcn", "float32", "conv5", 2)["forward_mb"] = 3.0
    pool = values_of(measured["pooling"], "dcn", "float32", "1000", "adaptive", "masks")
    pool["both_ms"] = 8.0

    bars = report_cuda.ops_bars(measured)
    assert [bar[4] for bar in bars] == pytest.approx([1.25, 2.0, 4.0, 1.25, 0.6])
    assert [bar[1:4] for bar in bars] == [
        ("≤", 2.0, 1.3),
        ("≤", 3.0, 2.0),
        ("≥", 3, 8),
        ("≥", 1.5, 3),
        ("≤", 0.5, 0.3),
    ]
    verdicts = [line.split(" | ")[-1].strip(" |") for line in report.bar_lines(bars)[2:]]
    assert verdicts == ["goal met", "goal met", "met", "missed", "missed"]


def test_a_bar_with_a_failure_is_not_met(measured):
    broken = measured["convolution"][0]["results"]["dcn"]
    del broken["both_ms"], broken["both_mb"]
    broken["both_error"] = "OutOfMemoryError: CUDA out of memory: tried to ..."
    bars = report_cuda.ops_bars(measured)
    assert [bar[4] for bar in bars] == [1, "OutOfMemoryError", "OutOfMemoryError", 1, *bars[1][4:5]]
    assert report.bar_lines(bars)[3].endswith("| OutOfMemoryError | failed |")
    del measured["convolution"][0]["results"]["F.conv2d (NHWC)"]["forward_ms"]
    assert report_cuda.ops_bars(measured)[0][4] is None


def test_what_fails_is_named(gpu, capsys):
    def fails(**tensors):
        raise torch.OutOfMemoryError("of 80 GiB, 79 are taken")

    row = ops_cuda.conv_row(ops.CONVS[0], torch.float32)
    tensors, grad = {"x": torch.ones(4)}, torch.ones(4)
    functions = {name: ops.Function(lambda x: x * 2, tensors, grad) for name in ops_cuda.CONV_NAMES}
    functions["torchvision"] = functions["F.conv2d (NCHW)"] = ops.Function(fails, tensors, grad)
    definitions = {"dcn": functions["torchvision"]}
    results = ops_cuda.measure(row, functions, definitions, 1)["results"]
    assert results["torchvision"]["both_error"] == "OutOfMemoryError: of 80 GiB, 79 are taken"
    assert "forward_ms" not in results["torchvision"]
    assert results["dcn"]["forward_ms"] > 0
    lines = "\n".join(report_cuda._lines(row, {}))
    cells = {row[1]: row[2:] for row in rows_of(lines)}
    assert cells["torchvision"][0] == "OutOfMemoryError / OutOfMemoryError"
    assert cells["**dcn**"][-1] == "OutOfMemoryError"  # its definition's
    assert "OutOfMemoryError" in capsys.readouterr().out


def test_a_figure_of_the_host_says_so(measured):
    row = measured["convolution"][0]
    row["results"]["dcn"]["both_late"] = 0.9
    assert "**dcn** (the host's time included)" in "\n".join(report_cuda._lines(row, {}))


def test_empty_has_all_but_figures(run):
    result, text = run("ops", "--device", "cuda", "--empty")
    assert report_cuda.NOT_MEASURED in text
    assert result["note"] == report_cuda.NOT_MEASURED
    assert "machine" not in result
    assert text.count("| – | – |\n") >= 5
    for row in result["sections"]["convolution"] + result["sections"]["pooling"]:
        assert row["forward_bytes"] > 0
        assert all(set(values) == {"dtype"} for values in row["results"].values())
    table = [row for row in rows_of(text) if row[1]]
    assert len(table) == 27 * 5 + 16 * 3
    assert all(set(row[2:]) <= {"–", ""} for row in table)
    assert "floor: 9.8 / 25.1 MB, 5.0 / 14.9 GFLOP" in text
    run("ops", "--device", "cuda", "--empty")  # may replace itself


@pytest.mark.parametrize("suffix", [".json", ".md"])
def test_empty_does_not_replace_measurements(suffix, run, tmp_path, capsys):
    file = (tmp_path / "ops_cuda").with_suffix(suffix)
    file.write_text("measured")
    with pytest.raises(SystemExit):
        run("ops", "--device", "cuda", "--empty")
    assert f"--empty: {file} holds measurements" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == [file.name]
    assert file.read_text() == "measured"


@pytest.mark.parametrize("what", ["ops", "detector"])
def test_no_gpu(what, run, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure_cuda, "available", lambda: False)
    monkeypatch.setattr(benchmark, "on_cuda", lambda *args: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        run(what, "--device", "cuda")
    assert "--device cuda: no GPU is at hand" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_empty_is_of_a_gpu(run, capsys):
    with pytest.raises(SystemExit):
        run("ops", "--empty")
    assert "--empty: only with --device cuda" in capsys.readouterr().err


def test_a_gpu_sleeps_while_a_call_is_enqueued(gpu, monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("sleep"))
    monkeypatch.setattr(Event, "record", lambda self: done.append("event"))
    monkeypatch.setattr(Event, "elapsed_time", lambda self, end: 1.0)
    monkeypatch.setattr(Event, "query", lambda self: len(done) > 8)
    functions = {"a": lambda: done.append("a"), "b": lambda: done.append("b")}
    timing = measure_cuda.times(functions, 2)
    assert done == ["sleep", "event", "a", "event", "sleep", "event", "b", "event"] * 2
    assert timing["a"].ms == [1.0, 1.0]
    assert timing["a"].late == [False, True]
    assert len(timing["b"].host_us) == 2


@needs_gpu
def test_the_gpus_time_is_not_the_hosts():
    big = torch.ones(2**24, device="cuda")

    def call():
        time.sleep(1e-3)
        big.add_(1)

    measure_cuda.warm_up(call)
    timing = measure_cuda.times({"call": call}, 5)["call"]
    assert max(timing.ms) < 1 < min(timing.host_us) / 1e3
    assert not any(timing.late)


@needs_gpu
def test_peak_memory_of_a_gpu_sees_what_a_call_frees_again():
    def call():
        big = torch.ones(10_000_000, device="cuda")  # 40 MB
        return (big[:1_000_000] * 2,)  # 4 MB

    extra, _ = measure_cuda.peak_extra_memory(call)
    assert 39 < extra < 45


def test_detector(gpu, run, monkeypatch):
    detector_cuda = pytest.importorskip("tools.benchmarks.detector_cuda", reason="no mmdet")

    def step(model, data, amp):
        assert amp
        assert data["inputs"][0].shape == (3, 64, 96)

        def call():
            if model == "mmdet, mdconv c3–c5":
                raise RuntimeError("not implemented for 'BFloat16'")
            return ()

        return call

    monkeypatch.setattr(detector_cuda, "HEIGHT", 64)
    monkeypatch.setattr(detector_cuda, "WIDTH", 96)
    monkeypatch.setattr(detector_cuda, "build", lambda: {n: n for n in detector_cuda.NAMES})
    monkeypatch.setattr(detector_cuda.detector, "training_step", step)
    monkeypatch.setattr(detector_cuda.detector, "inference", step)
    empty, text = run("detector", "--device", "cuda", "--empty")
    assert "| dcn, mdconv c3–c5 | – | – | – |" in text
    assert empty["bars"][0][1:] == ["≤", 1.4, 1.15, None, "×"]

    result, text = run("detector", "--device", "cuda", "--repeats", "2")
    rows = {row["model"]: row for row in result["sections"]["models"]}
    assert len(rows) == 4
    assert rows["mmdet, mdconv c3–c5"]["train_error"].startswith("RuntimeError: not implemented")
    assert (
        "| mmdet, mdconv c3–c5 | RuntimeError | RuntimeError | RuntimeError / RuntimeError |"
        in text
    )
    assert len(rows["dcn, regular"]["train_ms_all"]) == 2
    ratio = rows["dcn, mdconv c3–c5"]["train_ms"] / rows["dcn, regular"]["train_ms"]
    assert result["bars"][0][4] == pytest.approx(ratio)
    assert "2 images of 800×1344" in text


@pytest.mark.slow
def test_detectors_run_under_bfloat16_autocast(gpu, run, monkeypatch):
    """Ours do; mmdet's ask mmcv for kernels, of which some have no bfloat16."""
    detector_cuda = pytest.importorskip("tools.benchmarks.detector_cuda", reason="no mmdet")
    # As autocast does on a GPU, but not on a CPU: NMS then gets its boxes in float32.
    exp = torch.Tensor.exp
    monkeypatch.setattr(torch.Tensor, "exp", lambda tensor: exp(tensor.float()))
    monkeypatch.setattr(detector_cuda, "HEIGHT", 96)
    monkeypatch.setattr(detector_cuda, "WIDTH", 128)
    monkeypatch.setattr(measure_cuda, "WARM_UP", 1)
    result, _ = run("detector", "--device", "cuda", "--repeats", "1")
    rows = {row["model"]: row for row in result["sections"]["models"]}
    for name in ("dcn, regular", "dcn, mdconv c3–c5"):
        assert rows[name]["train_ms"] > 0
        assert rows[name]["inference_ms"] > 0
