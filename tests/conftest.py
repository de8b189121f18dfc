"""Without a GPU its kernels run in Triton's interpreter, on tensors of the CPU.

--kernels triton has the tests of the operators run on them too, instead of the CPU's kernels:
pytest tests/dcn/test_deform_conv.py tests/dcn/test_deform_roi_pool.py --kernels triton
"""

import importlib.util
import os

import pytest
import torch

import dcn

if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    from tests.dcn.interpreter import mend_bfloat16

    mend_bfloat16()


def pytest_addoption(parser):
    parser.addoption("--kernels", choices=["cpu", "triton"], default="cpu")


@pytest.fixture(autouse=True)
def strict_float32():
    """On a GPU, float32 is not to be multiplied as TF32."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture
def interpreted(request):
    """Whether tensors of the CPU are served by the GPU's kernels."""
    return request.config.getoption("--kernels") == "triton"


@pytest.fixture(autouse=True)
def kernels(interpreted):
    if not interpreted:
        yield
        return
    library = torch.library.Library("dcn", "IMPL")
    for name in dcn.triton.OPERATORS:
        library.impl(name, dcn.triton.operator(name), "CPU", allow_override=True)
    yield
    library._destroy()
