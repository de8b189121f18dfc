"""Without a GPU its kernels run in Triton's interpreter, on tensors of the CPU.

--kernels triton has the tests of the operators run on them too, instead of the CPU's kernels:
pytest tests/dcn/test_deform_conv.py tests/dcn/test_deform_roi_pool.py --kernels triton
"""

import ast
import functools
import gc
import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.utils._pytree import tree_map_only

import dcn
from dcn.registration import OPERATORS
from tests.dcn import interpreter

if "PYTEST_XDIST_WORKER" in os.environ:  # pytest -n: a core for each
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton


# A kernel that fails is to fail its test, not to be replaced by the definition.
os.environ.setdefault("DCN_STRICT", "1")


def pytest_addoption(parser):
    parser.addoption("--kernels", choices=["cpu", "triton"], default="cpu")
    parser.addoption("--store-mmcv-values", action="store_true")


def pytest_collection_finish():
    gc.freeze()  # mmengine collects garbage for each dataset: spare it all that was imported


@pytest.fixture(autouse=True, scope="session")
def quick_configs():
    """Spares what takes mmengine longer than a small training.

    It reads a hundred YAML files for each base from mmdet, and formats the config of every run.
    """
    config = sys.modules.get("mmengine.config")
    if config is None:  # the operators alone are tested
        yield
        return

    def unformatted(text, **_):
        ast.parse(text)
        return text, True

    with (
        mock.patch.object(config.utils, "load", functools.cache(config.utils.load)),
        mock.patch("yapf.yapflib.yapf_api.FormatCode", unformatted),
    ):
        yield


@pytest.fixture(autouse=True)
def strict_float32():
    """On a GPU, float32 is not to be multiplied as TF32."""
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True


@pytest.fixture
def interpreted(request):
    """Whether tensors of the CPU are served by the GPU's kernels."""
    return request.config.getoption("--kernels") == "triton"


@pytest.fixture(autouse=True)
def kernels(interpreted):
    if not interpreted:
        yield
        return
    interpreter.prepare()
    library = torch.library.Library("dcn", "IMPL")
    for operator in OPERATORS.values():
        if operator.has("gpu"):
            operator.add_kernels("CPU", *dcn.gpu.kernels(operator), library)
    yield
    library._destroy()


class Everything(dict):
    """Says of every key that it is there; `get` gives the default."""

    def __contains__(self, key):
        return True


@pytest.fixture(autouse=True)
def fixed_tile_sizes(monkeypatch):
    """On a GPU, timing them would take minutes a test."""
    if torch.cuda.is_available() and importlib.util.find_spec("triton"):
        tuning = importlib.import_module("dcn.gpu.launch")
        monkeypatch.setattr(tuning, "_chosen", Everything())


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def same_bits(device, interpreted, request):
    """The same call gives the same bits: of a CPU's kernels always, of a GPU's in this mode."""
    if device == "cuda" or interpreted:
        request.getfixturevalue("deterministic")


@pytest.fixture
def nondet_tol(device, interpreted):
    """Of gradcheck in float64; the mode above would have it check the definition of pooling."""
    return 1e-12 if device == "cuda" or interpreted else 0.0


def mmcv_is_compiled() -> bool:
    try:
        return not importlib.import_module("mmcv._ext").__file__.endswith(".py")
    except ImportError:
        return False


@pytest.fixture(params=["stored", "live"])
def from_mmcv(request):
    """Takes a function that runs mmcv's operators; gives what it returns now, or did when stored.

    Where mmcv is compiled (./scripts/setup.sh --mmcv-ops), this stores it anew in mmcv_values.pt:
    pytest tests/dcn tests/models -k mmcv --store-mmcv-values
    """
    live, store = request.param == "live", request.config.getoption("--store-mmcv-values")
    if (live or store) and not mmcv_is_compiled():
        pytest.skip("mmcv has no compiled operators here: ./scripts/setup.sh --mmcv-ops")
    file = Path(__file__).with_name("mmcv_values.pt")
    name = request.node.nodeid.replace("stored-", "").replace("-stored", "").replace("[stored]", "")

    def values(compute):
        if live:
            return compute()
        stored = torch.load(file, weights_only=True) if file.exists() else {}
        if store:
            # A view would be saved with all of its storage.
            stored[name] = tree_map_only(torch.Tensor, torch.clone, compute())
            torch.save(stored, file)
        return stored[name]

    return values


@pytest.fixture
def warnings(request):
    """The messages that mmengine's current logger receives."""
    from mmengine.logging import MMLogger  # not installed where the operators alone are tested

    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_instance(request.node.name)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def insisting_skip(reason):
    """Skip what needs more than is installed here, unless DCN_REQUIRE_BROWSER=1 insists on it."""
    (pytest.fail if os.environ.get("DCN_REQUIRE_BROWSER") else pytest.skip)(reason)


@pytest.fixture
def tab():
    """An empty page of 1280 × 800 pixels in a headless Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if not (sync_playwright and chromium):
        insisting_skip("no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page(viewport=dict(width=1280, height=800))
        browser.close()
