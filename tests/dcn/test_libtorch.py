"""dcn's operators for programs without Python: csrc/libtorch, and docs/cpp, which builds it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dcn
from dcn import native
from dcn.deform_kernel.cpu import _has_kernel
from dcn.registration import OPERATORS
from tests.dcn import strategies
from tests.dcn.definition import OPERATOR_CASES

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(native.kernels is None, reason="the CPU kernels are not built"),
    pytest.mark.skipif(
        not (shutil.which("cmake") and shutil.which("g++")), reason="no CMake, or no compiler"
    ),
]
fast = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def build(folder, *targets, flags=""):
    """docs/cpp as its README says."""
    configure = [f"-DLIBTORCH={Path(torch.__file__).parent}", f"-DCMAKE_CXX_FLAGS={flags}"]
    subprocess.run(["cmake", "-S", ROOT / "docs/cpp", "-B", folder, *configure], check=True)
    subprocess.run(["cmake", "--build", folder, "--target", *targets], check=True)
    return folder


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """In a namespace of their own: this process has Python's by the name of dcn."""
    flags = "-O1 -Ddcn=dcn_libtorch"
    folder = build(tmp_path_factory.mktemp("operators"), "dcn_operators", flags=flags)
    torch.ops.load_library(folder / "libdcn_operators.so")
    return torch.ops.dcn_libtorch


@pytest.mark.parametrize("name", OPERATOR_CASES)
def test_an_operator_has_the_schema_of_python(name, operators):
    schema = str(getattr(operators, name).default._schema)
    assert schema == f"dcn_libtorch::{name}({OPERATORS[name].arguments}) -> Tensor"


@fast
@given(data=st.data())
@pytest.mark.parametrize("name", OPERATOR_CASES)
def test_an_operator_is_that_of_python(name, data, operators):
    case = data.draw(getattr(strategies, OPERATOR_CASES[name].strategy)())
    tensors, _ = OPERATOR_CASES[name].tensors(case)
    arguments = (*tensors.values(), *OPERATOR_CASES[name].settings(case))
    if name == "local_deform_kernel" and not _has_kernel(*arguments[:6]):
        with pytest.raises(RuntimeError, match=r"need Python"):
            operators.local_deform_kernel(*arguments)
        return
    found, expected = getattr(operators, name)(*arguments), getattr(torch.ops.dcn, name)(*arguments)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found.stride() == expected.stride()
