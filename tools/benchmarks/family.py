"""The rest of the family beside a depthwise F.conv2d and plain PyTorch."""

import importlib.util
from collections import namedtuple
from functools import partial
from itertools import product
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import dcn
from dcn.aggregation import definition as aggregation
from dcn.deform_kernel import definition as deform_kernel

from . import measure
from .functions import Function, between_pixels, channels_last

# 3×3 points, 16 channels a group.
Aggregation = namedtuple("Aggregation", "name size")
# A depthwise 3×3 convolution, whose kernels are read from 4×4 cells.
DeformKernel = namedtuple("DeformKernel", "name size")

# InternImage-T's stages on an image of 224×224, with twice the channels.
SIZES = ((128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7))
AGGREGATIONS = [Aggregation(f"stage {i}", size) for i, size in enumerate(SIZES, 1)]
DEFORM_KERNELS = [DeformKernel(f"stage {i}", size) for i, size in enumerate(SIZES, 1)]
POINTS = 9
IMAGE = (800, 1280)


def aggregation_functions(case: Aggregation, dtype, device: str) -> dict[str, Function]:
    gen = torch.Generator().manual_seed(0)
    channels, height, width = case.size
    groups = channels // 16
    x = torch.randn(1, height, width, channels, generator=gen)
    offset = between_pixels(torch.randn(1, height, width, 18 * groups, generator=gen), dtype)
    mask = torch.rand(1, height, width, groups, POINTS, generator=gen).softmax(-1).flatten(3)
    packed = torch.cat([t.unflatten(3, (groups, -1)) for t in (offset, mask)], 4).flatten(3)
    packed = F.pad(packed, (0, -packed.shape[3] % 8))
    grad = torch.randn(1, height, width, channels, generator=gen).to(device, dtype)
    tensors = {"input": x, "offset": offset, "mask": mask}
    packed = {"input": x, "offset_mask": packed}
    tensors, packed = (
        {name: t.to(device, dtype) for name, t in each.items()} for each in (tensors, packed)
    )

    settings = ([3, 3], [1, 1], [1, 1], [1, 1], 1.0, False, groups)
    exact = Function(
        lambda input, offset, mask: aggregation.forward(input, offset, mask, *settings),
        tensors,
        grad,
        lambda grad, **tensors: aggregation.backward(
            grad, *tensors.values(), *settings, [True] * 3
        ),
    )
    exact = exact.to(torch.float64)
    own, theirs = (partial(f, group=groups) for f in (dcn.dcnv3, by_grid_sample))
    return {
        "F.conv2d, depthwise": depthwise(case.size, grad.permute(0, 3, 1, 2), dtype, device),
        "dcn": Function(own, tensors, grad, None, exact, POINTS),
        "dcn, dcnv4": Function(partial(dcn.dcnv4, group=groups), packed, grad, products=POINTS),
        "grid_sample": Function(theirs, tensors, grad, None, exact, POINTS),
    }


def deform_kernel_functions(case: DeformKernel, dtype, device: str) -> dict[str, Function]:
    gen = torch.Generator().manual_seed(0)
    channels, height, width = case.size
    tensors = dict(
        input=torch.randn(1, *case.size, generator=gen),
        offset=between_pixels(torch.randn(1, 2 * POINTS, height, width, generator=gen), dtype),
        weight=torch.randn(channels, 1, 4, 4, generator=gen),
    )
    tensors = channels_last({name: t.to(device, dtype) for name, t in tensors.items()})
    grad = torch.randn(1, *case.size, generator=gen).to(device, dtype)
    grad = channels_last({"grad": grad})["grad"]
    settings = ([3, 3], [1, 1], [1, 1], [1, 1], False)

    def backward(grad, input, offset, weight):
        wanted = [True, True, True, False, False]
        return deform_kernel.backward(grad, input, offset, weight, None, None, *settings, wanted)

    exact = Function(
        lambda input, offset, weight: deform_kernel.forward(
            input, offset, weight, None, None, *settings
        ),
        tensors,
        grad,
        backward,
    )
    exact = exact.to(torch.float64)
    own = partial(dcn.local_deform_kernel, kernel_size=3, padding=1)
    return {
        "F.conv2d, depthwise": depthwise(case.size, grad, dtype, device),
        "dcn": Function(own, tensors, grad, None, exact, POINTS),
        "gather": Function(by_gather, tensors, grad, None, exact, POINTS),
    }


def depthwise(size: tuple[int, int, int], grad: Tensor, dtype, device: str) -> Function:
    """A regular 3×3 convolution of that size."""
    gen = torch.Generator().manual_seed(0)
    tensors = dict(
        input=torch.randn(1, *size, generator=gen),
        weight=torch.randn(size[0], 1, 3, 3, generator=gen),
    )
    tensors = channels_last({name: t.to(device, dtype) for name, t in tensors.items()})
    return Function(partial(F.conv2d, padding=1, groups=size[0]), tensors, grad)


def measure_network(repeats: int) -> list[dict]:
    """The forward pass of InternImage-T's backbone, with the operator and with grid_sample."""
    if importlib.util.find_spec("mmdet") is None:
        return []
    from dcndet.models.backbones import InternImage

    print("InternImage-T", flush=True)
    torch.manual_seed(0)
    network = InternImage().eval()
    image = torch.randn(1, 3, *IMAGE)

    def plain(input, offset, mask, kernel_size, stride, pad, dilation, group, *rest):
        return by_grid_sample(input, offset, mask, group)

    def run(operator=None) -> tuple[Tensor, ...]:
        module = dcn.aggregation.module
        with torch.no_grad(), mock.patch.object(module, "dcnv3", operator or module.dcnv3):
            return network(image)

    calls = {"dcn": run, "grid_sample": partial(run, plain)}
    found = measure.side_by_side(calls, repeats, "cpu")
    results = {
        name: {f"forward_{key}": value for key, value in figures.items()}
        for name, figures in found.items()
    }
    results["dcn"]["difference"] = measure.largest_difference(run(), run(plain))
    shape = "×".join(map(str, (3, *IMAGE)))
    case = dict(case="InternImage-T", shape=shape, dtype="float32", repeats=repeats)
    return [case | dict(results=results)]


def measure_classifier(repeats: int) -> list[dict]:
    """The network of the article on ConvOffset2D, plain and with its last three layers replaced."""
    if importlib.util.find_spec("mmdet") is None:
        return []
    from dcndet.models.backbones import SmallCNN

    print("a classifier of digits", flush=True)
    torch.manual_seed(0)
    layers = {"plain": None, "dcn": "mdconv", "dcn, ConvOffset2D": "conv_offset"}
    networks = {
        name: SmallCNN(
            (32, 64, 128, 128), (1, 2, 1, 2), deform=conv and dict(layers=3, conv=conv)
        ).to(memory_format=torch.channels_last)
        for name, conv in layers.items()
    }
    digits = torch.randn(32, 1, 28, 28)

    def forward(network):
        with torch.no_grad():
            return network(digits)

    def both(network):
        return torch.autograd.grad(network(digits)[0].sum(), [*network.parameters()])

    results = {name: {} for name in networks}
    for kind, call in (("forward", forward), ("both", both)):
        calls = {name: partial(call, network) for name, network in networks.items()}
        for name, figures in measure.side_by_side(calls, repeats, "cpu").items():
            results[name] |= {f"{kind}_{key}": value for key, value in figures.items()}
    case = dict(case="digits", shape="32×1×28×28", dtype="float32", repeats=repeats)
    return [case | dict(results=results)]


def by_grid_sample(input: Tensor, offset: Tensor, mask: Tensor, group: int) -> Tensor:
    """DCNv3 in plain PyTorch, as its release has it for tests: grid_sample of every group."""
    _, h, w, _ = input.shape
    place = torch.arange(POINTS, dtype=input.dtype, device=input.device)
    point = torch.stack((place // 3 - 1, place % 3 - 1), -1)  # x and y, column by column
    y, x = (torch.arange(n, dtype=input.dtype, device=input.device) for n in (h, w))
    pixel = torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1)
    where = offset.unflatten(3, (group, POINTS, 2)) + point + pixel[:, :, None, None]
    size = torch.tensor([w, h], dtype=input.dtype, device=input.device)
    grid = (2 * where + 1) / size - 1
    samples = F.grid_sample(
        input.unflatten(3, (group, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1),
        grid.permute(0, 3, 1, 2, 4, 5).flatten(0, 1).flatten(1, 2),
        align_corners=False,
    )  # [N·G, C/G, H·W, K]
    weight = mask.unflatten(3, (group, POINTS)).permute(0, 3, 1, 2, 4).flatten(0, 1)
    out = (samples * weight.flatten(1, 2).unsqueeze(1)).sum(-1)
    return out.unflatten(0, (-1, group)).flatten(1, 2).mT.reshape(input.shape)


def by_gather(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """A depthwise deformable kernel in plain PyTorch: all kernels and all samples written out."""
    channels, scope = input.shape[1], weight.shape[2]
    place = torch.arange(POINTS, device=input.device)
    rest = torch.stack((place // 3, place % 3), 1) + (scope - 3) / 2
    where = offset.unflatten(1, (POINTS, 2)).flatten(3) + rest[:, :, None]  # [N, K, 2, H·W]
    low = where.floor()
    cells = weight.flatten(1)
    kernels = 0
    for corner in product((0, 1), (0, 1)):
        cell = low + cell_offset(corner, low)
        factor = (1 - (where - cell).abs()).prod(2) * ((cell >= 0) & (cell < scope)).all(2)
        cell = cell.clamp(0, scope - 1).long()
        index = cell[:, :, 0] * scope + cell[:, :, 1]
        kernels = kernels + cells[:, index] * factor
    samples = F.unfold(input, 3, padding=1).unflatten(1, (channels, POINTS))
    return (kernels.transpose(0, 1) * samples).sum(2).view(input.shape)


def cell_offset(corner: tuple[int, int], like: Tensor) -> Tensor:
    return torch.tensor(corner, dtype=like.dtype, device=like.device)[:, None]
