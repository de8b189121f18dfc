import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/gpu_check.sh"
# Finds GPUS GPUs, cannot import LACKING, fails in a step whose command has FAILING.
PYTHON = """#!/bin/sh
case "$*" in
*device_count*) echo "$GPUS"; exit ;;
"-c import $LACKING") exit 1 ;;
"-c import "*) exit ;;
esac
echo "step, DCN_STRICT=$DCN_STRICT: $*"
case "$*" in *"$FAILING"*) exit 3 ;; esac
"""


@pytest.fixture
def check(tmp_path):
    """Runs the script with a Python that only says what it is asked; the report's summary."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(gpus: int, lacking: str = "nothing", failing: str = "nothing"):
        environment = dict(PYTHON=str(python), GPUS=str(gpus), LACKING=lacking, FAILING=failing)
        script = tmp_path / "scripts/gpu_check.sh"
        result = subprocess.run(
            [script], env=os.environ | environment, capture_output=True, text=True
        )
        report = tmp_path / "gpu_check.txt"
        return result, report.read_text() if report.exists() else None

    return run


def summary(report: str) -> dict[str, str]:
    lines = report.partition("=== summary\n")[2].splitlines()
    return {title: outcome.partition(",")[0] for title, outcome in (x.split(": ") for x in lines)}


def test_every_step_passes(check):
    result, report = check(2)
    assert result.returncode == 0
    assert set(summary(report).values()) == {"passed"}
    assert len(summary(report)) == report.count("step, DCN_STRICT=1: ") == 8
    for asked in ("pytest", "--device", "tools/train.py", "tools/test.py", "--nproc-per-node 2"):
        assert asked in report


def test_goes_on_after_a_step_that_fails(check):
    result, report = check(2, failing="pytest")
    assert result.returncode == 1
    outcomes = summary(report)
    failed = [title for title, outcome in outcomes.items() if outcome == "FAILED"]
    assert failed == ["operators' tests", "CUDA graph"]
    assert len(outcomes) == 8
    assert "exit status 3" in report


def test_steps_that_need_more_than_there_is_are_skipped(check):
    result, report = check(1, lacking="mmdet")
    assert result.returncode == 0
    skipped = [title for title, outcome in summary(report).items() if outcome == "skipped"]
    assert skipped == ["making images", "training", "evaluation", "training on two GPUs"]
    assert "training: skipped, no mmdet" in report


def test_without_a_gpu(check):
    result, report = check(0)
    assert result.returncode == 1
    assert "finds no GPU" in result.stderr
    assert report is None
