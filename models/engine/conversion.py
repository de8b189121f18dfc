"""Weights of other libraries, under the names and in the order of mmdetection 3.

A library's table has a line for each kind of key: how it looks there and its name here. `#` is a
number (`#-1` one less), `*` a part without dots, `**` any part, and what is in brackets may be
missing. The first line that fits counts, and keys that fit none are left out.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from .checkpoint import load_arrays, whole_file
from .errors import CheckpointError


class Library(NamedTuple):
    """How its weights are told from others, and what becomes of them.

    Attributes:
        signs: keys, in the table's notation, all of which its state dicts have.
        names: the table.
        rows: what puts a tensor's rows in our order, by the name of its layer here.
    """

    signs: tuple[str, ...]
    names: str
    rows: dict[str, Callable[[Tensor], Tensor]]


def _ratios_first(value: Tensor, width: int) -> Tensor:
    """Sort anchors, which have three shapes and `width` rows each, by shape before size."""
    return value.unflatten(0, (-1, 3, width)).transpose(0, 1).flatten(0, 2)


def _background_last(value: Tensor, width: int, has: bool, ids: Sequence[int] = ()) -> Tensor:
    """Move class 0, the background, to the end, or leave it out if the layer `has` none here.

    Each class has `width` rows. Of 91 classes, which are COCO's ids, only `ids` are kept.
    """
    classes = value.unflatten(0, (-1, width))
    if len(classes) == 1:  # boxes or masks that are the same for all classes
        return value
    kept = ids if ids and len(classes) == 91 else range(1, len(classes))
    return classes[[*kept, *([0] if has else [])]].flatten(0, 1)


def _background_first(ids: Sequence[int] = ()) -> dict[str, Callable[[Tensor], Tensor]]:
    """The rows of a library whose class 0 is the background, with boxes and masks of its own."""
    return {
        "fc_cls": partial(_background_last, width=1, has=True, ids=ids),
        "fc_reg": partial(_background_last, width=4, has=False, ids=ids),
        "conv_logits": partial(_background_last, width=1, has=False, ids=ids),
    }


MMDETECTION = """
**.conv#_offset.*       **.conv#.conv_offset.*
**                      **
"""
MMDETECTION_1 = """
bbox_head.**            roi_head.bbox_head.**
mask_head.**            roi_head.mask_head.**
bbox_roi_extractor.**   roi_head.bbox_roi_extractor.**
mask_roi_extractor.**   roi_head.mask_roi_extractor.**
"""
# The backbone has both prefixes in a network with an FPN, one in one without, none in a classifier.
# conv2_offset has 18 offsets, y and x of one point after the other, and 9 masks, as conv_offset.
DETECTRON2 = """
[backbone.][bottom_up.]stem.conv1.weight            backbone.conv1.weight
[backbone.][bottom_up.]stem.conv1.norm.*            backbone.bn1.*
[backbone.][bottom_up.]res#.#.conv#.weight          backbone.layer#-1.#.conv#.weight
[backbone.][bottom_up.]res#.#.conv#.norm.*          backbone.layer#-1.#.bn#.*
[backbone.][bottom_up.]res#.#.conv2_offset.*        backbone.layer#-1.#.conv2.conv_offset.*
[backbone.][bottom_up.]res#.#.shortcut.weight       backbone.layer#-1.#.downsample.0.weight
[backbone.][bottom_up.]res#.#.shortcut.norm.*       backbone.layer#-1.#.downsample.1.*
backbone.fpn_lateral#.*                             neck.lateral_convs.#-2.conv.*
backbone.fpn_output#.*                              neck.fpn_convs.#-2.conv.*
proposal_generator.rpn_head.conv.*                  rpn_head.rpn_conv.*
proposal_generator.rpn_head.objectness_logits.*     rpn_head.rpn_cls.*
proposal_generator.rpn_head.anchor_deltas.*         rpn_head.rpn_reg.*
roi_heads.box_head.fc#.*                            roi_head.bbox_head.shared_fcs.#-1.*
roi_heads.box_predictor.cls_score.*                 roi_head.bbox_head.fc_cls.*
roi_heads.box_predictor.bbox_pred.*                 roi_head.bbox_head.fc_reg.*
roi_heads.mask_head.mask_fcn#.*                     roi_head.mask_head.convs.#-1.conv.*
roi_heads.mask_head.deconv.*                        roi_head.mask_head.upsample.*
roi_heads.mask_head.predictor.*                     roi_head.mask_head.conv_logits.*
"""
TORCHVISION = """
conv1.*                 backbone.conv1.*
bn1.*                   backbone.bn1.*
layer#.**               backbone.layer#.**
"""
# What may be missing came with torchvision 0.13.
TORCHVISION_DETECTORS = """
backbone.body.**                            backbone.**
backbone.fpn.inner_blocks.#[.0].*           neck.lateral_convs.#.conv.*
backbone.fpn.layer_blocks.#[.0].*           neck.fpn_convs.#.conv.*
rpn.head.conv[.0.0].*                       rpn_head.rpn_conv.*
rpn.head.cls_logits.*                       rpn_head.rpn_cls.*
rpn.head.bbox_pred.*                        rpn_head.rpn_reg.*
roi_heads.box_head.fc#.*                    roi_head.bbox_head.shared_fcs.#-6.*
roi_heads.box_predictor.cls_score.*         roi_head.bbox_head.fc_cls.*
roi_heads.box_predictor.bbox_pred.*         roi_head.bbox_head.fc_reg.*
roi_heads.mask_head.#.0.*                   roi_head.mask_head.convs.#.conv.*
roi_heads.mask_head.mask_fcn#.*             roi_head.mask_head.convs.#-1.conv.*
roi_heads.mask_predictor.conv5_mask.*       roi_head.mask_head.upsample.*
roi_heads.mask_predictor.mask_fcn_logits.*  roi_head.mask_head.conv_logits.*
"""
CATEGORIES = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO = [i for i, name in enumerate(CATEGORIES) if name not in ("__background__", "N/A")]

LIBRARIES = {
    "mmdetection 1": Library(
        ("bbox_head[.#].fc_cls.weight",), MMDETECTION_1 + MMDETECTION, _background_first()
    ),
    "mmdetection 2": Library(("backbone.layer1.0.conv1.weight",), MMDETECTION, {}),
    "detectron2": Library(
        ("[backbone.][bottom_up.]stem.conv1.weight",),
        DETECTRON2,
        {"rpn_cls": partial(_ratios_first, width=1), "rpn_reg": partial(_ratios_first, width=4)},
    ),
    "torchvision": Library(("conv1.weight", "layer1.0.conv1.weight"), TORCHVISION, {}),
    "torchvision's detectors": Library(
        ("backbone.body.layer1.0.conv1.weight", "roi_heads.box_head.fc6.weight"),
        TORCHVISION_DETECTORS,
        _background_first(COCO),
    ),
}


@dataclass(eq=False)
class Converted:
    """Attributes:
    library: whose weights they were.
    state: the weights by their names here.
    renamed: how many have another name now.
    left_out: keys of the others.
    """

    library: str
    state: dict[str, Tensor]
    renamed: int
    left_out: list[str]


def convert_state(state: dict[str, Tensor], source: str) -> Converted:
    """Rename and reorder the weights of a detector or a ResNet.

    Raises:
        CheckpointError: they are no known library's, which `source` is named for, or a layer has a
            shape that its library does not give it.
    """
    state = dict(state)  # without the _metadata that its own library left
    consume_prefix_in_state_dict_if_present(state, "module.")
    known = (
        name
        for name, library in LIBRARIES.items()
        if all(any(_match(sign, key) for key in state) for sign in library.signs)
    )
    if (library := next(known, None)) is None:
        raise CheckpointError(
            f"{source}: {len(state)} keys ({', '.join([*list(state)[:3], '...'])}), which are no "
            f"ResNet's and no Faster or Mask R-CNN's of {', '.join(LIBRARIES)}"
        )
    done = Converted(library, {}, 0, [])
    _, names, rows = LIBRARIES[library]
    for key, value in state.items():
        name = _rename(key, names)
        if name is None or not isinstance(value, Tensor):
            done.left_out.append(key)
            continue
        layer = name.split(".")[-2:][0]
        try:
            done.state[name] = rows[layer](value) if layer in rows else value
        except RuntimeError as error:
            raise CheckpointError(
                f"{source}: {key} has the shape {tuple(value.shape)}, which it cannot have in "
                f"{library}"
            ) from error
        done.renamed += name != key
    return done


def _match(pattern: str, key: str) -> re.Match | None:
    expression = re.escape(pattern)
    for sign, meaning in (
        (r"\#", r"(\d+)"),
        (r"\*\*", "(.+)"),
        (r"\*", r"([^.]+)"),
        (r"\[", "(?:"),
        (r"\]", ")?"),
    ):
        expression = expression.replace(sign, meaning)
    return re.fullmatch(expression, key)


def _rename(key: str, names: str) -> str | None:
    """The name here that the first line that fits has for the key."""
    columns = names.split()
    for theirs, ours in zip(columns[::2], columns[1::2], strict=True):
        if match := _match(theirs, key):
            return _fill(ours, iter(match.groups()))
    return None


def _fill(name: str, parts: Iterator[str]) -> str:
    def part(place: re.Match) -> str:
        return str(int(next(parts)) - int(place[1])) if place[1] else next(parts)

    return re.sub(r"#-(\d)|#|\*+", part, name)


def convert_file(source: str, out: str | Path, overwrite: bool = False) -> Converted:
    """Convert a checkpoint and write it, whole or not at all, as one of mmdetection 3.

    Args:
        source: path or URL of the other library's file. Nothing that it holds is executed.
        out: path of the checkpoint, which holds the weights and, where they are known, the names of
            the classes.
        overwrite: replace a file that is there already.

    Raises:
        CheckpointError: `source` cannot be read, is not safe to read or is no known library's, or
            there is an `out`.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise CheckpointError(f"{out} exists; --overwrite replaces it")
    if Path(source).suffix == ".pkl":
        checkpoint = load_arrays(source)
    else:
        checkpoint = CheckpointLoader.load_checkpoint(str(source), "cpu", logger="silent")
    state = checkpoint.get("state_dict", checkpoint.get("model", checkpoint))
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{source} holds no weights by name")
    converted = convert_state(state, source)
    buffer = io.BytesIO()
    torch.save({"state_dict": converted.state, "meta": _class_names(checkpoint)}, buffer)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return converted


def _class_names(checkpoint: dict) -> dict:
    """The part of mmdetection's `meta` that a detector needs; `CLASSES` is that of 1 and 2."""
    meta = checkpoint.get("meta")
    if not isinstance(meta, dict):
        return {}
    if "dataset_meta" in meta:
        return {"dataset_meta": meta["dataset_meta"]}
    return {"dataset_meta": {"classes": meta["CLASSES"]}} if meta.get("CLASSES") else {}
