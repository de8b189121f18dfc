"""InternImage (arXiv 2211.05778, section 3.2) and FlashInternImage (arXiv 2401.06197)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
from mmcv.cnn.bricks import DropPath
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import Permute

from dcn import DCNv3, DCNv4

from ..engine.checkpoint import load_weights

# Of the release's detection configs, OpenGVLab/InternImage. What they have in common:
_COMMON = dict(mlp_ratio=4.0, layer_scale=1.0, dw_kernel_size=None, center_feature_scale=False)
_COLUMNS = ("channels", "depths", "groups", "offset_scale", "post_norm", "drop_path_rate")
_ROWS = {
    "T": (64, (4, 4, 18, 4), (4, 8, 16, 32), 1.0, False, 0.2),
    "S": (80, (4, 4, 21, 4), (5, 10, 20, 40), 1.0, True, 0.3),
    "B": (112, (4, 4, 21, 4), (7, 14, 28, 56), 1.0, True, 0.4),
    "L": (160, (5, 5, 22, 5), (10, 20, 40, 80), 2.0, True, 0.4),
}
# What OpenGVLab/DCNv4's have beside or instead of that.
_FLASH = {
    "T": dict(dcn_output_bias=False, mlp_fc2_bias=False),
    "S": dict(dcn_output_bias=False, mlp_fc2_bias=False, dw_kernel_size=3),
    "B": dict(dcn_output_bias=False, mlp_fc2_bias=False, dw_kernel_size=3, offset_scale=0.5),
    "L": dict(dcn_output_bias=True, mlp_fc2_bias=True, dw_kernel_size=3),
}


@MODELS.register_module()
class InternImage(BaseModule):
    """The feature maps of InternImage, whose blocks are a DCNv3 and an MLP.

    Parameters are named as in the release (OpenGVLab/InternImage, detection), whose weights load
    unchanged. What only its largest networks, H and G, have is left out.

    Args:
        arch: 'T', 'S', 'B' or 'L', which gives all of `settings` their values.
        out_indices: levels whose feature maps are returned, counted from 0.
        frozen_stages: -1 trains all, 0 freezes the stem, i also the first i levels. (In the
            release the stem is never frozen.)
        with_cp: compute a block's activations again in the backward pass rather than keep them.
        init_cfg: None for random weights, or `dict(type='Pretrained', checkpoint=...)` with the
            file or URL of a classifier or detector of the release. Every parameter is filled, save
            the layer scales, which InternImage-T's classifier does not have.
        settings: what differs from `arch`:

            - `channels` (int), even: C of the first level; every further one has twice as many;
            - `depths`, `groups` (sequences of int): blocks, and groups of their DCN, in each level;
            - `offset_scale` (float): as in `dcn.DCNv3`;
            - `post_norm` (bool): norms follow the DCN and the MLP rather than precede them. Levels
              then have no norm at their end;
            - `drop_path_rate` (float): of the last block; it rises linearly from 0 at the first;
            - `mlp_ratio` (float): hidden channels of the MLP as a multiple of its own;
            - `layer_scale` (float | None): initial value of the factors, one a channel, of what a
              block adds; None for no such factors;
            - `dw_kernel_size` (int | None): as in `dcn.DCNv3`;
            - `center_feature_scale` (bool): as in `dcn.DCNv3`. Levels then end with a norm.

    Shapes: [N, 3, H, W] -> tuple of [N, C · 2^i, H / s_i, W / s_i], s_i = 4, 8, 16, 32, rounded up.

    Raises:
        TypeError: an unknown setting.
        ValueError: a value that is none of the above.
        CheckpointError: in `init_weights`, if the weights cannot be had or do not fit.
    """

    dcn: ClassVar = DCNv3
    channels_last: ClassVar = True  # of the maps between its modules, the stem's apart
    variants: ClassVar = {
        arch: _COMMON | dict(zip(_COLUMNS, row, strict=True)) for arch, row in _ROWS.items()
    }
    # What a checkpoint of the release may have its weights under; the first that is there counts.
    weights: ClassVar = ("state_dict", "model")

    def __init__(
        self,
        arch: str = "T",
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        **settings,
    ) -> None:
        super().__init__(init_cfg)
        if arch not in self.variants:
            raise ValueError(f"arch: expected one of {[*self.variants]}, got {arch!r}")
        known = self.variants[arch]
        if unknown := sorted(set(settings) - set(known)):
            raise TypeError(f"unknown settings {unknown}, expected some of {sorted(known)}")
        settings = known | settings
        channels, depths = settings["channels"], settings["depths"]
        widths = _checked_widths(channels, depths, settings["groups"])
        if not set(out_indices) <= set(range(len(depths))):
            raise ValueError(f"out_indices: expected 0 to {len(depths) - 1}, got {out_indices}")
        if not -1 <= frozen_stages <= len(depths):
            raise ValueError(f"frozen_stages: expected -1 to {len(depths)}, got {frozen_stages}")
        rate = settings["drop_path_rate"]
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path_rate: expected 0 to less than 1, got {rate}")
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.patch_embed = _stem(channels)
        # On the CPU also where the network is built on another device.
        rates = iter(torch.linspace(0, rate, sum(depths), device="cpu").tolist())
        names = ("dw_kernel_size", "offset_scale", "center_feature_scale", "dcn_output_bias")
        dcn = {name.removeprefix("dcn_"): settings[name] for name in names if name in settings}
        self.levels = nn.ModuleList()
        for width, depth, group in zip(widths, depths, settings["groups"], strict=True):
            level = nn.Module()  # is never called: a map is taken between its norm and downsample
            level.blocks = nn.Sequential()
            for _ in range(depth):
                core = self.dcn(width, group=group, **dcn)
                level.blocks.append(_Block(core, width, next(rates), with_cp, settings))
            has_norm = not settings["post_norm"] or settings["center_feature_scale"]
            level.norm = _norm(width) if has_norm else nn.Identity()
            level.downsample = nn.Identity() if width == widths[-1] else _downsample(width)
            self.levels.append(level)
        for module in self._frozen():
            module.requires_grad_(False)

    def init_weights(self) -> None:
        """Fill the network from `init_cfg`, or leave it as the constructor made it."""
        if self.init_cfg is None or self.init_cfg["type"] != "Pretrained":
            return super().init_weights()
        source = self.init_cfg["checkpoint"]
        state = CheckpointLoader.load_checkpoint(source, map_location="cpu")
        state = next((state[name] for name in self.weights if name in state), state)
        own = {k: v for k, v in self.state_dict().items() if k.endswith((".gamma1", ".gamma2"))}
        for key, value in state.items():
            key = key.removeprefix("module.").removeprefix("backbone.")
            if key.startswith(("patch_embed.", "levels.")):  # and not a classifier's or a neck's
                own[key] = value
        load_weights(self, own, source, strict=True)
        self._is_init = True

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [self.patch_embed, *self.levels][: self.frozen_stages + 1]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)  # [N, H, W, C] from here on
        maps = []
        for level in self.levels:
            x = level.norm(level.blocks(x))
            maps.append(x.permute(0, 3, 1, 2))
            x = level.downsample(x)
        return tuple(maps[i] for i in self.out_indices)


@MODELS.register_module()
class FlashInternImage(InternImage):
    """The feature maps of FlashInternImage: InternImage with DCNv4.

    Parameters are named as in the release (OpenGVLab/DCNv4, detection), whose weights load
    unchanged. `arch`, the other arguments, shapes and errors are those of `InternImage`, with two
    more settings:

        - `dcn_output_bias`, `mlp_fc2_bias` (bool): whether the last layers of DCN and MLP have a
          bias.

    `offset_scale`, `dw_kernel_size` and `center_feature_scale` are as in `dcn.DCNv4`. (The release
    does not hand the last of them on.)
    """

    dcn: ClassVar = DCNv4
    variants: ClassVar = {arch: InternImage.variants[arch] | own for arch, own in _FLASH.items()}
    weights: ClassVar = ("state_dict", "model_ema", "model")


class _Block(nn.Module):
    """On maps [N, H, W, C]."""

    def __init__(
        self, dcn: nn.Module, channels: int, drop_path: float, with_cp: bool, settings: dict
    ) -> None:
        super().__init__()
        self.post_norm, self.with_cp = settings["post_norm"], with_cp
        self.norm1 = _norm(channels)
        self.dcn = dcn
        self.drop_path = DropPath(drop_path)
        self.norm2 = _norm(channels)
        hidden = int(channels * settings["mlp_ratio"])
        fc1 = nn.Linear(channels, hidden)
        fc2 = nn.Linear(hidden, channels, bias=settings.get("mlp_fc2_bias", True))
        for fc in (fc1, fc2):
            nn.init.trunc_normal_(fc.weight, std=0.02)
            if fc.bias is not None:
                nn.init.zeros_(fc.bias)
        self.mlp = _named(fc1=fc1, act=nn.GELU(), fc2=fc2)
        scale = settings["layer_scale"]
        for name in ("gamma1", "gamma2"):
            gamma = None if scale is None else nn.Parameter(torch.full((channels,), float(scale)))
            self.register_parameter(name, gamma)

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self._branch(x, self.dcn, self.norm1, self.gamma1)
        return x + self._branch(x, self.mlp, self.norm2, self.gamma2)

    def _branch(self, x: Tensor, layer: nn.Module, norm: nn.Module, gamma: Tensor | None) -> Tensor:
        x = norm(layer(x)) if self.post_norm else layer(norm(x))
        return self.drop_path(x if gamma is None else gamma * x)


# Norms are in sequences and layers have names, as the release's parameters need it.
def _norm(channels: int, *before: nn.Module) -> nn.Sequential:
    return nn.Sequential(*before, nn.LayerNorm(channels, eps=1e-6))


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _stem(channels: int) -> nn.Sequential:
    """[N, 3, H, W] -> [N, H / 4, W / 4, C]."""
    half = channels // 2
    return _named(
        conv1=nn.Conv2d(3, half, 3, 2, 1),
        norm1=_norm(half, Permute([0, 2, 3, 1])).append(Permute([0, 3, 1, 2])),
        act=nn.GELU(),
        conv2=nn.Conv2d(half, channels, 3, 2, 1),
        norm2=_norm(channels, Permute([0, 2, 3, 1])),
    )


def _downsample(channels: int) -> nn.Sequential:
    """[N, H, W, C] -> [N, H / 2, W / 2, 2C]."""
    return _named(
        permute=Permute([0, 3, 1, 2]),
        conv=nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False),
        norm=_norm(2 * channels, Permute([0, 2, 3, 1])),
    )


def _checked_widths(channels: int, depths: Sequence[int], groups: Sequence[int]) -> list[int]:
    """The channels of every level."""
    if channels < 2 or channels % 2:
        raise ValueError(f"channels: expected an even number from 2 up, got {channels}")
    if not depths or min(depths) < 1:
        raise ValueError(f"depths: expected one or more numbers from 1 up, got {depths}")
    widths = [channels << level for level in range(len(depths))]
    fit = len(groups) == len(depths) and min(groups) > 0
    if not fit or any(w % g for w, g in zip(widths, groups, strict=True)):
        raise ValueError(f"groups: expected divisors of {widths}, got {groups}")
    return widths
