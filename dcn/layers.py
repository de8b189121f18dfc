"""Layers by name, to be put where a regular convolution is."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .aggregation import DCNv3, DCNv4
from .conv_offset import ConvOffset2D
from .deform_conv import DeformConv2d
from .deform_kernel import (
    CondConv2d,
    DeformKernelConv2d,
    GlobalDeformKernel2d,
    LocalDeformKernel2d,
)


@dataclass(frozen=True)
class Layer:
    """A kind of layer.

    Args:
        cls: has `from_conv(conv, **settings)`, which gives a module of the same input and output.
        settings: names of what may be set.
        fixed: what this kind sets.
    """

    cls: type
    settings: tuple[str, ...] = ()
    fixed: dict[str, Any] = field(default_factory=dict)

    def from_conv(self, conv: nn.Conv2d, **settings) -> nn.Module:
        """In place of `conv`; with its weight where the kind has one of that shape.

        Raises:
            TypeError: a setting that this kind does not have.
            ValueError: `conv` has a geometry that this kind does not have, or a setting is out of
                range.
        """
        unknown = sorted(set(settings) - set(self.settings))
        if unknown:
            raise TypeError(f"unknown settings {unknown}, expected some of {[*self.settings]}")
        return self.cls.from_conv(conv, **(self.fixed | settings))


_AGGREGATION = ("group", "offset_scale", "dw_kernel_size", "center_feature_scale", "remove_center")
_SCOPE = ("scope_size", "rotation_groups", "clamp")
LAYERS = {
    # A mask_scale scales no mask there; a config may have one for the other kind.
    "dconv": Layer(DeformConv2d, ("deform_groups", "mask_scale"), {"modulated": False}),
    "mdconv": Layer(DeformConv2d, ("deform_groups", "mask_scale")),
    "dcnv3": Layer(DCNv3, (*_AGGREGATION, "act_layer", "norm_layer")),
    "dcnv4": Layer(DCNv4, _AGGREGATION),
    "dk_local": Layer(LocalDeformKernel2d, _SCOPE),
    "dk_global": Layer(GlobalDeformKernel2d, ("scope_size",)),
    "dk_dconv": Layer(DeformKernelConv2d, (*_SCOPE, "deform_groups")),
    "condconv": Layer(CondConv2d, ("num_experts",)),
    "conv_offset": Layer(ConvOffset2D, ("init_std",)),
}
