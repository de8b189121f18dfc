"""Weights of other libraries, under the names and in the order of mmdetection 3.

A library is a list of rules. The first rule whose pattern is the whole of a key gives the tensor's
name here and, where rows stand in another order, puts them in ours. What no rule knows is left out.
"""

import io
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from .checkpoint import load_arrays
from .errors import CheckpointError


class Rule(NamedTuple):
    """How a tensor is called here.

    Attributes:
        pattern: what its key has to match as a whole.
        name: its name here; `{}` are the pattern's groups.
        less: what is subtracted from the first group, where the other library counts from there.
        rows: puts the tensor's rows in our order.
    """

    pattern: str
    name: str
    less: int = 0
    rows: Callable[[Tensor], Tensor] | None = None


def _from_background_first(width: int, background: bool, ids: Iterable[int] | None = None):
    """Of layers whose first class is the background: here it is the last, or has no rows.

    Args:
        width: rows of each class.
        background: whether it has rows here.
        ids: the classes to keep where the layer has COCO's 91.
    """

    def reorder(value: Tensor) -> Tensor:
        classes = value.reshape(-1, width, *value.shape[1:])
        if len(classes) == 1:  # boxes or masks that are the same for all classes
            return value
        kept = ids if ids and len(classes) == 91 else range(1, len(classes))
        return classes[[*kept, 0] if background else [*kept]].flatten(0, 1)

    return reorder


MMDETECTION = [
    Rule(r"(.+\.conv\d)_offset\.(.+)", "{}.conv_offset.{}"),
    Rule(r"(.+)", "{}"),
]
HEADS = r"((?:bbox|mask)_head(?:\.\d+)?"
MMDETECTION_1 = [
    Rule(HEADS + r"\.fc_cls\..+)", "roi_head.{}", rows=_from_background_first(1, True)),
    Rule(HEADS + r"\.fc_reg\..+)", "roi_head.{}", rows=_from_background_first(4, False)),
    Rule(HEADS + r"\.conv_logits\..+)", "roi_head.{}", rows=_from_background_first(1, False)),
    Rule(r"((?:bbox|mask|shared)_(?:head|roi_extractor)\..+)", "roi_head.{}"),
    *MMDETECTION,
]


def _ratios_first(width: int):
    """Of the RPN's layers, where anchors are sorted by size and then by shape; here the other way.

    Args:
        width: rows of each anchor, of which there are three shapes.
    """

    def reorder(value: Tensor) -> Tensor:
        return value.unflatten(0, (-1, 3, width)).transpose(0, 1).flatten(0, 2)

    return reorder


BODY = r"(?:backbone\.)?(?:bottom_up\.)?"  # none in a classifier, one without an FPN
RPN = r"proposal_generator\.rpn_head\."
DETECTRON2 = [
    Rule(BODY + r"stem\.conv1\.weight", "backbone.conv1.weight"),
    Rule(BODY + r"stem\.conv1\.norm\.(.+)", "backbone.bn1.{}"),
    Rule(BODY + r"res(\d)\.(\d+)\.conv(\d)\.weight", "backbone.layer{}.{}.conv{}.weight", 1),
    Rule(BODY + r"res(\d)\.(\d+)\.conv(\d)\.norm\.(.+)", "backbone.layer{}.{}.bn{}.{}", 1),
    # 27 channels: 18 offsets, y and x of one point after the other, and 9 masks, as here.
    Rule(
        BODY + r"res(\d)\.(\d+)\.conv2_offset\.(.+)", "backbone.layer{}.{}.conv2.conv_offset.{}", 1
    ),
    Rule(BODY + r"res(\d)\.(\d+)\.shortcut\.weight", "backbone.layer{}.{}.downsample.0.weight", 1),
    Rule(BODY + r"res(\d)\.(\d+)\.shortcut\.norm\.(.+)", "backbone.layer{}.{}.downsample.1.{}", 1),
    Rule(r"backbone\.fpn_lateral(\d)\.(weight|bias)", "neck.lateral_convs.{}.conv.{}", 2),
    Rule(r"backbone\.fpn_output(\d)\.(weight|bias)", "neck.fpn_convs.{}.conv.{}", 2),
    Rule(RPN + r"conv\.(weight|bias)", "rpn_head.rpn_conv.{}"),
    Rule(RPN + r"objectness_logits\.(.+)", "rpn_head.rpn_cls.{}", rows=_ratios_first(1)),
    Rule(RPN + r"anchor_deltas\.(.+)", "rpn_head.rpn_reg.{}", rows=_ratios_first(4)),
    Rule(r"roi_heads\.box_head\.fc(\d)\.(.+)", "roi_head.bbox_head.shared_fcs.{}.{}", 1),
    Rule(r"roi_heads\.box_predictor\.cls_score\.(.+)", "roi_head.bbox_head.fc_cls.{}"),
    Rule(r"roi_heads\.box_predictor\.bbox_pred\.(.+)", "roi_head.bbox_head.fc_reg.{}"),
    Rule(r"roi_heads\.mask_head\.mask_fcn(\d)\.(.+)", "roi_head.mask_head.convs.{}.conv.{}", 1),
    Rule(r"roi_heads\.mask_head\.deconv\.(.+)", "roi_head.mask_head.upsample.{}"),
    Rule(r"roi_heads\.mask_head\.predictor\.(.+)", "roi_head.mask_head.conv_logits.{}"),
]

# Patterns of keys by which a library is known, each of which some key has to match; its rules.
LIBRARIES = {
    "mmdetection 1": ([HEADS + r"\.fc_cls\.weight)"], MMDETECTION_1),
    "detectron2": ([BODY + r"stem\.conv1\.weight"], DETECTRON2),
    "mmdetection 2": ([r"backbone\.layer1\.0\.conv1\.weight"], MMDETECTION),
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
        (library, rules)
        for library, (signs, rules) in LIBRARIES.items()
        if all(any(re.fullmatch(sign, key) for key in state) for sign in signs)
    )
    library, rules = next(known, (None, None))
    if library is None:
        raise CheckpointError(
            f"{source}: {len(state)} keys ({', '.join([*list(state)[:3], '...'])}), which are no "
            f"ResNet's and no Faster or Mask R-CNN's of {', '.join(LIBRARIES)}"
        )
    done = Converted(library, {}, 0, [])
    for key, value in state.items():
        name, rows = _name(key, rules)
        if name is None or not isinstance(value, Tensor):
            done.left_out.append(key)
            continue
        try:
            done.state[name] = rows(value) if rows else value
        except (RuntimeError, IndexError) as error:
            raise CheckpointError(
                f"{source}: {key} has the shape {tuple(value.shape)}, which it cannot have in "
                f"{library}"
            ) from error
        done.renamed += name != key
    return done


def _name(key: str, rules: list[Rule]):
    """What the first rule that knows the key calls it, and the rule's `rows`; or None twice."""
    for rule in rules:
        if match := re.fullmatch(rule.pattern, key):
            first, *others = match.groups() or [""]
            first = int(first) - rule.less if rule.less else first
            return rule.name.format(first, *others), rule.rows
    return None, None


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
        checkpoint = CheckpointLoader.load_checkpoint(str(source), map_location="cpu")
    state = checkpoint.get("state_dict", checkpoint.get("model", checkpoint))
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{source} holds no weights by name")
    converted = convert_state(state, source)
    buffer = io.BytesIO()
    torch.save({"state_dict": converted.state, "meta": _class_names(checkpoint)}, buffer)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return converted


def _class_names(checkpoint: dict) -> dict:
    """The part of mmdetection's `meta` that a detector needs; `CLASSES` is that of 1 and 2."""
    meta = checkpoint.get("meta")
    if not isinstance(meta, dict):
        return {}
    if "dataset_meta" in meta:
        return {"dataset_meta": meta["dataset_meta"]}
    return {"dataset_meta": {"classes": meta["CLASSES"]}} if meta.get("CLASSES") else {}
