"""dcn.deform_roi_pool and dcn.DeformRoIPool against torchvision, a loop and their contract."""

import math
import shutil

import pytest
import torch
from torch import Tensor, nn

import dcn

roi_align = pytest.importorskip("torchvision.ops").roi_align

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
on_devices = pytest.mark.parametrize("device", DEVICES)
sampling_ratios = pytest.mark.parametrize("sampling_ratio", [0, 2])

SIZE = (12, 15)  # of the feature map
SCALE = 0.25
ROIS = {
    "inside": (0, 8.3, 6.1, 41.7, 37.2),
    "other_image": (1, 3.2, 11.4, 20.9, 14.8),
    "whole_image": (0, 0.0, 0.0, 60.0, 48.0),
    "left_and_top": (1, -14.3, -9.6, 12.2, 17.3),
    "right_and_bottom": (0, 44.6, 30.3, 70.8, 59.9),
    "tiny": (1, 22.4, 17.7, 23.1, 18.3),
    "no_area": (0, 20.3, 20.3, 20.3, 20.3),
    "no_width": (1, 20.3, 10.1, 20.3, 30.6),
    "outside": (0, 100.2, 90.7, 131.1, 125.5),
    "larger_than_image": (1, -20.2, -17.7, 81.4, 67.3),
}
GEOMETRY = {"output_size": (2, 3), "spatial_scale": SCALE, "gamma": 0.15}


def make_tensors(
    offset: bool = True,
    mask: bool = True,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    rois: tuple[tuple[float, ...], ...] = tuple(ROIS.values()),
    images: int = 2,
    channels: int = 3,
) -> dict[str, Tensor]:
    """Random arguments. Offsets of standard deviation 2: 0.3 of the RoI's size."""
    gen = torch.Generator().manual_seed(7)
    k = len(rois)
    tensors = {
        "input": torch.randn(images, channels, *SIZE, generator=gen),
        "rois": torch.tensor(rois, dtype=torch.float64).view(k, 5),
    }
    if offset:
        tensors["offset"] = 2 * torch.randn(k, 2, *GEOMETRY["output_size"], generator=gen)
    if mask:
        tensors["mask"] = torch.rand(k, 1, *GEOMETRY["output_size"], generator=gen)
    return {name: t.to(device, dtype) for name, t in tensors.items()}


def grad_like(out: Tensor) -> Tensor:
    gen = torch.Generator().manual_seed(11)
    return torch.randn(out.shape, generator=gen, dtype=torch.float64).to(out)


def run(
    op, tensors: dict[str, Tensor], grad: Tensor | None = None, **geometry
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and every gradient, for a random output gradient if none is given."""
    leaves = {name: t.detach().requires_grad_(name != "rois") for name, t in tensors.items()}
    out = op(**leaves, **geometry)
    out.backward(grad_like(out) if grad is None else grad)
    return out.detach(), {name: t.grad for name, t in leaves.items() if name != "rois"}


def assert_same(actual, expected, **tolerance) -> None:
    """Compare two results of `run`, naming the gradient that differs."""
    torch.testing.assert_close(actual[0], expected[0], **tolerance)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in actual[1].items():
        torch.testing.assert_close(
            grad, expected[1][name], **tolerance, msg=lambda m, name=name: f"grad of {name}: {m}"
        )


def aligned(input, rois, output_size, spatial_scale=1.0, sampling_ratio=0, gamma=None):
    return roi_align(input, rois, output_size, spatial_scale, sampling_ratio, aligned=True)


def looped(
    input, rois, output_size, offset=None, mask=None, spatial_scale=1.0, sampling_ratio=0, gamma=0.1
):
    """Equation 2 of arXiv 1811.11168, one sample at a time."""
    _, _, h, w = input.shape
    pooled_h, pooled_w = output_size

    def tent(position: Tensor, size: int) -> Tensor:
        """Bilinear weights of all cells of an axis."""
        cells = torch.arange(size, device=input.device, dtype=input.dtype)
        return (1 - (cells - position.clamp(0, size - 1)).abs()).clamp(min=0)

    pooled = []
    for k, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (value * spatial_scale - 0.5 for value in box)
        bin_h, bin_w = (y2 - y1) / pooled_h, (x2 - x1) / pooled_w
        samples_y = sampling_ratio or math.ceil(bin_h)
        samples_x = sampling_ratio or math.ceil(bin_w)
        for i in range(pooled_h):
            for j in range(pooled_w):
                total = input.new_zeros(input.shape[1])
                for sample_y in range(samples_y):
                    for sample_x in range(samples_x):
                        y = y1 + (i + (sample_y + 0.5) / samples_y) * bin_h
                        x = x1 + (j + (sample_x + 0.5) / samples_x) * bin_w
                        y, x = input.new_tensor(y), input.new_tensor(x)
                        if offset is not None:
                            x = x + gamma * (x2 - x1) * offset[k, 0, i, j]
                            y = y + gamma * (y2 - y1) * offset[k, 1, i, j]
                        if -1 <= y <= h and -1 <= x <= w:
                            total = total + input[int(image)] @ tent(x, w) @ tent(y, h)
                total = total / max(samples_y * samples_x, 1)
                pooled.append(total if mask is None else total * mask[k, 0, i, j])
    return torch.stack(pooled).view(len(rois), pooled_h, pooled_w, -1).permute(0, 3, 1, 2)


@on_devices
@sampling_ratios
@pytest.mark.parametrize("output_size", [(7, 7), (2, 3), (1, 1)], ids=["7x7", "2x3", "1x1"])
def test_equals_roi_align_without_offset_and_mask(output_size, sampling_ratio, device):
    tensors = make_tensors(offset=False, mask=False, device=device)
    geometry = GEOMETRY | {"output_size": output_size, "sampling_ratio": sampling_ratio}
    assert_same(
        run(dcn.deform_roi_pool, tensors, **geometry),
        run(aligned, tensors, **geometry),
        rtol=1e-9,
        atol=1e-9,
    )


@on_devices
@sampling_ratios
def test_equals_roi_align_on_the_grid(sampling_ratio, device):
    """Samples at exactly -1, 0, H - 1 and H, where the edge ends and zero begins."""
    rois = [(0, x - 1, y - 1, x + 2, y + 2) for y in range(-2, 14) for x in range(-2, 17)]
    tensors = make_tensors(offset=False, mask=False, device=device, rois=tuple(rois))
    geometry = {"output_size": 3, "sampling_ratio": sampling_ratio}
    assert_same(
        run(dcn.deform_roi_pool, tensors, **geometry),
        run(aligned, tensors, **geometry),
        rtol=1e-9,
        atol=1e-9,
    )


@on_devices
@sampling_ratios
def test_equals_roi_align_in_float32(sampling_ratio, device):
    tensors = make_tensors(offset=False, mask=False, dtype=torch.float32, device=device)
    geometry = GEOMETRY | {"output_size": 7, "sampling_ratio": sampling_ratio}
    assert_same(
        run(dcn.deform_roi_pool, tensors, **geometry),
        run(aligned, tensors, **geometry),
        rtol=1e-4,
        atol=1e-4,
    )


@on_devices
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize(
    ("offset", "mask"), [(True, True), (True, False), (False, True)], ids=["both", "v1", "mask"]
)
def test_equals_loop(offset, mask, sampling_ratio, device):
    tensors = make_tensors(offset, mask, device=device)
    geometry = GEOMETRY | {"sampling_ratio": sampling_ratio}
    assert_same(
        run(dcn.deform_roi_pool, tensors, **geometry),
        run(looped, tensors, **geometry),
        rtol=1e-9,
        atol=1e-9,
    )


@on_devices
def test_offset_is_x_then_y_in_units_of_the_roi(device):
    """On a map whose channels are its own coordinates."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    coordinates = torch.stack((x, y)).unsqueeze(0).to(device)
    rois = torch.tensor([[0, 10.0, 20.0, 18.0, 24.0]], device=device)
    offset = torch.tensor([0.5, -1.5], device=device).view(1, 2, 1, 1)
    out = dcn.deform_roi_pool(coordinates, rois, 1, offset, gamma=0.25, sampling_ratio=2)
    expected = [14 - 0.5 + 0.25 * 0.5 * 8, 22 - 0.5 - 0.25 * 1.5 * 4]
    assert out.flatten().tolist() == pytest.approx(expected)


@on_devices
@sampling_ratios
def test_gradcheck(sampling_ratio, device, nondet_tol):
    rois = tuple(ROIS[name] for name in ("inside", "left_and_top", "tiny"))
    tensors = make_tensors(rois=rois, channels=2, device=device)
    tensors["input"] = tensors["input"][..., :9]

    def op(input, offset, mask):
        geometry = GEOMETRY | {"sampling_ratio": sampling_ratio}
        return dcn.deform_roi_pool(input, tensors["rois"], offset=offset, mask=mask, **geometry)

    leaves = [tensors[name].clone().requires_grad_() for name in ("input", "offset", "mask")]
    assert torch.autograd.gradcheck(op, leaves, fast_mode=True, nondet_tol=nondet_tol)


@on_devices
def test_rois_get_no_gradient(device):
    tensors = make_tensors(device=device)
    tensors["rois"].requires_grad_()
    out = dcn.deform_roi_pool(**tensors, **GEOMETRY)
    assert torch.autograd.grad(out.sum(), tensors["rois"], allow_unused=True) == (None,)


@on_devices
@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("deformed", [False, True], ids=["plain", "deformed"])
def test_no_rois(deformed, images, device):
    tensors = make_tensors(deformed, deformed, rois=(), images=images, device=device)
    out, grads = run(dcn.deform_roi_pool, tensors, **GEOMETRY)
    assert out.shape == (0, 3, 2, 3)
    for name, grad in grads.items():
        assert grad.shape == tensors[name].shape
        assert not grad.any()


@on_devices
@sampling_ratios
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_absurd_rois_are_finite_and_disturb_no_other(dtype, sampling_ratio, device):
    good = ROIS["inside"]
    huge, inf, nan = 1e30, torch.inf, torch.nan
    absurd = [
        (1, 40.0, 30.0, 10.0, 5.0),
        (1, 40.0, 5.0, 10.0, 30.0),
        (0, 20.0, 20.0, 20.0, 20.0),
        (1, nan, nan, nan, nan),
        (0, 4.0, nan, 20.0, 20.0),
        (0, -inf, -inf, inf, inf),
        (1, 3.0, 5.0, inf, inf),
        (0, inf, 5.0, inf, 20.0),
        (1, -huge, -huge, huge, huge),
        (0, huge, 0.0, -huge, 10.0),
        (1, 0.0, 0.0, huge, 40.0),
    ]
    tensors = make_tensors(dtype=dtype, device=device, rois=(good, *absurd, good))
    geometry = GEOMETRY | {"sampling_ratio": sampling_ratio}
    out, grads = run(dcn.deform_roi_pool, tensors, **geometry)
    assert out.isfinite().all()
    for name, grad in grads.items():
        assert grad.isfinite().all(), name

    ends = torch.tensor([0, len(absurd) + 1], device=device)
    alone = {name: t if name == "input" else t[ends] for name, t in tensors.items()}
    alone_out, alone_grads = run(dcn.deform_roi_pool, alone, grad_like(out)[ends], **geometry)
    torch.testing.assert_close(out[ends], alone_out)
    torch.testing.assert_close(grads["offset"][ends], alone_grads["offset"])
    torch.testing.assert_close(grads["mask"][ends], alone_grads["mask"])


@on_devices
def test_samples_outside_whatever_the_roi(device):
    """A sample at -1 or H reads the edge, one beyond zero; offsets move both alike."""
    ones = torch.ones(1, 1, 4, 4, device=device, dtype=torch.float64)
    # One RoI of 1 x 1 pixel centred on pixel (1, 1), moved along x by the offset itself.
    rois = torch.tensor([[0, 1.0, 1.0, 2.0, 2.0]], device=device, dtype=torch.float64)

    def value(x: float) -> float:
        offset = torch.tensor([x - 1, 0], device=device, dtype=torch.float64).view(1, 2, 1, 1)
        return dcn.deform_roi_pool(ones, rois, 1, offset, gamma=1.0, sampling_ratio=1).item()

    assert [value(x) for x in (-1.01, -1.0, -0.5, 0, 3, 3.5, 4, 4.01)] == [0, 1, 1, 1, 1, 1, 1, 0]


@on_devices
def test_inverted_rois_have_no_adaptive_samples(device):
    inverted = tuple((0, *ROIS["inside"][3:], *ROIS["inside"][1:3]) for _ in range(2))
    tensors = make_tensors(device=device, rois=inverted)
    out, grads = run(dcn.deform_roi_pool, tensors, **GEOMETRY)
    assert not out.any()
    assert not any(grad.any() for grad in grads.values())


@on_devices
@sampling_ratios
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
def test_non_finite_offsets_contribute_zero(value, sampling_ratio, device):
    tensors = make_tensors(device=device)
    spoil = (torch.arange(tensors["offset"].numel(), device=device) % 5 == 0).view_as(
        tensors["offset"]
    )
    # A shift of an RoI without width stays zero, however large its offset, unless it is not finite.
    flat = (tensors["rois"][:, 3] == tensors["rois"][:, 1]).view(-1, 1, 1, 1)
    spoil &= ~flat
    bad = spoil.any(1, keepdim=True)
    spoilt = tensors | {"offset": tensors["offset"].masked_fill(spoil, value)}
    masked = tensors | {"mask": tensors["mask"].masked_fill(bad, 0)}
    geometry = GEOMETRY | {"sampling_ratio": sampling_ratio}
    out, grads = run(dcn.deform_roi_pool, spoilt, **geometry)
    expected_out, expected_grads = run(dcn.deform_roi_pool, masked, **geometry)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(grads["input"], expected_grads["input"])
    torch.testing.assert_close(grads["offset"], expected_grads["offset"])
    torch.testing.assert_close(grads["mask"], expected_grads["mask"].masked_fill(bad, 0))


@pytest.fixture
def checked(interpreted):
    if interpreted:
        pytest.skip("a GPU is not waited for: tests/dcn/gpu says what it does instead")


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("index", [-1.0, 2.0, 1e30, torch.nan, torch.inf])
def test_batch_index_error_names_the_roi(index):
    tensors = make_tensors()
    tensors["rois"][3:5, 0] = index
    with pytest.raises(ValueError, match=r"^rois\[3, 0\] is .*from 0 to 1"):
        dcn.deform_roi_pool(**tensors, **GEOMETRY)


@pytest.mark.usefixtures("checked")
def test_rois_of_an_empty_batch_are_an_error():
    with pytest.raises(ValueError, match=r"^rois\[0, 0\] is 0"):
        dcn.deform_roi_pool(**make_tensors(images=0), **GEOMETRY)


@on_devices
@sampling_ratios
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_16_bit_is_float64_rounded_once(dtype, sampling_ratio, device):
    """Sums are taken in float32, so that only the results are rounded to 16 bits."""
    tensors = make_tensors(dtype=dtype, device=device)
    tensors["rois"] = make_tensors(dtype=torch.float32, device=device)["rois"]
    exact = {name: t.double() for name, t in tensors.items()}
    geometry = GEOMETRY | {"sampling_ratio": sampling_ratio}
    out, grads = run(dcn.deform_roi_pool, tensors, **geometry)
    exact_out, exact_grads = run(looped, exact, grad_like(out).double(), **geometry)
    pairs = [(out, exact_out), *((grads[name], exact_grads[name]) for name in grads)]
    for actual, expected in pairs:
        assert actual.dtype == dtype
        atol = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(
            actual.double(), expected, rtol=torch.finfo(dtype).eps, atol=atol
        )


@pytest.mark.usefixtures("same_bits")
@on_devices
def test_16_bit_rois_of_the_input_dtype(device):
    tensors = make_tensors(dtype=torch.bfloat16, device=device)
    wide = tensors | {"rois": tensors["rois"].float()}
    assert torch.equal(
        dcn.deform_roi_pool(**tensors, **GEOMETRY), dcn.deform_roi_pool(**wide, **GEOMETRY)
    )


@on_devices
@pytest.mark.parametrize("backward_inside", [False, True], ids=["outside", "inside"])
def test_autocast(backward_inside, device):
    tensors = make_tensors(dtype=torch.float32, device=device)
    # Values that bfloat16 holds exactly, so that only the results are rounded.
    tensors = {name: t if name == "rois" else t.bfloat16().float() for name, t in tensors.items()}
    leaves = {name: t.clone().requires_grad_(name != "rois") for name, t in tensors.items()}
    with torch.autocast(device, torch.bfloat16):
        out = dcn.deform_roi_pool(**leaves, **GEOMETRY)
        grad = grad_like(out)
        if backward_inside:
            out.backward(grad)
    if not backward_inside:
        out.backward(grad)
    assert out.dtype == torch.bfloat16
    exact_out, exact_grads = run(dcn.deform_roi_pool, tensors, grad.float(), **GEOMETRY)
    eps = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(out.float(), exact_out, rtol=eps, atol=1e-5)
    for name, exact in exact_grads.items():
        assert leaves[name].grad.dtype == torch.float32
        torch.testing.assert_close(leaves[name].grad, exact, rtol=eps, atol=1e-5)


@on_devices
def test_autocast_keeps_the_precision_of_rois(device):
    """bfloat16 would round 1003.3 to 1004, and 1019.8 to 1020."""
    ramp = torch.arange(64.0, device=device).sub(62).expand(1, 1, 64, 64).contiguous()
    rois = torch.tensor([[0, 1003.3, 1003.3, 1019.8, 1019.8]], device=device)
    with torch.autocast(device, torch.bfloat16):
        out = dcn.deform_roi_pool(ramp, rois, 1, spatial_scale=1 / 16)
    expected = (1003.3 + 1019.8) / 2 / 16 - 0.5 - 62
    assert out.item() == pytest.approx(expected, rel=0.004)


@on_devices
def test_autocast_keeps_float64(device):
    tensors = make_tensors(device=device)
    with torch.autocast(device, torch.bfloat16):
        actual = run(dcn.deform_roi_pool, tensors, **GEOMETRY)
    assert_same(actual, run(dcn.deform_roi_pool, tensors, **GEOMETRY))


@on_devices
@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_memory_layouts(layout, device):
    plain = make_tensors(device=device)
    tensors = {
        name: t
        if t.dim() < 4
        else t.contiguous(memory_format=torch.channels_last)
        if layout == "channels_last"
        else t.mT.contiguous().mT
        for name, t in plain.items()
    }
    tensors["rois"] = plain["rois"].T.contiguous().T
    actual = run(dcn.deform_roi_pool, tensors, **GEOMETRY)
    assert_same(actual, run(dcn.deform_roi_pool, plain, **GEOMETRY), rtol=1e-12, atol=1e-12)
    assert actual[0].is_contiguous()


@on_devices
def test_expanded_gradient(device):
    tensors = make_tensors(device=device)
    out = dcn.deform_roi_pool(**tensors, **GEOMETRY)
    grad = torch.ones((), device=device, dtype=out.dtype).expand(out.shape)
    assert_same(
        run(dcn.deform_roi_pool, tensors, grad, **GEOMETRY),
        run(dcn.deform_roi_pool, tensors, grad.contiguous(), **GEOMETRY),
    )


@pytest.mark.usefixtures("same_bits")
@on_devices
@sampling_ratios
def test_same_bits_twice(sampling_ratio, device):
    tensors = make_tensors(dtype=torch.float32, device=device, channels=32)
    geometry = GEOMETRY | {"sampling_ratio": sampling_ratio}
    first = run(dcn.deform_roi_pool, tensors, **geometry)
    second = run(dcn.deform_roi_pool, tensors, **geometry)
    assert_same(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": None}, TypeError, "^input: expected a tensor, got NoneType"),
        ({"rois": None}, TypeError, "^rois: expected a tensor, got NoneType"),
        ({"offset": 0.5}, TypeError, "^offset: expected a tensor, got float"),
        ({"mask": [1]}, TypeError, "^mask: expected a tensor, got list"),
        ({"input": torch.zeros(3, 12, 15)}, ValueError, r"^input: .*4 dim.*\(3, 12, 15\)"),
        ({"input": torch.zeros(2, 0, 12, 15)}, ValueError, r"^input: .*\(2, 0, 12, 15\)"),
        ({"input": torch.zeros(2, 3, 0, 15)}, ValueError, "^input: only the batch may be empty"),
        ({"input": torch.zeros(2, 3, 12, 15).int()}, TypeError, "^input: .*floating.*int32"),
        ({"rois": torch.zeros(5)}, ValueError, "^rois: expected 2 dimensions"),
        ({"rois": torch.zeros(9, 4)}, ValueError, r"^rois: expected shape \(9, 5\), got \(9, 4\)"),
        ({"rois": torch.zeros(9, 5).long()}, TypeError, "^rois: .*floating.*int64"),
        (
            {"rois": torch.zeros(9, 5).double()},
            TypeError,
            "^rois: is torch.float64, input is torch.float32",
        ),
        ({"rois": torch.zeros(9, 5).half()}, TypeError, "^rois: is torch.float16"),
        ({"rois": torch.zeros(9, 5, device="meta")}, ValueError, "^rois: is on meta, input on cpu"),
        ({"offset": torch.zeros(9, 2, 2, 3).double()}, TypeError, "^offset: is torch.float64"),
        ({"mask": torch.zeros(9, 1, 2, 3).half()}, TypeError, "^mask: is torch.float16"),
        ({"mask": torch.zeros(9, 1, 2, 3, device="meta")}, ValueError, "^mask: is on meta"),
        ({"offset": torch.zeros(10, 2, 3, 2)}, ValueError, r"^offset: .*\(10, 2, 2, 3\), got"),
        ({"offset": torch.zeros(8, 2, 2, 3)}, ValueError, "^offset: expected shape"),
        ({"offset": torch.zeros(9, 12)}, ValueError, "^offset: expected 4 dimensions"),
        ({"mask": torch.zeros(10, 2, 2, 3)}, ValueError, r"^mask: .*\(10, 1, 2, 3\), got"),
        ({"gamma": float("nan")}, ValueError, "^gamma: expected a finite number, got nan"),
        ({"output_size": 0}, ValueError, "^output_size: expected at least 1, got 0"),
        ({"output_size": (2, 0)}, ValueError, r"^output_size: expected at least 1, got \(2, 0\)"),
        ({"output_size": 2.5}, TypeError, "^output_size: expected an int or two, got 2.5"),
        ({"spatial_scale": 0}, ValueError, "^spatial_scale: expected a positive number, got 0"),
        ({"spatial_scale": -0.5}, ValueError, "^spatial_scale: .*got -0.5"),
        ({"spatial_scale": torch.inf}, ValueError, "^spatial_scale: .*got inf"),
        ({"spatial_scale": torch.nan}, ValueError, "^spatial_scale: .*got nan"),
        ({"sampling_ratio": -2}, ValueError, "^sampling_ratio: expected -1 to 1000, got -2"),
        ({"sampling_ratio": 10**12}, ValueError, "^sampling_ratio: expected -1 to 1000, got 10"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = make_tensors(dtype=torch.float32) | GEOMETRY
    with pytest.raises(error, match=message):
        dcn.deform_roi_pool(**(arguments | change))


@on_devices
@pytest.mark.parametrize(
    ("arguments", "channels_last"),
    [
        ({}, False),
        ({"offset": False}, False),
        ({"mask": False, "channels": 1}, True),
        ({"offset": False, "mask": False}, True),
        ({"rois": ()}, False),
        ({"rois": (), "images": 0}, False),
    ],
    ids=["both", "mask", "offset", "plain", "no_rois", "no_images"],
)
def test_opcheck(arguments, channels_last, device):
    tensors = make_tensors(dtype=torch.float32, device=device, **arguments)
    if channels_last:
        tensors["input"] = tensors["input"].contiguous(memory_format=torch.channels_last)
    out = dcn.deform_roi_pool(**tensors, **GEOMETRY)
    names = ("input", "rois", "offset", "mask")
    geometry = ((2, 3), SCALE, 2, 0.15)
    wanted = [True, "offset" in tensors, "mask" in tensors]
    torch.library.opcheck(
        torch.ops.dcn.deform_roi_pool_backward.default,
        (grad_like(out), *(tensors.get(name) for name in names), *geometry, wanted),
    )
    leaves = {name: t.requires_grad_(name != "rois") for name, t in tensors.items()}
    torch.library.opcheck(
        torch.ops.dcn.deform_roi_pool.default, (*(leaves.get(name) for name in names), *geometry)
    )


@on_devices
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("deformed", [False, True], ids=["plain", "deformed"])
def test_compile_without_graph_break(deformed, dynamic, device):
    torch.compiler.reset()
    compiled = torch.compile(
        dcn.deform_roi_pool, fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    rois = tuple(ROIS.values())
    for some in (rois, rois[:4]):
        tensors = make_tensors(deformed, deformed, rois=some, device=device)
        assert_same(
            run(compiled, tensors, **GEOMETRY), run(dcn.deform_roi_pool, tensors, **GEOMETRY)
        )


def randomised(module: nn.Module) -> nn.Module:
    """With offsets and masks that are not those of the start."""
    torch.manual_seed(5)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def make_module(device: str = "cpu", **arguments) -> dcn.DeformRoIPool:
    module = dcn.DeformRoIPool((2, 3), 3, SCALE, gamma=0.15, fc_channels=8, **arguments)
    return module.to(device)


LAYOUTS = {
    "paper": {},
    "mmcv": {"shared_fc": False},
    "not_modulated": {"modulated": False},
    "not_modulated_mmcv": {"modulated": False, "shared_fc": False},
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def inputs(**arguments) -> tuple[Tensor, Tensor]:
    tensors = make_tensors(False, False, torch.float32, **arguments)
    return tensors["input"], tensors["rois"]


@pytest.mark.slow
@on_devices
def test_compile_module_with_inductor(device):
    if device == "cpu" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    torch.compiler.reset()
    module = randomised(make_module(device))
    compiled = torch.compile(module, fullgraph=True)
    features, rois = inputs(device=device)

    def results(forward):
        leaf = features.detach().requires_grad_()
        out = forward(leaf, rois)
        return out, torch.autograd.grad(out.square().sum(), [leaf, *module.parameters()])

    torch.testing.assert_close(results(compiled), results(module), rtol=1e-4, atol=1e-4)


@on_devices
@every_layout
def test_export(layout, device):
    module = randomised(make_module(device, **layout))
    count = torch.export.Dim("count", min=2)
    program = torch.export.export(
        module, inputs(device=device), dynamic_shapes={"input": None, "rois": {0: count}}
    )
    features, rois = inputs(device=device, rois=tuple(ROIS.values())[:4])
    torch.testing.assert_close(program.module()(features, rois), module(features, rois))


@on_devices
def test_double_backward_raises(device):
    tensors = make_tensors(device=device)
    leaf = tensors["input"].requires_grad_()
    out = dcn.deform_roi_pool(**tensors, **GEOMETRY)
    (grad,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="no double backward"):
        grad.sum().backward()


@on_devices
@every_layout
def test_module_starts_as_plain_pooling(layout, device):
    module = make_module(device, **layout)
    features, rois = inputs(device=device)
    expected = roi_align(features, rois, (2, 3), SCALE, 0, aligned=True)
    expected = expected * (0.5 if module.modulated else 1)
    torch.testing.assert_close(module(features, rois), expected)


@on_devices
@every_layout
def test_module_is_its_own_offsets_and_the_operator(layout, device):
    module = randomised(make_module(device, **layout))
    features, rois = inputs(device=device)
    plain = roi_align(features, rois, (2, 3), SCALE, 0, aligned=True).flatten(1)
    offset, mask = module.offset_fc(plain), None
    if module.mask_fc is not None:
        mask = module.mask_fc(plain)
    elif module.modulated:
        offset, mask = offset[:, :12], offset[:, 12:]
    expected = dcn.deform_roi_pool(
        features,
        rois,
        (2, 3),
        offset.reshape(-1, 2, 2, 3),
        None if mask is None else mask.sigmoid().reshape(-1, 1, 2, 3),
        SCALE,
        gamma=0.15,
    )
    torch.testing.assert_close(module(features, rois), expected)


@pytest.mark.parametrize(
    ("layout", "names", "outputs"),
    [
        ({}, ["offset_fc.0", "offset_fc.2", "offset_fc.4"], 18),
        (
            {"shared_fc": False},
            ["offset_fc.0", "offset_fc.2", "offset_fc.4", "mask_fc.0", "mask_fc.2"],
            12,
        ),
        ({"modulated": False}, ["offset_fc.0", "offset_fc.2", "offset_fc.4"], 12),
    ],
    ids=["paper", "mmcv", "not_modulated"],
)
def test_module_parameters(layout, names, outputs):
    module = make_module(**layout)
    expected = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    assert [name for name, _ in module.named_parameters()] == expected
    assert module.offset_fc[-1].weight.shape == (outputs, 8)
    assert not module.offset_fc[-1].weight.any()
    assert not module.offset_fc[-1].bias.any()


def test_module_hidden_layers_start_gaussian():
    module = dcn.DeformRoIPool(7, 64, shared_fc=False)
    for layer in (module.offset_fc[0], module.offset_fc[2], module.mask_fc[0]):
        assert layer.out_features == 1024
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not layer.bias.any()
    assert not module.mask_fc[2].weight.any()
    assert not module.mask_fc[2].bias.any()


@pytest.mark.parametrize(
    ("pack", "layout"),
    [
        ("ModulatedDeformRoIPoolPack", {"shared_fc": False}),
        ("DeformRoIPoolPack", {"modulated": False}),
        ("DeformRoIPoolPack", {"modulated": False, "shared_fc": False}),
    ],
)
def test_module_loads_mmcv_checkpoints(pack, layout):
    ops = pytest.importorskip("mmcv.ops", reason="mmcv is not installed")
    theirs = randomised(getattr(ops, pack)((2, 3), 3, deform_fc_channels=8))
    ours = make_module(**layout)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    plain = torch.randn(4, 18)
    torch.testing.assert_close(ours.offset_fc(plain), theirs.offset_fc(plain))
    if ours.mask_fc is not None:
        torch.testing.assert_close(ours.mask_fc(plain).sigmoid(), theirs.mask_fc(plain))


@on_devices
@every_layout
def test_module_without_rois_gives_every_parameter_a_zero_gradient(layout, device):
    """DistributedDataParallel waits for the gradient of every parameter."""
    module = randomised(make_module(device, **layout))
    features, rois = inputs(device=device, rois=())
    features.requires_grad_()
    out = module(features, rois)
    assert out.shape == (0, 3, 2, 3)
    out.sum().backward()
    for name, tensor in [("input", features), *module.named_parameters()]:
        assert tensor.grad is not None, name
        assert not tensor.grad.any(), name


@on_devices
@every_layout
def test_module_trains_under_autocast(layout, device):
    module = randomised(make_module(device, **layout))
    features, rois = inputs(device=device)
    with torch.autocast(device, torch.bfloat16):
        out = module(features, rois)
        out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    for name, parameter in module.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


def test_module_output_size_error():
    with pytest.raises(ValueError, match=r"^output_size: expected at least 1, got 0"):
        dcn.DeformRoIPool(0, 3)


def test_module_repr_tells_its_kind():
    assert "gamma=0.15, modulated=False" in repr(make_module(modulated=False))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
@pytest.mark.parametrize("listed", [False, True])
def test_roi_align_is_torchvisions(listed, sampling_ratio, aligned):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 10, 12, dtype=torch.float64)
    boxes = [torch.rand(3, 4).double() * 20 for _ in range(2)]
    for own in boxes:
        own[:, 2:] += own[:, :2] - 5  # some are less than a pixel, some inverted
    if not listed:
        boxes = torch.cat(
            [torch.nn.functional.pad(b, (1, 0), value=i) for i, b in enumerate(boxes)]
        )
    settings = (boxes, (2, 3), 0.5, sampling_ratio, aligned)
    if aligned and sampling_ratio == -1:  # torchvision takes the mean of one sample that is none
        settings = (*settings[:3], 2, aligned)
    torch.testing.assert_close(dcn.roi_align(x, *settings), roi_align(x, *settings))


def test_boxes_of_16_bits_keep_their_image():
    x = torch.arange(258.0).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    boxes = [torch.tensor([[0.0, 0, 2, 2]], dtype=torch.bfloat16)] * len(x)
    pooled = dcn.roi_align(x, boxes, 1, sampling_ratio=1, aligned=True)
    assert torch.equal(pooled.flatten(), torch.arange(258.0))


def test_boxes_of_images_that_are_not_there_are_refused():
    x, boxes = torch.rand(2, 3, 4, 4), torch.rand(2, 4)
    with pytest.raises(ValueError, match=r"^rois: 1 lists of boxes for 2 images"):
        dcn.deform_roi_pool(x, [boxes], 2)
    with pytest.raises(ValueError, match=r"^boxes\[1\]: expected a tensor .L, 4., got .2, 5."):
        dcn.roi_align(x, [boxes, torch.rand(2, 5)], 2)
    assert dcn.deform_roi_pool(x, [boxes, boxes[:0]], 2).shape == (2, 3, 2, 2)
