"""Layers that are put in place of a regular convolution."""

from torch import nn

from .deformable import Deformable


def geometry_of(conv: nn.Module) -> tuple:
    """What a layer takes over from the convolution in whose place it is put.

    Returns:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups.

    Raises:
        ValueError: no layer can stand in for this module.
    """
    if not isinstance(conv, nn.Conv2d) or isinstance(conv, Deformable):
        raise ValueError(f"conv: expected a Conv2d, got {type(conv).__name__}")
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(f"conv: only padding with zeros of a given size, got {conv}")
    return (
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )


def take_over(layer: nn.Module, conv: nn.Conv2d) -> nn.Module:
    """The layer with the weight and the bias of the convolution, and in its mode.

    They are read as attributes, as a parametrised convolution computes them.
    """
    tensors = dict(weight=conv.weight, bias=conv.bias)
    state = {name: t.detach() for name, t in tensors.items() if t is not None}
    layer.load_state_dict(state, strict=False)
    return layer.train(conv.training)
