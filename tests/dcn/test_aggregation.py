"""dcn.dcnv3, dcn.dcnv4 and their layers against deform_conv2d and their own contract."""

import pytest
import torch
from torch.autograd import gradcheck

import dcn
from tests.dcn.definition import (
    aggregation_settings,
    aggregation_tensors,
    assert_aggregation_is_its_definition,
)

CASE = dict(
    n=2,
    groups=2,
    group_channels=16,
    size=(6, 7),
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    offset_scale=1.0,
    without_centre=False,
    packed=False,
    layout=("contiguous", "contiguous"),
    dtype=torch.float32,
    threads=1,
    seed=0,
)
CASES = {
    "plain": {},
    "packed": dict(packed=True),
    "uneven": dict(kernel=(3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "scaled": dict(offset_scale=0.5, dilation=(2, 1), padding=(2, 0)),
    "without_centre": dict(without_centre=True, kernel=(3, 5), padding=(1, 2), packed=True),
    "few_channels": dict(group_channels=3, groups=4, packed=True),
    "many_channels": dict(group_channels=40, groups=1),
    "many_points": dict(kernel=(5, 5), padding=(2, 2)),
    "one_pixel": dict(n=1, size=(1, 1)),
    "empty": dict(n=0),
    "transposed": dict(layout=("transposed", "transposed")),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def run(case):
    """Arguments, output gradient, output, gradients."""
    tensors, grad = aggregation_tensors(case)
    leaves = {k: None if t is None else t.requires_grad_() for k, t in tensors.items()}
    out = torch.ops.dcn.deform_aggregation(*leaves.values(), *aggregation_settings(case))
    out.backward(grad)
    return tensors, grad, out, {k: None if t is None else t.grad for k, t in leaves.items()}


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_is_its_definition(case, dtype):
    case = CASE | case | dict(dtype=dtype)
    assert_aggregation_is_its_definition(*run(case), case)


@every_case
def test_dcnv3_is_a_deformable_convolution_with_unit_weights(case):
    """With DCNv3's points, numbered column by column, and its offsets (x, y)."""
    case = CASE | case | dict(dtype=torch.float64, packed=False, without_centre=False)
    tensors, grad = aggregation_tensors(case)
    x, offset, mask = (t.nan_to_num(0, 9, -9).requires_grad_() for t in tensors.values())
    groups, (rows, columns), scale = case["groups"], case["kernel"], case["offset_scale"]
    names = dict(kernel_size="kernel", pad="padding", group="groups")
    settings = {
        k: case[names.get(k, k)]
        for k in ("kernel_size", "stride", "pad", "dilation", "group", "offset_scale")
    }
    out = dcn.dcnv3(x, offset, mask, **settings)

    # [N, H, W, G, columns, rows, ·] to [N, G, rows, columns, ·, H, W]
    delta = offset.unflatten(3, (groups, columns, rows, 2)).permute(0, 3, 5, 4, 6, 1, 2).flip(4)
    step = torch.tensor(case["dilation"])
    index = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    centre = step * (torch.tensor(case["kernel"]) - 1) // 2
    from_centre = index * step.view(2, 1, 1) - centre.view(2, 1, 1)
    moved = (scale - 1) * from_centre.permute(1, 2, 0)[..., None, None] + scale * delta
    weights = mask.unflatten(3, (groups, columns, rows)).permute(0, 3, 5, 4, 1, 2)
    ones = torch.ones(x.shape[3], 1, rows, columns, dtype=torch.float64)
    same = dcn.deform_conv2d(
        x.permute(0, 3, 1, 2),
        moved.flatten(1, 4),
        ones,
        None,
        case["stride"],
        case["padding"],
        case["dilation"],
        weights.flatten(1, 3),
    ).permute(0, 2, 3, 1)
    torch.testing.assert_close(out, same)
    for a, b in zip(
        torch.autograd.grad(out, (x, offset, mask), grad),
        torch.autograd.grad(same, (x, offset, mask), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_dcnv4_is_dcnv3_with_other_packing():
    (x, offset, mask), _ = aggregation_tensors(CASE)[0].values(), None
    parts = (t.unflatten(3, (2, -1)) for t in (offset, mask))
    packed = torch.cat((*parts,), 4).flatten(3)
    packed = torch.nn.functional.pad(packed, (0, 2), value=torch.nan)  # those are not used
    packed.requires_grad_()
    out = dcn.dcnv4(x, packed, group=2)
    assert torch.equal(out, dcn.dcnv3(x, offset, mask, group=2))
    out.sum().backward()
    assert not packed.grad[..., -2:].any()


@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(packed):
    case = CASE | dict(n=1, size=(3, 3), group_channels=2, kernel=(2, 2), dtype=torch.float64)
    tensors, _ = aggregation_tensors(case | dict(packed=packed, seed=3))
    leaves = [t.nan_to_num(0.3, 9, -9).add(1 / 16) for t in tensors.values() if t is not None]
    settings = dict(kernel_size=2, group=2)
    operator = dcn.dcnv4 if packed else dcn.dcnv3
    assert gradcheck(
        lambda *t: operator(*t, **settings), [t.requires_grad_() for t in leaves], fast_mode=True
    )


@pytest.mark.parametrize("name", ["plain", "packed", "one_pixel", "empty", "transposed"])
def test_opcheck(name):
    case = CASE | CASES[name]
    tensors, grad = aggregation_tensors(case)
    leaves = [None if t is None else t.requires_grad_() for t in tensors.values()]
    settings = aggregation_settings(case)
    torch.library.opcheck(torch.ops.dcn.deform_aggregation.default, (*leaves, *settings))
    plain = [None if t is None else t.detach() for t in leaves]
    wanted = [True, True, tensors["mask"] is not None]
    backward = torch.ops.dcn.deform_aggregation_backward.default
    torch.library.opcheck(backward, (grad, *plain, *settings, wanted))


def test_compile_without_graph_break():
    torch.compiler.reset()
    layer = randomised(dcn.DCNv3(16, group=2))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in [(6, 7), (5, 9)]:
        x = torch.randn(2, *size, 16)
        torch.testing.assert_close(compiled(x), layer(x))


def test_compile_with_settings_that_change():
    """They are symbolic then."""
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, offset, mask, pad: dcn.dcnv3(x, offset, mask, pad=pad, group=2),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for pad in (1, 2, 3):
        tensors, _ = aggregation_tensors(CASE | dict(padding=(pad, pad)))
        expected = dcn.dcnv3(*tensors.values(), pad=pad, group=2)
        torch.testing.assert_close(compiled(*tensors.values(), pad), expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_same_bits_twice(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        case = CASE | dict(n=1, groups=1, group_channels=48)  # slices of a group
        first, second = run(case), run(case)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first[2], second[2])
    assert all(torch.equal(first[3][k], second[3][k]) for k in first[3])
    assert_aggregation_is_its_definition(*first, case)


def test_slices_of_a_group_share_sums_of_a_part_of_the_positions():
    # Two slices have sums for 19,418 positions at a time.
    case = CASE | dict(n=1, groups=1, group_channels=16, size=(160, 150))
    before = torch.get_num_threads()
    gradients = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            gradients[threads] = run(case)[3]
    finally:
        torch.set_num_threads(before)
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[2][name], expected)


def test_autocast_leaves_offsets_and_masks_in_float32():
    tensors, _ = aggregation_tensors(CASE)
    with torch.autocast("cpu", torch.bfloat16):
        out = dcn.dcnv3(*tensors.values(), group=2)
    assert out.dtype == torch.bfloat16
    wide = tensors | dict(input=tensors["input"].bfloat16().float())
    assert torch.equal(out, dcn.dcnv3(*wide.values(), group=2).bfloat16())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.zeros(2, 6, 7)}, ValueError, "^input: expected 4 dimensions"),
        ({"input": torch.zeros(2, 6, 7, 33)}, ValueError, "^group: 2 does not divide"),
        ({"input": torch.zeros(2, 0, 7, 32)}, ValueError, "^input: 0.7 pixels are too few"),
        ({"offset": torch.zeros(2, 6, 7, 35)}, ValueError, "^offset: expected shape"),
        ({"offset": torch.zeros(2, 6, 7, 36).int()}, TypeError, "^offset: expected a floating"),
        ({"mask": torch.zeros(2, 6, 6, 18)}, ValueError, "^mask: expected shape"),
        ({"mask": torch.zeros(2, 6, 7, 18).half()}, TypeError, "^mask: is torch.float16"),
        ({"mask": None}, TypeError, "^mask: expected a tensor"),
        ({"kernel_size": 0}, ValueError, "^kernel_size: expected at least 1"),
        ({"stride": 1.5}, TypeError, "^stride: expected an int or two"),
        ({"stride": torch.zeros(9)}, TypeError, "^stride: expected an int or two, got a tensor$"),
        ({"pad": -1}, ValueError, "^pad: expected at least 0"),
        ({"dilation": 9}, ValueError, "^input: 6.7 pixels are too few"),
        ({"group": 0}, ValueError, "^group: expected 1 to 32"),
        ({"group": True}, TypeError, "^group: expected an int"),
        ({"offset_scale": torch.inf}, ValueError, "^offset_scale: expected a finite"),
        ({"kernel_size": 2, "remove_center": True}, ValueError, "^remove_center: a kernel of 2.2"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    tensors = dict(
        zip(("input", "offset", "mask"), aggregation_tensors(CASE)[0].values(), strict=True)
    )
    with pytest.raises(error, match=message):
        dcn.dcnv3(**(tensors | dict(group=2) | change))


def randomised(module):
    torch.manual_seed(5)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


V3_KEYS = [
    *("dw_conv.0.weight", "dw_conv.0.bias", "dw_conv.1.1.weight", "dw_conv.1.1.bias"),
    *("offset.weight", "offset.bias", "mask.weight", "mask.bias"),
    *("input_proj.weight", "input_proj.bias", "output_proj.weight", "output_proj.bias"),
]
V4_KEYS = [
    *("offset_mask.weight", "offset_mask.bias", "value_proj.weight", "value_proj.bias"),
    *("output_proj.weight", "output_proj.bias"),
]
CENTRE = ["center_feature_scale_proj_weight", "center_feature_scale_proj_bias"]


@pytest.mark.parametrize(
    ("layer", "keys"),
    [
        (dcn.DCNv3(16), V3_KEYS),
        (dcn.DCNv3(16, center_feature_scale=True), V3_KEYS + CENTRE),
        (dcn.DCNv4(16), V4_KEYS),
        (dcn.DCNv4(16, output_bias=False, center_feature_scale=True), V4_KEYS[:-1] + CENTRE),
        (dcn.DCNv4(16, without_pointwise=True), V4_KEYS[:2]),
    ],
)
def test_layers_have_the_names_of_their_releases(layer, keys):
    assert sorted(layer.state_dict()) == sorted(keys)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("settings", [{}, dict(remove_center=True), dict(kernel_size=5, pad=2)])
def test_layers_train(settings, stride):
    x = torch.randn(2, 7, 9, 16)
    size = (7, 9) if stride == 1 else (4, 5)
    v3 = dcn.DCNv3(16, stride=stride, center_feature_scale=stride == 1, **settings)
    v4 = dcn.DCNv4(16, stride=stride, dw_kernel_size=3, **settings)
    assert v3(x).shape == (2, *size, 16)
    points = v3.mask.out_features // 4
    torch.testing.assert_close(  # offsets of zero, and masks of 1 / K
        v3.output_proj(dcn.dcnv3(
            v3.input_proj(x), torch.zeros(2, *size, 8 * points),
            torch.full((2, *size, 4 * points), 1 / points), *v3.settings,
        )) if stride == 2 else v3(x), v3(x),
    )  # fmt: skip
    assert not v4(x.flatten(1, 2), (7, 9)).any()  # weights of zero, a bias of zero
    for layer, out in ((v3, v3(x)), (v4, randomised(v4)(x.flatten(1, 2), (7, 9)))):
        out.square().sum().backward()
        assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(group=5), "^group: expected a divisor of 16, got 5"),
        (dict(pad=0), "^pad: expected half of what the kernel covers, 1"),
        (dict(kernel_size=4, pad=1), "^pad: .*1.5, got 1"),
        (dict(dw_kernel_size=4), "^dw_kernel_size: expected an odd number"),
        (dict(stride=2, center_feature_scale=True), "^center_feature_scale: needs a stride of 1"),
    ],
)
@pytest.mark.parametrize("layer", [dcn.DCNv3, dcn.DCNv4])
def test_layers_refuse_settings_by_name(layer, arguments, message):
    with pytest.raises(ValueError, match=message):
        layer(16, **arguments)


def test_a_dcnv4_takes_maps_and_rows_of_pixels():
    layer, x = randomised(dcn.DCNv4(16, stride=2)), torch.randn(2, 7, 9, 16)
    out = layer(x)
    assert out.shape == (2, 4, 5, 16)
    assert torch.equal(layer(x.flatten(1, 2), (7, 9)), out.flatten(1, 2))
    with pytest.raises(
        ValueError, match=r"^input: expected .N, L, C. or .N, H, W, C., got .2, 16."
    ):
        layer(x[:, 0, 0])


@pytest.mark.parametrize("layer", [dcn.DCNv3, dcn.DCNv4])
def test_weights_that_start_at_zero_do_so_again(layer):
    module = randomised(layer(16, center_feature_scale=True))
    module.init_weights()
    zero = ("offset", "mask", "center", "offset_mask")
    for name, parameter in module.named_parameters():
        if name.startswith(zero) or name.endswith("proj.bias"):
            assert not parameter.any(), name


def test_a_map_that_is_no_square_needs_a_shape():
    with pytest.raises(ValueError, match=r"^shape: \(8, 8\) is not that of 63 pixels"):
        dcn.DCNv4(16)(torch.randn(1, 63, 16))
