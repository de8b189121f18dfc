"""Tensors of random calls of the operators, and the comparison of results with the definition.

The definition runs in float64, on the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dcn.aggregation import definition as aggregation
from dcn.deform_conv import definition as reference_conv
from dcn.deform_kernel import definition as deform_kernel
from dcn.registration import OPERATORS
from dcn.roi_pool import definition as reference_pool


def eighths(shape, gen, reach=4.0, special=True):
    """Multiples of 1/8, so that positions are exact in every dtype and on the same side of a pixel.

    Some of them are whole, some not finite, some absurd. These are powers of two, so that an absurd
    RoI's samples are exact as well: of 1e30 float64 has one at 0 which float32 rounds to 1e22.
    """
    values = (torch.randn(shape, generator=gen).double() * reach * 8).round() / 8
    if special and values.numel():
        count = max(1, values.numel() // 16)
        where = torch.randint(0, values.numel(), (count,), generator=gen)
        what = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0**100, -(2.0**100)]).double()
        values.view(-1)[where] = what[torch.randint(0, 5, (count,), generator=gen)]
    return values


def relaid(tensor, layout):
    """The same values in another memory layout."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.cat((tensor, tensor, tensor), 1)[:, tensor.shape[1] : 2 * tensor.shape[1]]
    if layout == "sliced_channels_last":
        return relaid(relaid(tensor, "channels_last"), "sliced")
    if layout == "transposed":
        return tensor.mT.contiguous().mT
    return tensor


def assert_rounded_alike(actual, expected, dtype, terms, name, rounded_terms=False):
    """Sums are rounded as float32 is (float64 for float64), then the result to `dtype` is.

    `terms` bounds the sum of the absolute values that are added up; with `rounded_terms` each of
    them has been rounded to `dtype`.
    """
    assert actual.dtype == dtype, name
    assert actual.shape == expected.shape, name
    if expected.numel() == 0:
        return
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    result = torch.finfo(dtype)
    # Below the smallest normal number its spacing stays the same.
    atol = 8 * torch.finfo(sums).eps * float(terms) + result.smallest_normal * result.eps / 2
    if rounded_terms:
        atol += result.eps / 2 * float(terms)
    rtol = result.eps if dtype.itemsize == 2 else 0
    # In an absurd RoI a gradient may be beyond the largest number of `dtype`: infinite, that is.
    actual, expected = (t.double().clamp(-result.max, result.max) for t in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda m: f"{name}: {m}")


def absolute(tensor):
    return None if tensor is None else tensor.abs()


def largest(tensor):
    return tensor.max().item() if tensor.numel() else 0.0


def conv_settings(case):
    """What follows the tensors."""
    return tuple(list(case[k]) for k in ("stride", "padding", "dilation"))


def assert_conv_is_its_definition(tensors, grad, out, grads, case, tensor_cores=False):
    """Output, and gradients by name, of tensors of any dtype against the definition in float64.

    Tensor cores take operands of `dtype`, so that samples are rounded to it before they are
    multiplied.
    """
    dtype = out.dtype
    x, offset, weight, bias, mask = (
        None if tensors.get(k) is None else tensors[k].detach().double()
        for k in ("input", "offset", "weight", "bias", "mask")
    )
    grad = grad.double()
    pairs = conv_settings(case)
    expected = reference_conv.forward(x, offset, weight, bias, mask, *pairs)
    terms = reference_conv.forward(
        x.abs(), offset, weight.abs(), absolute(bias), absolute(mask), *pairs
    )
    assert_rounded_alike(out.detach(), expected, dtype, largest(terms), "output", tensor_cores)

    names = ("input", "offset", "weight", "bias", "mask")
    wanted = [True, True, True, False, mask is not None]
    expected = reference_conv.backward(grad, x, offset, weight, None, mask, *pairs, wanted)
    terms = reference_conv.backward(
        grad.abs(), x.abs(), offset, weight.abs(), None, absolute(mask), *pairs, wanted
    )
    sample_grad = grad.abs().mul(weight.abs().amax((2, 3)).sum(1).view(-1, 1, 1)).sum(1)
    of_samples = largest(x.abs()) * largest(sample_grad)
    for name, e, t in zip(names, expected, terms, strict=True):
        if name != "bias" and grads.get(name) is not None:
            of_gemm = name in ("input", "weight")
            bound = largest(t) if of_gemm else of_samples
            rounded = tensor_cores and of_gemm
            assert_rounded_alike(grads[name], e, dtype, bound, f"gradient of {name}", rounded)


def conv_tensors(case):
    gen = torch.Generator().manual_seed(case["seed"])
    (h, w), (kh, kw) = case["size"], case["kernel"]
    out = [
        (s + 2 * p - d * (k - 1) - 1) // st + 1
        for s, p, d, k, st in zip(
            (h, w), case["padding"], case["dilation"], (kh, kw), case["stride"], strict=True
        )
    ]
    points = case["deform_groups"] * kh * kw
    tensors = dict(
        input=torch.randn(case["n"], case["c_in"], h, w, generator=gen),
        offset=eighths((case["n"], 2 * points, *out), gen),
        weight=torch.randn(case["c_out"], case["c_in"] // case["groups"], kh, kw, generator=gen),
        bias=torch.randn(case["c_out"], generator=gen) if case["bias"] else None,
        mask=torch.rand(case["n"], points, *out, generator=gen) if case["modulated"] else None,
    )
    first, second = case["layout"]
    tensors = {k: None if t is None else t.to(case["dtype"]) for k, t in tensors.items()}
    return {
        k: t if t is None or t.dim() < 4 else relaid(t, first if k != "offset" else second)
        for k, t in tensors.items()
    }, torch.randn(case["n"], case["c_out"], *out, generator=gen).to(case["dtype"])


def pool_tensors(case):
    gen = torch.Generator().manual_seed(case["seed"])
    count = case["rois"]
    index = torch.randint(0, case["n"], (count, 1), generator=gen)
    # Some inverted, some of no area, some outside, some not finite.
    boxes = eighths((count, 4), gen, reach=16, special=case["seed"] % 4 == 0)
    tensors = dict(
        input=torch.randn(case["n"], case["channels"], *case["size"], generator=gen),
        rois=torch.cat((index, boxes), 1),
        offset=eighths((count, 2, *case["output_size"]), gen) if case["offset"] else None,
        mask=torch.rand(count, 1, *case["output_size"], generator=gen) if case["mask"] else None,
    )
    dtypes = {"rois": torch.float64 if case["dtype"] == torch.float64 else torch.float32}
    tensors = {
        k: None if t is None else t.to(dtypes.get(k, case["dtype"])) for k, t in tensors.items()
    }
    tensors["input"] = relaid(tensors["input"], case["layout"][0])
    grad = torch.randn(count, case["channels"], *case["output_size"], generator=gen)
    return tensors, grad.to(case["dtype"])


def pool_settings(case):
    """What follows the tensors."""
    return (list(case["output_size"]), 0.5, case["sampling_ratio"], 0.25)


def assert_pool_is_its_definition(tensors, grad, out, grads, case, tensor_cores=False):
    """Output, and gradients by name, of tensors of any dtype against the definition in float64."""
    geometry = pool_settings(case)
    x, rois, offset, mask = (
        None if tensors[k] is None else tensors[k].detach().double()
        for k in ("input", "rois", "offset", "mask")
    )
    expected = reference_pool.forward(x, rois, offset, mask, *geometry)
    bound = reference_pool.forward(x.abs(), rois, offset, mask, *geometry)
    assert_rounded_alike(out.detach(), expected, case["dtype"], largest(bound), "output")

    grad = grad.double()
    wanted = [True, offset is not None, mask is not None]
    exact = reference_pool.backward(grad, x, rois, offset, mask, *geometry, wanted)
    bounds = reference_pool.backward(grad.abs(), x.abs(), rois, offset, mask, *geometry, wanted)
    of_bins = largest(x.abs()) * largest(grad.abs().sum(1))
    extent = (rois[:, 3:] - rois[:, 1:3]).abs()
    # By RoI, since one that is absurd would excuse all the others.
    of_shifts = of_bins * extent.nan_to_num(posinf=0).amax(1) * 0.5 * 0.25
    for name, expected, bound in zip(("input", "offset", "mask"), exact, bounds, strict=True):
        if name == "offset" and case["sampling_ratio"] == 0:
            # Thirds of a pixel are not exact: a sample may fall on either side of a pixel's
            # centre, where the value is the same but its derivative is not.
            continue
        if tensors[name] is None:
            continue
        if name == "offset":
            for actual, e, terms in zip(grads[name], expected, of_shifts, strict=True):
                assert_rounded_alike(actual, e, case["dtype"], terms, name)
        else:
            terms = {"input": largest(bound), "mask": of_bins}[name]
            assert_rounded_alike(grads[name], expected, case["dtype"], terms, name)


def aggregation_settings(case):
    """What follows the tensors."""
    pairs = (list(case[k]) for k in ("kernel", "stride", "padding", "dilation"))
    return (*pairs, case["offset_scale"], case["without_centre"], case["groups"])


def aggregation_tensors(case):
    gen = torch.Generator().manual_seed(case["seed"])
    settings = aggregation_settings(case)
    grid = aggregation.grid_of(*settings[:-1])
    n, groups, points = case["n"], case["groups"], grid.num_points
    out = [
        (size + 2 * pad - by * (k - 1) - 1) // stride + 1
        for size, k, stride, pad, by in zip(case["size"], *settings[:4], strict=True)
    ]
    channels = groups * case["group_channels"]
    reach = max(1.0, min(case["size"]) / 4) / case["offset_scale"]  # most samples are on the map
    offset = eighths((n, *out, 2 * groups * points), gen, reach)
    mask = torch.randn(n, *out, groups * points, generator=gen).double()
    if case["packed"]:
        parts = (t.unflatten(3, (groups, -1)) for t in (offset, mask))
        offset, mask = torch.cat((*parts,), 4).flatten(3), None
        offset = torch.nn.functional.pad(offset, (0, -offset.shape[3] % 8))
    tensors = dict(
        input=torch.randn(n, *case["size"], channels, generator=gen), offset=offset, mask=mask
    )
    first, second = case["layout"]
    tensors = {
        k: None if t is None else relaid(t.to(case["dtype"]), first if k == "input" else second)
        for k, t in tensors.items()
    }
    return tensors, torch.randn(n, *out, channels, generator=gen).to(case["dtype"])


def assert_aggregation_is_its_definition(tensors, grad, out, grads, case, tensor_cores=False):
    """Output, and gradients by name, of tensors of any dtype against the definition in float64."""
    settings, dtype = aggregation_settings(case), case["dtype"]
    x, offset, mask = (None if t is None else t.detach().double() for t in tensors.values())
    grid = aggregation.grid_of(*settings[:-1])
    # The same samples, with weights that do not cancel.
    above = (x.abs(), offset.clone(), None if mask is None else mask.clone())
    aggregation.deltas_of(*above[1:], case["groups"], grid).mask.abs_()
    weight = largest(aggregation.deltas_of(*above[1:], case["groups"], grid).mask)
    expected = aggregation.forward(x, offset, mask, *settings)
    terms = largest(aggregation.forward(*above, *settings))
    assert_rounded_alike(out.detach(), expected, dtype, terms, "output")
    grad = grad.double()
    wanted = [True, True, mask is not None]
    expected = aggregation.backward(grad, x, offset, mask, *settings, wanted)
    terms = aggregation.backward(grad.abs(), *above, *settings, [True, False, False])
    of_samples = largest(grad.abs().unflatten(3, (case["groups"], -1)).sum(4)) * largest(x.abs())
    bounds = (largest(terms[0]), of_samples * max(1.0, weight * case["offset_scale"]), of_samples)
    for name, e, bound in zip(("input", "offset", "mask"), expected, bounds, strict=True):
        if e is not None:
            assert_rounded_alike(grads[name], e, dtype, bound, f"gradient of {name}")


def kernel_settings(case):
    """What follows the tensors."""
    pairs = (list(case[k]) for k in ("kernel", "stride", "padding", "dilation"))
    return (*pairs, case["clamp"])


def kernel_tensors(case):
    gen = torch.Generator().manual_seed(case["seed"])
    n, c_in, (kh, kw) = case["n"], case["c_in"], case["kernel"]
    out = [
        (s + 2 * p - d * (k - 1) - 1) // st + 1
        for s, k, st, p, d in zip(case["size"], *kernel_settings(case)[:4], strict=True)
    ]
    shape = (case["c_out"], c_in // case["groups"], *case["scope"])
    tensors = dict(
        input=torch.randn(n, c_in, *case["size"], generator=gen),
        offset=eighths((n, 2 * case["rotations"] * kh * kw, *out), gen, reach=1.0),
        weight=torch.randn(shape, generator=gen),
        bias=torch.randn(case["c_out"], generator=gen) if case["bias"] else None,
        input_offset=None,
    )
    if case["deform_groups"]:
        shape = (n, 2 * case["deform_groups"] * kh * kw, *out)
        tensors["input_offset"] = eighths(shape, gen, reach=2.0)
    first, second = case["layout"]
    tensors = {k: None if t is None else t.to(case["dtype"]) for k, t in tensors.items()}
    return {
        k: t if t is None or t.dim() < 4 else relaid(t, second if "offset" in k else first)
        for k, t in tensors.items()
    }, torch.randn(n, case["c_out"], *out, generator=gen).to(case["dtype"])


def assert_kernel_is_its_definition(tensors, grad, out, grads, case, tensor_cores=False):
    """Output, and gradients by name, of tensors of any dtype against the definition in float64."""
    settings, dtype, grad = kernel_settings(case), case["dtype"], grad.double()
    exact = [None if t is None else t.detach().double() for t in tensors.values()]
    # The same places, of terms that do not cancel.
    above = [absolute(t) if i in (0, 2, 3) else t for i, t in enumerate(exact)]
    terms = largest(deform_kernel.forward(*above, *settings))
    expected = deform_kernel.forward(*exact, *settings)
    assert_rounded_alike(out.detach(), expected, dtype, terms, "output")

    wanted = [True, True, True, False, exact[4] is not None]
    expected = deform_kernel.backward(grad, *exact, *settings, wanted)
    sums = [True, False, True, False, False]
    terms = deform_kernel.backward(grad.abs(), *above, *settings, sums)
    weight = above[2].amax((2, 3)).sum(1).view(-1, 1, 1)
    of_offsets = 2 * largest(above[0]) * largest((grad.abs() * weight).sum(1))
    for name, e, bound in zip(tensors, expected, terms, strict=True):
        if e is not None:
            bound = of_offsets if bound is None else largest(bound)
            assert_rounded_alike(grads[name], e, dtype, bound, f"gradient of {name}")


@dataclass(frozen=True)
class OperatorCase:
    """What the checks that run over all operators need of one.

    strategy: the name in strategies.py of what draws its cases, dicts.
    tensors: of a case, by name and in the order of the operator's arguments; and the gradient of
        its output.
    settings: the arguments after the tensors.
    check: compares output and gradients, by name, with the definition.
    """

    strategy: str
    tensors: Callable
    settings: Callable
    check: Callable


OPERATOR_CASES = {
    "deform_conv2d": OperatorCase(
        "convolutions", conv_tensors, conv_settings, assert_conv_is_its_definition
    ),
    "deform_roi_pool": OperatorCase(
        "poolings", pool_tensors, pool_settings, assert_pool_is_its_definition
    ),
    "deform_aggregation": OperatorCase(
        "aggregations",
        aggregation_tensors,
        aggregation_settings,
        assert_aggregation_is_its_definition,
    ),
    "local_deform_kernel": OperatorCase(
        "deform_kernels", kernel_tensors, kernel_settings, assert_kernel_is_its_definition
    ),
}


def run_operator(name, case, forward, backward, device="cpu"):
    """Tensors, output gradient, output and gradients by name, of kernels or of a definition."""
    operator, own = OPERATORS[name], OPERATOR_CASES[name]
    tensors, grad = own.tensors(case)
    tensors = {k: None if t is None else t.to(device) for k, t in tensors.items()}
    grad = relaid(grad.to(device), case["layout"][1])
    arguments = (*tensors.values(), *own.settings(case))
    wanted = [tensors[k] is not None for k in operator.gradients]
    out = forward(*arguments)
    grads = backward(grad, *arguments, wanted)
    assert [g is not None for g in grads] == wanted
    return tensors, grad, out, dict(zip(operator.gradients, grads, strict=True))


def check_operator(name, case, forward, backward, device="cpu", **more):
    OPERATOR_CASES[name].check(*run_operator(name, case, forward, backward, device), case, **more)
