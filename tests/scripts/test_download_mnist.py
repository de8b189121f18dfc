import functools
import gzip
import os
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "download_mnist.sh"


@pytest.fixture
def mirror(tmp_path):
    """A folder, and its address."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def download(out, url):
    environment = {**os.environ, "MNIST_URL": url, "no_proxy": "127.0.0.1"}
    return subprocess.run([SCRIPT, out], env=environment, capture_output=True, text=True)


def test_a_file_of_another_checksum_is_refused(mirror, tmp_path):
    folder, url = mirror
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"not MNIST"))
    done = download(tmp_path / "data", url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("got: File not found or corrupted.")
    assert not list((tmp_path / "data" / "MNIST" / "raw").glob("*-ubyte"))


def test_a_mirror_without_it(mirror, tmp_path):
    done = download(tmp_path / "data", mirror[1])
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: Error downloading train-images-idx3-ubyte.gz: Tried http://127")
    assert "404" in last
