"""Which kernels the dispatcher has for the GPU, and when it has none."""

import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import dcn
from dcn.reference import deform_conv as reference


def test_the_gpu_has_kernels_of_its_own():
    pytest.importorskip("triton", reason="Triton is not installed")
    for name in dcn.triton.OPERATORS:
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


@pytest.mark.parametrize("works", [False, True])
def test_without_a_c_compiler_the_definition_runs_and_a_warning_says_so(works, monkeypatch):
    runtime = pytest.importorskip("triton.runtime", reason="Triton is not installed")

    class Active:
        def get_current_device(self):
            if not works:
                raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(runtime, "driver", SimpleNamespace(active=Active()))
    dcn.triton.launches.cache_clear()
    called = []
    monkeypatch.setattr(reference, "forward", lambda *args: called.append("reference"))
    kernels = pytest.importorskip("dcn.triton.deform_conv")
    monkeypatch.setattr(kernels, "forward", lambda *args: called.append("kernels"))
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    on_gpu = SimpleNamespace(is_cuda=True)
    try:
        if works:
            dcn.triton.operator("deform_conv2d")(on_gpu)
        else:
            with pytest.warns(UserWarning, match="Failed to find C compiler"):
                dcn.triton.operator("deform_conv2d")(on_gpu)
    finally:
        dcn.triton.launches.cache_clear()
    assert called == ["kernels" if works else "reference"]
