"""dcn's operators for programs without Python: csrc/libtorch, and docs/cpp, which builds it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

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
fast = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def build(folder, target="all", flags="-O1"):
    """docs/cpp as its README says, but sooner; sanitize.sh sets flags, too."""
    environment = os.environ | {"CXXFLAGS": f"{os.environ.get('CXXFLAGS', '')} {flags}"}
    libtorch = f"-DLIBTORCH={Path(torch.__file__).parent}"
    for step in (
        ["-S", ROOT / "docs/cpp", "-B", folder, libtorch],
        ["--build", folder, "-t", target],
    ):
        subprocess.run(["cmake", *step], check=True, env=environment)


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """In a namespace of their own: this process has Python's by the name of dcn."""
    folder = tmp_path_factory.mktemp("operators")
    build(folder, "dcn_operators", flags="-O1 -Ddcn=dcn_libtorch")
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
    strides = zip(found.shape, found.stride(), expected.stride(), strict=True)
    assert found.numel() == 0 or all(size == 1 or a == b for size, a, b in strides)


@fast
@given(data=st.data())
@pytest.mark.parametrize("name", OPERATOR_CASES)
def test_what_python_refuses_is_refused_by_name(name, data, operators):
    case = data.draw(getattr(strategies, OPERATOR_CASES[name].strategy)())
    tensors, _ = OPERATOR_CASES[name].tensors(case)
    spoiled = data.draw(st.sampled_from([k for k, t in tensors.items() if t is not None]))
    shape = list(tensors[spoiled].shape)
    shape[data.draw(st.integers(0, len(shape) - 1))] += data.draw(st.sampled_from([-1, 1]))
    assume(min(shape) >= 0)
    tensors[spoiled] = torch.zeros(shape, dtype=case["dtype"])
    arguments = (*tensors.values(), *OPERATOR_CASES[name].settings(case))
    try:
        getattr(torch.ops.dcn, name)(*arguments)
    except ValueError as error:
        argument = re.match(r"\w+", str(error))[0]
    else:
        assume(False)
    with pytest.raises(RuntimeError, match=rf", {argument}.*: expected"):
        getattr(operators, name)(*arguments)


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("input", torch.zeros(1, 2, 5, 5, dtype=torch.int64), "a floating-point tensor"),
        ("input", torch.zeros(2, 5, 5), "four dimensions"),
        ("input", torch.zeros(1, 2, 1, 1), "more pixels"),
        ("offset", torch.zeros(18, 3, 3), "four dimensions"),
        ("weight", torch.zeros(4, 0, 3, 3), "(C_out, 2 / groups, h, w)"),
        ("stride", [0, 1], "two numbers from 1"),
        ("dilation", [1, 2**40], "two numbers from 1"),
        ("padding", [-1, 0], "two numbers from 0"),
    ],
)
def test_what_would_crash_is_refused(argument, value, expected, operators):
    arguments = dict(
        input=torch.zeros(1, 2, 5, 5),
        offset=torch.zeros(1, 18, 3, 3),
        weight=torch.zeros(4, 2, 3, 3),
        bias=None,
        mask=None,
        stride=[1, 1],
        padding=[0, 0],
        dilation=[1, 1],
    )
    assert operators.deform_conv2d(**arguments).shape == (1, 4, 3, 3)
    with pytest.raises(RuntimeError, match=re.escape(f", {argument}: expected {expected}")):
        operators.deform_conv2d(**arguments | {argument: value})


class Everything(nn.Module):
    """A detector of sorts that calls every operator, on maps of either layout and of 16 bits."""

    def __init__(self):
        super().__init__()
        depthwise = dict(kernel_size=3, padding=1, groups=16)
        self.plain = dcn.DeformConv2d(3, 16, 3, padding=1, modulated=False)
        self.modulated = dcn.DeformConv2d(16, 16, 3, padding=1, deform_groups=2)
        self.local = dcn.LocalDeformKernel2d(4, 16, 16, rotation_groups=2, **depthwise)
        self.moving = dcn.DeformKernelConv2d(4, 16, 16, **depthwise)
        self.v3, self.v4 = dcn.DCNv3(16, group=2), dcn.DCNv4(16, group=2, remove_center=True)
        self.pool = dcn.DeformRoIPool(3, 16, fc_channels=8)
        self.head = nn.Linear(16 * 9 + 3 * 9, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.15)
        corner = torch.rand(12, 2) * 12
        rois = torch.cat((torch.zeros(12, 1), corner, corner + 8), 1)
        self.register_buffer("rois", rois)
        self.register_buffer("offset", torch.randn(1, 18, 24, 32).bfloat16())
        self.register_buffer("weight", torch.randn(3, 3, 3, 3).bfloat16() / 256)

    def forward(self, images):
        x = self.plain(images.float() / 255).contiguous(memory_format=torch.channels_last)
        x = self.moving(self.local(self.modulated(x)))
        x = self.v4(self.v3(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        narrow = dcn.deform_conv2d(images.bfloat16(), self.offset, self.weight, padding=1)
        narrow = dcn.deform_roi_pool(narrow, self.rois, 3)
        pooled = torch.cat((self.pool(x, self.rois), narrow.float()), 1)
        *delta, score = self.head(pooled.flatten(1)).unbind(1)
        boxes, scores = self.rois[:, 1:] + torch.stack(delta, 1), score.sigmoid()
        kept = torchvision.ops.nms(boxes, scores, 0.3)
        scores = scores * torch.zeros_like(scores).index_fill(0, kept, 1)
        return boxes[None], scores[None], torch.arange(12)[None]


@pytest.mark.slow
def test_a_program_without_python_finds_what_python_does(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model, images = Everything().eval(), torch.randint(256, (1, 3, 24, 32), dtype=torch.uint8)
    with torch.no_grad():
        boxes, scores, labels = (found[0] for found in model(images))
        program = torch.export.export(model, (images,))
    package = torch._inductor.aoti_compile_and_package(program, package_path=f"{tmp_path}/m.pt2")
    build(tmp_path)
    libraries = [tmp_path / "libdcn_operators.so", tmp_path / "libtorch_python.so"]
    libraries.append(Path(torchvision.__file__).with_name("_C.so"))

    def detect(images):
        file = tmp_path / "image.ppm"
        size = f"{images.shape[3]} {images.shape[2]}"
        pixels = images[0].permute(1, 2, 0).numpy().tobytes()
        file.write_bytes(f"P6\n{size}\n255\n".encode() + pixels)
        command = [tmp_path / "detect", package, file, "uint8", *libraries]
        debug = dict(LD_DEBUG="files", LD_DEBUG_OUTPUT=f"{tmp_path}/loaded")
        return subprocess.run(command, capture_output=True, text=True, env=debug)

    run = detect(images)
    assert run.returncode == 0, run.stderr
    found = torch.tensor(
        [[float(number) for number in line.split()] for line in run.stdout.splitlines()]
    )
    order = scores.argsort(descending=True)[: int((scores > 0).sum())]
    expected = torch.cat((labels[order, None], scores[order, None], boxes[order]), 1)
    assert 1 < len(expected) < len(scores)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (loaded,) = tmp_path.glob("loaded.*")
    assert "libdcn_operators" in loaded.read_text()
    assert "libpython" not in loaded.read_text()

    run = detect(images[:, :, 1:])
    assert run.returncode == 1
    assert "unmatched dim value" in run.stderr
