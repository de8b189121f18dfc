"""Which kernels the dispatcher has for the GPU, and when it has none."""

import subprocess
import sys
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import dcn
from dcn.deform_conv import definition
from dcn.registration import OPERATORS


def test_the_gpu_has_kernels_of_its_own():
    pytest.importorskip("triton", reason="Triton is not installed")
    for name in ("deform_conv2d", "deform_roi_pool_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dcn::{name}", "CUDA")


def imported(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_dcn_does_not_import_triton():
    assert imported("import sys, dcn; print('triton' in sys.modules)").stdout == "False\n"


def test_a_warning_where_triton_is_not_installed():
    without = "import sys; sys.modules['triton'] = None; import dcn, torch;"
    key = "torch._C._dispatch_has_kernel_for_dispatch_key('dcn::deform_conv2d', 'CUDA')"
    run = imported(f"{without} print({key})")
    assert run.stdout == "False\n"
    assert run.stderr.count("Triton is not installed") == (torch.version.cuda is not None)


@pytest.fixture
def called(monkeypatch):
    """A fresh process on a GPU where all is well; which of its two operators a call reaches."""
    runtime = pytest.importorskip("triton.runtime", reason="Triton is not installed")
    kernels = pytest.importorskip("dcn.deform_conv.gpu")
    active = SimpleNamespace(get_current_device=lambda: 0)
    monkeypatch.setattr(runtime, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(dcn.gpu, "_failed", set())
    monkeypatch.delenv("DCN_STRICT", raising=False)
    called = []
    monkeypatch.setattr(definition, "forward", lambda *args: called.append("definition"))
    monkeypatch.setattr(kernels, "forward", lambda *args: called.append("kernels"))
    caches = dcn.gpu.launches, dcn.gpu.supports
    for cache in caches:
        cache.cache_clear()
    yield called
    for cache in caches:
        cache.cache_clear()


def call():
    forward, _ = dcn.gpu.kernels(OPERATORS["deform_conv2d"])
    forward(SimpleNamespace(is_cuda=True, get_device=lambda: 0))


def raising(error):
    def function(*args):
        raise error

    return function


def test_kernels_run(called):
    call()
    assert called == ["kernels"]


def no_compiler(monkeypatch):
    from triton.runtime import driver

    error = RuntimeError("Failed to find C compiler.")
    monkeypatch.setattr(driver.active, "get_current_device", raising(error))


def old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))


def broken_kernel(monkeypatch):
    from dcn.deform_conv import gpu

    error = dcn.gpu.KernelError("PTXASError: no such instruction")
    monkeypatch.setattr(gpu, "forward", raising(error))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (no_compiler, "Failed to find C compiler"),
        (old_gpu, r"Some GPU has compute capability 7\.0, and the kernels need 7\.5"),
        (broken_kernel, "deform_conv2d has failed .PTXASError: no such instruction"),
    ],
)
def test_where_kernels_cannot_run_the_definition_does(broken, reason, called, monkeypatch):
    """A warning says so once; DCN_STRICT=1 makes an error of it."""
    broken(monkeypatch)
    monkeypatch.setenv("DCN_STRICT", "1")
    for _ in range(2):
        with pytest.raises(dcn.gpu.KernelError, match=reason):
            call()
    monkeypatch.delenv("DCN_STRICT")
    with pytest.warns(UserWarning, match=reason):
        call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    assert called == ["definition"] * 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError()])
def test_other_errors_are_raised(error, called, monkeypatch):
    from dcn.deform_conv import gpu

    with monkeypatch.context() as patch:
        patch.setattr(gpu, "forward", raising(error))
        with pytest.raises(type(error)):
            call()
    call()
    assert called == ["kernels"]
