"""Without a GPU its kernels run in Triton's interpreter, on tensors of the CPU.

--kernels triton has the tests of the operators run on them too, instead of the CPU's kernels:
pytest tests/dcn/test_deform_conv.py tests/dcn/test_deform_roi_pool.py --kernels triton
"""

import os

import pytest
import torch

import dcn
from tests.dcn.interpreter import mend_bfloat16

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton


def pytest_addoption(parser):
    parser.addoption("--kernels", choices=["cpu", "triton"], default="cpu")


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
    mend_bfloat16()
    library = torch.library.Library("dcn", "IMPL")
    for name in dcn.triton.OPERATORS:
        library.impl(name, dcn.triton.operator(name), "CPU", allow_override=True)
    yield
    library._destroy()
