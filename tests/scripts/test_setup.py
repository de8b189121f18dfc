"""scripts/setup.sh in a copy of its own, on a PATH that holds only what a test puts there."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = "awk bash cat cp dirname df find flock grep mkdir rm sha256sum tail"

# Python, but that it only notes what pip was asked for, and that mmcv then is a folder. $TEST/fail
# holds a pattern of calls that fail.
RECORDING_PYTHON = f"""
calls=$TEST/calls
case "$*" in
"-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "#!$3/bin/python" >"$3/bin/pip" ;;
"-m pip "*|*mmcv.ops*|*"import dcn"|*mmdet*)
    echo "$*" >>"$calls"
    site=$(dirname "$0")/../lib/python3.11/site-packages
    case "$*" in
    *force-reinstall*) echo >"$site/mmcv/_ext.compiled.so" ;;
    *onedl-mmcv*) mkdir -p "$site/mmcv" ;;
    esac
    ! grep -qsf "$TEST/fail" <<<"$*" ;;
*) exec {sys.executable} "$@" ;;
esac
"""


class Machine:
    """A machine with a compiler, disk and Python, of which a test takes what it likes."""

    def __init__(self, folder):
        self.repo = folder / "repo with a space"
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.repo / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts/setup.sh", self.repo / "scripts")
        shutil.copytree(ROOT / "dcn/csrc", self.repo / "dcn/csrc")
        (self.repo / "models").mkdir()
        for name in ("requirements.txt", "pyproject.toml", "setup.py", "models/mmcv_ext.py"):
            shutil.copy(ROOT / name, self.repo / name)
        for tool in TOOLS.split():
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.command("c++", "exit 0")
        self.command("python3", f'exec {sys.executable} "$@"')
        self.command("df", "echo header; echo disk 0 0 99999999 0% /")
        self.calls = folder / "calls"
        self.fail = folder / "fail"
        self.env = {"PATH": str(self.bin), "HOME": str(folder), "TEST": str(folder)}

    def command(self, name, body):
        """Put a bash script in place of command ``name``."""
        file = self.bin / name
        file.unlink(missing_ok=True)
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)
        return file

    def start(self, *args, **env):
        return subprocess.Popen(
            ["./setup.sh", *args],
            cwd=self.repo / "scripts",  # from wherever it is called
            env=self.env | env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def setup(self, *args, **env):
        """Its exit status and what it printed."""
        process = self.start(*args, **env)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    @property
    def mmcv(self):
        return self.repo / ".venv/lib/python3.11/site-packages/mmcv"

    def pip_calls(self):
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return calls


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def assert_refused(result, message):
    status, output = result
    assert status == 1
    assert message in output
    assert "virtual environment" not in output  # refused before any work


def test_no_compiler(machine):
    (machine.bin / "c++").unlink()
    assert_refused(machine.setup(), "no C++ compiler (c++)")


def test_no_disk(machine):
    machine.command("df", "echo header; echo disk 0 0 3145728 0% /")
    assert_refused(machine.setup(), f"3 GB free in {machine.repo}; 10 GB are needed")


def test_no_python(machine):
    (machine.bin / "python3").unlink()
    assert_refused(machine.setup(), "no Python 3.10, 3.11 or 3.12 found (python3 is missing)")


def test_unsuitable_python(machine):
    old = machine.command("python3", "echo 3.9")
    assert_refused(machine.setup(), "no Python 3.10, 3.11 or 3.12 found (python3 is 3.9)")
    assert_refused(machine.setup(PYTHON=str(old)), f"({old} is 3.9)")
    assert_refused(machine.setup(PYTHON="nothing"), "(nothing is missing)")


def test_takes_a_suitable_python_beside_an_unsuitable_one(machine):
    machine.command("python3", "echo 3.13")
    machine.command("python3.11", f'exec {sys.executable} "$@"')
    (machine.bin / "c++").unlink()
    assert_refused(machine.setup(), "no C++ compiler")


def test_no_venv_module(machine):
    machine.command("python3", f'[[ $2 != *ensurepip* ]] && exec {sys.executable} "$@"')
    assert_refused(machine.setup(), "has no venv module with pip. Debian, Ubuntu: apt install")


def test_unknown_argument(machine):
    assert_refused(machine.setup("--gpu"), "unknown argument: --gpu; the only one is --mmcv-ops")


def test_no_network(machine):
    (machine.repo / "requirements.txt").write_text(
        "six==1.17.0\nonedl-mmcv==2.3.6\nonedl-mmdetection==3.5.1\nimaug==0.4.3\n"
    )
    pip = {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
    }
    status, output = machine.setup(**pip)
    assert status == 1
    assert "Connection refused" in output
    assert "failed at: 2/4" in output
    assert "Once the cause (the network, the disk) is mended, run this again" in output


def test_does_nothing_when_done_and_starts_again_when_pins_change(machine):
    machine.command("python3", RECORDING_PYTHON)
    status, output = machine.setup()
    assert status == 0, output
    assert "1/4 virtual environment" in output
    packages, rest, nms, kernels, mmdet = machine.pip_calls()
    assert "install -r" in packages
    assert "--no-cache-dir --no-deps onedl-mmcv==2.3.6" in rest
    assert rest.endswith("onedl-mmdetection==3.5.1 imaug==0.4.3 -e .")
    assert "mmcv.ops.nms" in nms
    assert kernels == "-W error::UserWarning -c import dcn"
    assert "mmdet.apis" in mmdet
    assert (machine.mmcv / "_ext.py").read_text() == (ROOT / "models/mmcv_ext.py").read_text()

    assert machine.setup() == (0, "setup: .venv is ready\n")
    assert not machine.pip_calls()

    for changed, more in (("requirements.txt", "six==1.17.0"), ("dcn/csrc/common.h", "//")):
        with (machine.repo / changed).open("a") as file:
            file.write(f"{more}\n")
        status, output = machine.setup()
        assert status == 0
        assert "1/4" not in output
        assert machine.pip_calls()


def test_goes_on_after_a_failure(machine):
    machine.command("python3", RECORDING_PYTHON)
    machine.fail.write_text("onedl-mmcv")
    status, output = machine.setup()
    assert status == 1
    assert "failed at: 3/4" in output

    half = machine.repo / ".venv/lib/python3.11/site-packages/half.dist-info"
    half.mkdir(parents=True)
    machine.fail.unlink()
    status, output = machine.setup()
    assert status == 0
    assert "1/4" not in output
    assert not half.exists()


def test_compiled_operators_are_kept_and_made_once(machine):
    machine.command("python3", RECORDING_PYTHON)
    compiled = machine.mmcv / "_ext.compiled.so"
    machine.setup()
    assert not compiled.exists()
    status, output = machine.setup("--mmcv-ops")  # though the stamp says that all is ready
    assert status == 0, output
    assert compiled.exists()
    assert machine.setup("--mmcv-ops") == (0, "setup: .venv is ready\n")
    machine.pip_calls()

    (machine.repo / "requirements.txt").open("a").write("six==1.17.0\n")
    status, output = machine.setup()
    assert status == 0, output
    assert compiled.exists()
    assert not any("force-reinstall" in call for call in machine.pip_calls())


def test_compiled_operators_that_do_not_run_are_removed(machine):
    machine.command("python3", RECORDING_PYTHON)
    machine.setup("--mmcv-ops")
    machine.fail.write_text("mmcv.ops.nms")
    (machine.repo / "requirements.txt").open("a").write("six==1.17.0\n")
    status, output = machine.setup()
    assert status == 1  # the recorded NMS fails with the stand-in too
    assert "failed at: 4/4" in output
    assert not (machine.mmcv / "_ext.compiled.so").exists()


def test_remakes_a_venv_that_moved(machine):
    machine.command("python3", RECORDING_PYTHON)
    machine.setup()
    machine.repo = machine.repo.rename(machine.repo.with_name("moved"))
    status, output = machine.setup()
    assert status == 0
    assert "1/4 virtual environment" in output


def test_waits_for_another_setup(machine):
    (machine.bin / "c++").unlink()
    with (machine.repo / "scripts/setup.sh").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = machine.start()
        assert "another setup of this folder is at work" in process.stdout.readline()
    output, _ = process.communicate(timeout=300)
    assert "no C++ compiler" in output
