"""The kernels are compiled ahead of time, in processes of their own: here Triton interprets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

HERE = Path(__file__).parent
TRAINED_TYPES = """
import json
from tools.benchmarks import kernels
print(json.dumps(kernels.run(every_tile=False, types=kernels.TRAINED_IN)))
"""


def last_line(*arguments: str, **environment: str) -> str:
    environment |= {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE.parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


@pytest.mark.slow
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
        # Of the four corners, or of a list's six first entries; and of the weight.
        least = {"forward": 8, "grad_offset": 10, "grad_weight": 8, "grad_input": 8}
        wide = least[row["kernel"].split()[1]] if multiplies else row["kernel"].endswith("forward")
        assert row["wide_loads"] >= wide, row


def test_unusual_arguments():
    assert last_line(str(HERE / "unusual_calls.py")) == str(3 * 6 + 2)


@pytest.mark.slow
def test_what_is_timed_and_compiled_when(tmp_path):
    """Once for each kind of call, not for each size of image; and never in the next process."""
    script = str(HERE / "pretended_gpu.py")
    first, *others = json.loads(last_line(script, TRITON_CACHE_DIR=str(tmp_path)))
    conv, pool = first, others[0]
    assert conv["timed"] == 4 * 6  # four kernels of six tile sizes
    assert pool["timed"] - conv["timed"] == 2 * 5
    same_conv, same_pool, larger_conv = others[1:]
    assert same_conv["loaded"] == same_pool["loaded"] == pool["loaded"]
    assert same_pool["timed"] == pool["timed"]
    assert same_conv["launched"] - pool["launched"] == 4 + 2
    assert same_pool["launched"] - same_conv["launched"] == 2
    # Another class of sizes is timed anew, with what is compiled already.
    assert larger_conv["timed"] - same_pool["timed"] == 4 * 6
    assert larger_conv["loaded"] == pool["loaded"]

    again = json.loads(last_line(script, TRITON_CACHE_DIR=str(tmp_path)))
    assert again[-1]["timed"] == 0
