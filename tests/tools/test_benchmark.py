"""tools/benchmark.py on shapes so small that only its form counts."""

import json
import math
from dataclasses import replace

import matplotlib.image
import pytest
import torch

from tools import benchmark
from tools.benchmarks import measure, ops, report


@pytest.fixture
def small(monkeypatch):
    shapes = tuple(replace(case, channels=32, height=5, width=6) for case in ops.CONVS)
    monkeypatch.setattr(ops, "CONVS", shapes)
    monkeypatch.setattr(ops, "LARGE", shapes[0])
    monkeypatch.setattr(ops, "NUM_ROIS", 3)
    monkeypatch.setattr(ops, "POOL_MAP", (8, 50, 84))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_ops(small, tmp_path, monkeypatch, capsys):
    arguments = ["ops", "--device", "cpu", "--repeats", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *arguments])
    benchmark.main()
    result = json.loads((tmp_path / "ops_cpu.json").read_text())
    text = (tmp_path / "ops_cpu.md").read_text()
    assert text in capsys.readouterr().out
    assert result["machine"]["threads"] == result["settings"]["threads"] == 2
    assert f"--out {tmp_path}" in result["command"]

    rows = result["sections"]["convolution"] + result["sections"]["variants"]
    assert len(rows) == 3 + 6 * 3
    for row in rows:
        assert {"F.conv2d (NCHW)", "F.conv2d (NHWC)", "dcn", "torchvision"} <= set(row["results"])
        for name, values in row["results"].items():
            assert values["forward_ms"] > 0
            # Every implementation computes the same function of the same numbers.
            assert name.startswith("F.conv2d") or values["difference"] < 1e-5, (row["case"], name)
    for row in result["sections"]["pooling"]:
        assert all(values["difference"] < 1e-4 for values in row["results"].values())
    assert len(result["sections"]["threads"]) == 4
    assert text.count("\n| conv3, ") == 1 + 6 + 4
    assert len(result["bars"]) == 11
    assert matplotlib.image.imread(tmp_path / "ops_cpu.png").ndim == 3


def test_a_folder_that_cannot_be_made_is_refused_before_measuring(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["benchmark.py", "ops", "--out", str(tmp_path / "file")])
    monkeypatch.setattr(ops, "run", lambda *args: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        benchmark.main()
    assert f"--out {tmp_path / 'file'}: File exists" in capsys.readouterr().err


def test_peak_memory_sees_what_a_call_frees_again():
    def call():
        big = torch.ones(10_000_000)  # 40 MB
        result = big[:1_000_000] * 2  # 4 MB, returned
        return (result,)

    extra, (result,) = measure.peak_extra_memory(call)
    assert 35 < extra < 45
    assert result.shape == (1_000_000,)


def test_functions_take_turns():
    calls = []
    taken = measure.times({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in taken.items()} == {"a": 2, "b": 2}


def test_difference_is_relative_to_each_tensor():
    expected = [torch.tensor([100.0, 1.0]), torch.tensor([0.5]), None]
    actual = [torch.tensor([101.0, 1.0]), torch.tensor([0.5]), None]
    assert measure.largest_difference(actual, expected) == pytest.approx(0.01)
    actual[0][1] = torch.nan
    assert math.isnan(measure.largest_difference(actual, expected))


def test_bars_say_what_is_missed():
    lines = report.bar_lines(
        [
            ("missed", "≤", 1.4, 1.15, 1.5, "×"),
            ("met", "≥", 4, 8, 5.0, "×"),
            ("goal", "≥", 4, 8, 9.0, "×"),
            ("no goal", "≥", 1, None, 2.0, "×"),
        ]
    )
    assert [line.split("|")[-2].strip() for line in lines[2:]] == [
        "missed",
        "met",
        "goal met",
        "met",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ops", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["ops", "--repeats", "0"], "argument --repeats: expected at least 1, got 0"),
        (["ops", "--threads", "-1"], "argument --threads: expected at least 1, got -1"),
    ],
)
def test_bad_arguments(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_detector(tmp_path, monkeypatch):
    """Also that our detectors and mmdet's, of the same weights, have the same losses."""
    detector = pytest.importorskip("tools.benchmarks.detector", reason="mmdet is not installed")
    monkeypatch.setattr(detector, "HEIGHT", 96)
    monkeypatch.setattr(detector, "WIDTH", 128)
    arguments = ["detector", "--device", "cpu", "--repeats", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *arguments])
    benchmark.main()
    sections = json.loads((tmp_path / "detector_cpu.json").read_text())["sections"]
    assert len(sections["models"]) == 4
    assert sections["loss_difference"] < 1e-3
    assert sections["watched_step_s"] > 0
    assert "training step, faster than mmdet's |" in (tmp_path / "detector_cpu.md").read_text()
