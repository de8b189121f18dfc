"""The kernels are compiled ahead of time, in processes of their own: here Triton interprets."""

import importlib.util
import json
import os
import shutil
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
# As kernels.GPUS, which has 8.0 and 9.0.
OTHER_GPUS = """
import json
from tools.benchmarks import kernels
KB = 1024
kernels.GPUS = {
    75: (64 * KB, 64 * KB, 32),
    86: (100 * KB, 99 * KB, 48),
    89: (100 * KB, 99 * KB, 48),
    100: (228 * KB, 227 * KB, 64),
    120: (100 * KB, 99 * KB, 48),
}
print(json.dumps(kernels.run(every_tile=False, types=("bfloat16", "float32"))))
"""


def last_line(*arguments: str, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE.parents[2],
        env=inherited | environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


@pytest.mark.slow
def test_trained_types():
    """With the fixed tile sizes; with all of them: python tools/benchmark.py kernels."""
    rows = json.loads(last_line("-c", TRAINED_TYPES))
    assert len(rows) == 2 * 2 * 16
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


@pytest.mark.slow
def test_every_capability():
    """The fixed tile sizes compile, and a program has the shared memory that it wants."""
    rows = json.loads(last_line("-c", OTHER_GPUS))
    assert len(rows) == 2 * 5 * 16
    assert all(row["programs"] > 0 for row in rows), rows


def test_unusual_arguments():
    assert last_line(str(HERE / "unusual_calls.py")) == str(3 * 6 + 2 + 2 * 2 + 2 * 4)


@pytest.fixture
def pretended_gpu(tmp_path):
    """Runs pretended_gpu.py, with what Triton caches in `tmp_path`, and reads what it prints."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc, which Triton's launcher is built with")
    include = importlib.util.find_spec("triton.backends.nvidia").submodule_search_locations[0]
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-I", f"{include}/include"]
    out = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", *flags, HERE / "libcuda.c", "-o", out], check=True)

    def run(what: str):
        environment = dict.fromkeys(("TRITON_LIBCUDA_PATH", "TRITON_CACHE_DIR"), str(tmp_path))
        return json.loads(last_line(str(HERE / "pretended_gpu.py"), what, **environment))

    return run


@pytest.mark.slow
def test_what_is_timed_and_compiled_when(pretended_gpu):
    """Once for each kind of call, not for each size of image; and never in the next process."""
    first, *others = pretended_gpu("timings")
    conv, pool = first, others[0]
    assert conv["timed"] == 4 * 6  # four kernels of six tile sizes
    assert pool["timed"] - conv["timed"] == 2 * 5
    same_conv, same_pool, larger_conv, other_gpu = others[1:]
    assert same_conv["loaded"] == same_pool["loaded"] == pool["loaded"]
    assert same_pool["timed"] == pool["timed"]
    # Each kernel once, and that which makes lists twice.
    assert same_conv["launched"] - pool["launched"] == 4 + 2
    assert same_pool["launched"] - same_conv["launched"] == 2
    # Another class of sizes is timed anew, with what is compiled already; and so is another GPU.
    assert larger_conv["timed"] - same_pool["timed"] == 4 * 6
    assert other_gpu["timed"] - larger_conv["timed"] == 2 * 5
    assert other_gpu["loaded"] == larger_conv["loaded"] == pool["loaded"]

    again = pretended_gpu("timings")
    assert again[-1]["timed"] == 0


def test_launches(pretended_gpu):
    """They have their arguments, which the script compares; and what fails of them is told."""
    parts = ["no memory is left to time", "the launch failed"]
    for text, part in zip(pretended_gpu("failures"), sorted(parts * 2), strict=True):
        assert part in text
