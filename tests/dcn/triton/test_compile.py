"""The kernels are compiled ahead of time, in processes of their own: here Triton interprets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TRAINED_TYPES = """
import json
from tools.benchmarks import kernels
print(json.dumps(kernels.run(every_tile=False, types=kernels.TRAINED_IN)))
"""


def last_line(*arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE.parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


def test_trained_types():
    """With the fixed tile sizes; with all of them: python tools/benchmark.py kernels."""
    rows = json.loads(last_line("-c", TRAINED_TYPES))
    assert len(rows) == 2 * 2 * 10
    for row in rows:
        assert row["spilled"] <= 64, row
        assert row["programs"] > 0, row
        multiplies = row["kernel"].startswith("deform_conv2d") and "list" not in row["kernel"]
        expected = {80: "mma", 90: "wgmma"}[row["capability"]] if multiplies else ""
        assert row["tensor_cores"] == expected, row
        if multiplies or row["kernel"] == "deform_roi_pool forward":
            assert row["wide_loads"] > 0, row


@pytest.mark.parametrize("index", ["int32", "int64"])
def test_unusual_arguments(index):
    assert last_line(str(HERE / "unusual_calls.py"), index) == str(3 * 6 + 2)
