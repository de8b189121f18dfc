import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(tmp_path):
    """Calls the script; what srun was given, or what the script said."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)

    def run(*args, **environment):
        path = f"{tmp_path}:{os.environ['PATH']}"
        return subprocess.run(
            [ROOT / "scripts/slurm_train.sh", *args],
            env=os.environ | environment | {"PATH": path},
            capture_output=True,
            text=True,
        )

    return run


def test_sixteen_gpus_on_two_nodes(call):
    result = call("gpu", "mdconv", "a.py", "16", "--work-dir", "my dir", SRUN_ARGS="--qos=high -v")
    assert result.stdout.splitlines() == [
        *("--partition=gpu", "--job-name=mdconv", "--gres=gpu:8", "--ntasks=16"),
        *("--ntasks-per-node=8", "--cpus-per-task=5", "--kill-on-bad-exit=1", "--qos=high", "-v"),
        *("python", "-u", f"{ROOT}/scripts/../tools/train.py", "a.py", "--launcher", "slurm"),
        *("--work-dir", "my dir"),
    ]


def test_fewer_gpus_than_a_node_has(call):
    lines = call("gpu", "job", "a.py", "2", "--resume").stdout.splitlines()
    assert {"--gres=gpu:2", "--ntasks=2", "--ntasks-per-node=2"} <= set(lines)
    assert lines[-1] == "--resume"


def test_eight_gpus_unless_told(call):
    lines = call("gpu", "job", "a.py", "--resume", GPUS_PER_NODE="4").stdout.splitlines()
    assert {"--gres=gpu:4", "--ntasks=8", "--ntasks-per-node=4"} <= set(lines)
    assert lines[-1] == "--resume"


def test_too_few_arguments_say_what_is_expected(call):
    result = call("gpu")
    assert result.returncode == 2
    assert "PARTITION JOB CONFIG [GPUS]" in result.stderr
