"""ResNet-50-DW and MobileNetV2, whose depthwise convolutions other layers replace."""

from collections import OrderedDict

from mmdet.models.backbones import MobileNetV2, ResNeXt
from mmdet.registry import MODELS
from mmengine.model import Sequential
from torch import nn

from dcn.checks import integer

from .deform_resnet import Deform, checked, make_deformable


class _ResNetDW(ResNeXt):
    def __init__(self, *, width: int = 1, **kwargs) -> None:
        unknown = {"depth", "groups", "base_width", "conv_cfg", "dcn"} & set(kwargs)
        if unknown:
            raise ValueError(f"ResNet50DW has no {', '.join(sorted(unknown))}")
        # So many groups of ResNet's channels make mmdet's bottleneck that much wider.
        groups = integer("width", width, 1, 64)
        base_width = kwargs.get("base_channels", 64)
        super().__init__(depth=50, groups=groups, base_width=base_width, **kwargs)
        for layer in self.res_layers:
            for block in getattr(self, layer):
                block.conv2 = _depthwise(block.conv2)
        self._freeze_stages()  # once more, for these convolutions


@MODELS.register_module()
class ResNet50DW(Deform, _ResNetDW):
    """ResNet-50 whose bottlenecks have depthwise 3×3 convolutions (arXiv 1910.02940, section 4).

    Args:
        width: channels of a bottleneck's 3×3 convolution, as a multiple of ResNet-50's.
        deform: as in `DeformResNet`; there are 16 depthwise convolutions.

    All other arguments are those of mmdet's ResNet, by name, except for depth, conv_cfg and dcn.

    Raises:
        ValueError: as in `DeformResNet`, or an argument that this network does not have.
    """


@MODELS.register_module()
class DeformMobileNetV2(MobileNetV2):
    """MobileNetV2 (arXiv 1801.04381), some of its depthwise convolutions replaced.

    Args:
        deform: as in `DeformResNet`; there are seven stages with 17 depthwise convolutions.

    All other arguments are those of mmdet's class.

    Raises:
        ValueError: as in `DeformResNet`.
    """

    def __init__(self, *args, deform: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if deform is not None:
            stages = [getattr(self, name) for name in self.layers if name != "conv2"]
            convs = [
                (stage, block.depthwise_conv, "conv")
                for stage, blocks in enumerate(stages)
                for block in blocks
            ]
            make_deformable(convs, **checked(deform, len(stages)))

    def make_layer(self, *args, **kwargs) -> Sequential:
        """As mmdet's, of modules that pass `init_weights` on to a layer that is put in."""
        blocks = super().make_layer(*args, **kwargs)
        for block in blocks:
            block.depthwise_conv = Sequential(OrderedDict(block.depthwise_conv.named_children()))
        return Sequential(*blocks)


def _depthwise(conv: nn.Conv2d) -> nn.Conv2d:
    """Of the same geometry."""
    channels = conv.out_channels
    geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return nn.Conv2d(channels, channels, *geometry, groups=channels, bias=False)
