"""ResNet and ResNeXt with deformable 3×3 convolutions (arXiv 1811.11168, section 3.1)."""

import re
from collections.abc import Sequence

from mmdet.models.backbones import ResNet, ResNeXt
from mmdet.registry import MODELS
from torch import nn

from dcn import LAYERS


class Deform:
    """Makes some of the residual blocks' 3×3 convolutions deformable.

    Args:
        deform: None for the regular network, or a dict of

            - `layers` (int): the last so many 3×3 convolutions, counted from the output; or
            - `stages` (sequence of bool, one per stage): all of those stages. Where both are given,
              `layers` counts, so that `model.backbone.deform.layers=9` works on every config;
            - `conv` (str): what takes their place, a name of `dcn.LAYERS`: 'mdconv' (DCNv2, the
              default), 'dconv' (DCNv1), 'dcnv3', 'dcnv4', 'dk_local', 'condconv', ...;
            - settings of that layer, for example `deform_groups` (int, 1), `scope_size` (int) of
              'dk_local', and of 'mdconv' `mask_scale` (float): Δm = mask_scale · sigmoid. 1, the
              default, is the paper's text; 2 is the authors' code, where Δm starts at 1;
            - `modulated` (bool): an older way to say 'mdconv' (True) or 'dconv'.

            In ResNet-50, conv3–conv5 have 13 of them: 3 layers are conv5, 9 are conv4–conv5, and
            the paper's 12 leave out the first of conv3. In ResNet-18 conv3–conv5 are 12.

    All other arguments are those of mmdet's class. Every deformable convolution takes its stride,
    dilation, groups and weight from the regular one in its place, so weights of the regular network
    load into it by the same names. DCNv3 and DCNv4 have no such weight.

    Raises:
        ValueError: `deform` has other keys, neither `layers` nor `stages`, more layers than there
            are, or deform_groups that do not divide a layer's channels; or `init_cfg` names the
            weights of another depth.
    """

    def __init__(self, *args, deform: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        _check_depth(self.depth, self.init_cfg)
        if deform is not None:
            self._make_deformable(**checked(deform, self.num_stages))
            self._freeze_stages()  # once more, for the layers that have just been put in

    def _make_deformable(self, **settings) -> None:
        convs = [
            (stage, block, name)
            for stage, layer in enumerate(self.res_layers)
            for block in getattr(self, layer)
            for name in ("conv1", "conv2")
            if getattr(block, name).kernel_size == (3, 3)
        ]
        make_deformable(convs, **settings)


@MODELS.register_module()
class DeformResNet(Deform, ResNet):
    __doc__ = Deform.__doc__


@MODELS.register_module()
class DeformResNeXt(Deform, ResNeXt):
    __doc__ = Deform.__doc__


def _check_depth(depth: int, init_cfg) -> None:
    checkpoint = init_cfg.get("checkpoint") if isinstance(init_cfg, dict) else None
    found = re.search(r"res(?:net|next)[-_]?(\d+)", str(checkpoint).rsplit("/", 1)[-1].lower())
    if found and int(found[1]) != depth:
        raise ValueError(
            f"depth={depth}, but init_cfg has weights of depth {found[1]}: set model.backbone."
            f"init_cfg.checkpoint, which is {checkpoint}, or model.backbone.init_cfg=None"
        )


def checked(deform: dict, num_stages: int) -> dict:
    if not isinstance(deform, dict):
        raise ValueError(f"deform: expected a dict, got {deform!r}")
    settings = dict(layers=None, stages=None, conv="mdconv") | deform
    layers, stages = settings["layers"], settings["stages"]
    modulated = settings.pop("modulated", None)
    if modulated is not None:
        if "conv" in deform or not isinstance(modulated, bool):
            raise ValueError(
                f"deform: modulated={modulated!r} is an older way to say conv='mdconv' (True) or "
                "'dconv' (False); give conv alone"
            )
        settings["conv"] = "mdconv" if modulated else "dconv"
    if not isinstance(settings["conv"], str) or settings["conv"] not in LAYERS:
        raise ValueError(f"deform: conv={settings['conv']!r}, expected one of {[*LAYERS]}")
    known = {"layers", "stages", "conv", *LAYERS[settings["conv"]].settings}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"deform: unknown keys {unknown}, expected some of {sorted(known)}")
    if layers is None and stages is None:
        raise ValueError("deform: give layers or stages")
    if layers is not None and (type(layers) is not int or layers < 0):
        raise ValueError(f"deform: layers must be an integer from 0 up, got {layers!r}")
    if stages is not None and (not isinstance(stages, Sequence) or len(stages) != num_stages):
        raise ValueError(f"deform: expected {num_stages} stages, got {stages}")
    return settings


def make_deformable(
    convs: list[tuple[int, nn.Module, str]],
    layers: int | None,
    stages: Sequence[bool] | None,
    conv: str,
    kinds: tuple[type, ...] = (nn.Conv2d,),
    **settings,
) -> None:
    """Replace those of a backbone's convolutions that `checked` settings choose.

    Args:
        convs: (stage, parent module, name in it) of all that could be, from input to output.
        conv: a name of `dcn.LAYERS`.
        kinds: the classes of convolutions that it can take the place of.
        settings: of the layer.

    Raises:
        ValueError: more layers than there are, or a convolution of another kind.
    """
    if layers is None:
        chosen = [(block, name) for stage, block, name in convs if stages[stage]]
    else:
        if layers > len(convs):
            raise ValueError(
                f"deform: layers={layers}, but this backbone has {len(convs)} convolutions that "
                "could be deformable"
            )
        chosen = [(block, name) for _, block, name in convs[len(convs) - layers :]]
    for block, name in chosen:
        regular = getattr(block, name)
        if type(regular) not in kinds:
            raise ValueError(f"deform: cannot replace a {type(regular).__name__}, only a Conv2d")
        setattr(block, name, LAYERS[conv].from_conv(regular, **settings))
