import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "download_coco.sh"
ZIPS = {
    "annotations": "annotations/annotations_trainval2017.zip",
    "val2017": "zips/val2017.zip",
    "train2017": "zips/train2017.zip",
}

pytestmark = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("unzip")), reason="curl or unzip is not installed"
)


@pytest.fixture
def mirror(tmp_path):
    """A small mirror of the three zips, and a file of their checksums."""
    root = tmp_path / "mirror"
    checksums = []
    for folder, name in ZIPS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(f"{folder}/content.txt", folder * 1000)
        checksums.append(f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n")
    (root / "MD5SUMS").write_text("".join(checksums))
    return root


def download(mirror, out, **environment):
    return subprocess.run(
        [SCRIPT, out],
        env={
            **os.environ,
            "COCO_URL": mirror.as_uri(),
            "COCO_CHECKSUMS": str(mirror / "MD5SUMS"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


def contents(out):
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def executable(path, script):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"{path.parent}:{os.environ['PATH']}"


def test_downloads_and_unpacks(mirror, tmp_path):
    out = tmp_path / "a folder" / "coco"
    result = download(mirror, out)
    assert result.returncode == 0, result.stderr
    assert contents(out) == {f"{folder}/content.txt" for folder in ZIPS}
    assert (out / "train2017" / "content.txt").read_text() == "train2017" * 1000


def test_a_second_run_does_nothing(mirror, tmp_path):
    out = tmp_path / "coco"
    download(mirror, out)
    shutil.rmtree(mirror / "zips")
    result = download(mirror, out)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("already there") == 3


def test_goes_on_after_an_interrupted_download(mirror, tmp_path):
    out = tmp_path / "coco"
    out.mkdir()
    whole = (mirror / ZIPS["val2017"]).read_bytes()
    (out / "val2017.zip.part").write_bytes(whole[: len(whole) // 2])
    result = download(mirror, out)
    assert result.returncode == 0, result.stderr
    assert contents(out) == {f"{folder}/content.txt" for folder in ZIPS}


def test_does_not_ask_for_bytes_after_the_last(mirror, tmp_path):
    # A web server would answer that with an error.
    out = tmp_path / "coco"
    out.mkdir()
    shutil.copy(mirror / ZIPS["val2017"], out / "val2017.zip.part")
    path = executable(
        tmp_path / "bin" / "curl",
        'case "$*" in *--output*zips/val2017.zip) exit 22;; '
        f'esac\nexec {shutil.which("curl")} "$@"',
    )
    result = download(mirror, out, PATH=path)
    assert result.returncode == 0, result.stderr


def test_keeps_the_bytes_it_has(mirror, tmp_path):
    out = tmp_path / "coco"
    out.mkdir()
    whole = (mirror / ZIPS["val2017"]).read_bytes()
    (out / "val2017.zip.part").write_bytes(b"?" * (len(whole) // 2))
    result = download(mirror, out)
    assert result.returncode == 1
    assert "val2017.zip has a wrong checksum" in result.stderr


def test_keeps_a_download_that_stopped(mirror, tmp_path):
    out = tmp_path / "coco"
    path = executable(
        tmp_path / "bin" / "curl",
        f'case "$*" in *--output*zips/val2017.zip) printf PK > "{out}/val2017.zip.part"; exit 18;; '
        f'esac\nexec {shutil.which("curl")} "$@"',
    )
    result = download(mirror, out, PATH=path)
    assert result.returncode == 1
    assert "zips/val2017.zip stopped" in result.stderr
    assert (out / "val2017.zip.part").read_bytes() == b"PK"
    assert download(mirror, out).returncode == 0


def test_goes_on_after_an_interrupted_unpacking(mirror, tmp_path):
    out = tmp_path / "coco"
    (out / "train2017.part" / "train2017").mkdir(parents=True)
    (out / "train2017.part" / "train2017" / "half.txt").write_text("half")
    shutil.copy(mirror / ZIPS["train2017"], out / "train2017.zip")
    result = download(mirror, out)
    assert result.returncode == 0, result.stderr
    assert contents(out) == {f"{folder}/content.txt" for folder in ZIPS}


def test_refuses_and_removes_a_wrong_checksum(mirror, tmp_path):
    out = tmp_path / "coco"
    with open(mirror / ZIPS["train2017"], "r+b") as file:
        file.write(b"broken")
    result = download(mirror, out)
    assert result.returncode == 1
    assert "zips/train2017.zip has a wrong checksum" in result.stderr
    assert contents(out) == {"annotations/content.txt", "val2017/content.txt"}


def test_the_checksums_are_those_of_coco(mirror, tmp_path):
    result = download(mirror, tmp_path / "coco", COCO_CHECKSUMS="")
    assert result.returncode == 1
    assert "annotations_trainval2017.zip has a wrong checksum" in result.stderr


def test_names_what_cannot_be_reached(mirror, tmp_path):
    (mirror / ZIPS["val2017"]).unlink()
    result = download(mirror, tmp_path / "coco")
    assert result.returncode == 1
    assert f"cannot reach {mirror.as_uri()}/zips/val2017.zip" in result.stderr


def test_refuses_a_disk_without_room(mirror, tmp_path):
    path = executable(
        tmp_path / "bin" / "df", "echo Filesystem 1024-blocks Used Available\necho disk 9 9 1"
    )
    result = download(mirror, tmp_path / "coco", PATH=path)
    assert result.returncode == 1
    assert "annotations_trainval2017.zip and what it holds needs" in result.stderr


def test_names_a_missing_tool(mirror, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "curl"):
        (tools / tool).symlink_to(shutil.which(tool))
    result = subprocess.run(
        [shutil.which("bash"), SCRIPT, tmp_path / "coco"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "unzip is not installed" in result.stderr
