"""Keys that a config can take: a misspelt one would be merged into it and ignored."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mmdet.registry
import mmengine.runner
import torch
from mmengine.config import Config
from mmengine.registry import Registry
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from dcn import LAYERS

from .errors import EngineError

RUNNER = [
    *list(inspect.signature(mmengine.runner.Runner.__init__).parameters)[1:-1],  # no self, no cfg
    *("activation_checkpointing", "channels_last", "compile", "custom_imports"),
    *("efficient_conv_bn_eval", "find_unused_parameters", "model_wrapper_cfg", "skip_non_finite"),
    "sync_bn",
]
LOADER = [DataLoader, "dataset", "sampler", "batch_sampler", "num_batch_per_epoch"]
NMS = ["iou_threshold", "split_thr", "class_agnostic", "max_num", "score_threshold", "offset"]
ROI_DEFORM = ["gamma", "fc_channels", "shared_fc", "per_level"]
# What dicts without a `type` take, by the end of their path: names of keys, or what is called with
# the dict, itself or by its name in a registry.
UNTYPED: dict[str, list] = {
    "": RUNNER,
    **{f"{split}_dataloader": LOADER for split in ("train", "val", "test")},
    "train_cfg": ["by_epoch", "EpochBasedTrainLoop", "IterBasedTrainLoop"],
    "val_cfg": ["ValLoop"],
    "test_cfg": ["TestLoop"],
    "env_cfg": ["cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"],
    "env_cfg.mp_cfg": ["mp_start_method", "opencv_num_threads"],
    "env_cfg.dist_cfg": ["backend", "timeout"],
    "randomness": [mmengine.runner.Runner.set_randomness],
    "auto_scale_lr": ["enable", "base_batch_size"],
    "compile": [torch.compile],
    "default_hooks": [
        *("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"),
        "visualization",
    ],
    "optim_wrapper": ["OptimWrapper", "optimizer", "constructor", "paramwise_cfg"],
    "optim_wrapper.clip_grad": [clip_grad_norm_],
    "paramwise_cfg": [
        *("custom_keys", "norm_decay_mult", "bias_lr_mult", "bias_decay_mult", "bypass_duplicate"),
        *("dwconv_decay_mult", "dcn_offset_lr_mult", "flat_decay_mult"),
    ],
    "model.backbone.deform": [
        *("layers", "stages", "conv", "modulated"),
        *sorted({name for layer in LAYERS.values() for name in layer.settings}),
    ],
    "bbox_roi_extractor.deform": ROI_DEFORM,
    "mask_roi_extractor.deform": ROI_DEFORM,
    "model.mimic": ["num_rois", "crop_size", "on", "with_gt", "loss_mimic", "loss_cls"],
    "mimic.loss_mimic": ["MimicLoss"],
    "mimic.loss_cls": ["CrossEntropyLoss"],
    "nms": NMS,
    "rcnn": ["score_thr", "nms", "max_per_img", "mask_thr_binary", "debug", "pos_weight"],
    "test_cfg.rpn": ["nms_pre", "max_per_img", "nms", "min_bbox_size", "score_thr"],
    "rpn_proposal": ["nms_pre", "max_per_img", "nms", "min_bbox_size", "score_thr"],
}
# What is taken out of a dict with a `type` before the class gets it, by the end of its path.
BESIDE_TYPE: dict[str, list[str]] = {
    "optim_wrapper": ["optimizer", "constructor", "paramwise_cfg"],
    "param_scheduler.#": ["convert_to_iter_based"],
    "custom_hooks.#": ["priority"],
    "train_cfg": ["by_epoch"],
    "clip_grad": [clip_grad_norm_],
    "nms": NMS,
    "norm_cfg": ["requires_grad"],
}
ANYWHERE = ("type", "_delete_", "_scope_")


def read_config(path: str | Path) -> Config:
    """The config in a file.

    Raises:
        EngineError: there is no such file, or it or one of its bases cannot be read.
    """
    if not Path(path).is_file():
        raise EngineError(f"config not found: {path}")
    try:
        return Config.fromfile(path)
    except OSError as error:  # also mmengine's for a file that is not Python
        raise EngineError(f"cannot read config {path}: {error}") from error


def check_options(
    cfg: Config,
    options: Mapping[str, Any],
    where: str = "--cfg-options",
    also: Iterable[str] = (),
) -> None:
    """Refuse keys of `options` that nothing would read.

    A key is taken if the config has it, if the class that the dict around it names as its `type`
    takes it, or if it is a setting of the runner, of mimicking or of deformable layers.

    Args:
        cfg: the config that the options are for.
        options: value by dotted key, list indices as numbers ('param_scheduler.1.end').
        where: what gave them, for the message.
        also: further names that the caller takes, suggested where they come close.

    Raises:
        EngineError: the first key that is not taken, with the nearest one that is.
    """
    for key in options:
        _check(cfg, options, key, where, list(also))


def merge_options(
    cfg: Config, options: Mapping[str, Any], where: str = "--cfg-options", also: Iterable[str] = ()
) -> None:
    """Check `options` as :func:`check_options` does and set them in `cfg`.

    A dict may be put where the config has None (`model.backbone.deform.layers=9`).

    Raises:
        EngineError: a key that nothing would read, or that the config cannot take.
    """
    check_options(cfg, options, where, also)
    for key, value in options.items():
        holder, *steps = cfg, *key.split(".")
        steps = steps if isinstance(value, dict) else steps[:-1]
        for step in steps:
            inner = _get(holder, step)
            if inner is None and isinstance(holder, dict | Config) and step in holder:
                del holder[step]
            if inner is None:
                break
            holder = inner
        try:
            cfg.merge_from_dict({key: value})
        except (KeyError, TypeError) as error:
            raise EngineError(f"{where}: {key}: {str(error).strip(chr(34))}") from error


def _check(cfg: Config, options: Mapping, key: str, where: str, also: list[str]) -> None:
    value: Any = cfg
    steps = key.split(".")
    for i, step in enumerate(steps):
        path = ".".join("#" if name.isdigit() else name for name in steps[:i])
        if isinstance(value, list | tuple):
            if not step.isdigit() or int(step) >= len(value):
                parent = ".".join(steps[:i])
                raise EngineError(
                    f"{where}: no key {key}: {parent} is a list of {len(value)}, indexed from 0"
                )
            value = value[int(step)]
            continue
        if not isinstance(value, dict | Config) and value is not None:
            raise EngineError(
                f"{where}: no key {key}: {'.'.join(steps[:i])} is {value!r}, which holds no keys"
            )
        known = list(value.keys()) if value is not None else []
        kind = options.get(".".join([*steps[:i], "type"]), _get(value, "type"))
        taken = _taken(path, kind)
        if taken is not None and step not in {*known, *taken, *ANYWHERE}:
            names = dict.fromkeys([*known, *taken, *(also if i == 0 else [])])
            near = _nearest(cfg, steps, i, list(names))
            hint = f"did you mean {near}?" if near else f"there are {', '.join([*names][:8])}"
            raise EngineError(f"{where}: the config has no key {key}; {hint}")
        value = _get(value, step)


def _nearest(cfg: Config, steps: list[str], wrong: int, names: list[str]) -> str | None:
    """The key nearest to that of `steps`, of which the one at `wrong` is none of `names`."""
    every = _flat(cfg)
    key = ".".join(steps)
    if found := [other for other in every if other.endswith(f".{key}")]:  # a section left out
        return min(found, key=len)
    if near := difflib.get_close_matches(steps[wrong], names, 1):
        return ".".join([*steps[:wrong], near[0], *steps[wrong + 1 :]])
    return next(iter(difflib.get_close_matches(key, every, 1)), None)


def _get(value: Any, step: str) -> Any:
    if isinstance(value, list | tuple):
        return value[int(step)] if step.isdigit() and int(step) < len(value) else None
    return value.get(step) if isinstance(value, dict | Config) else None


def _taken(path: str, kind: Any) -> list[str] | None:
    """Keys that a dict takes beside those that it has, or None where that cannot be told."""
    if kind is not None:
        called = _registered(kind)
        rules = _rule(BESIDE_TYPE, path) or []
        return [*_names(called), *_names(rules)] if called or rules else None
    rules = _rule(UNTYPED, path)
    return None if rules is None else _names(rules)


def _rule(table: Mapping[str, list], path: str) -> list | None:
    """Of the longest end of `path` that the table has; the loops' sections are at the top only."""
    steps = path.split(".")
    for i in range(len(steps)):
        end = ".".join(steps[i:])
        if end in table and not (i > 0 and end in ("", "train_cfg", "val_cfg", "test_cfg")):
            return table[end]
    return None


def _names(rules: list) -> list[str]:
    names: list[str] = []
    for rule in rules:
        if isinstance(rule, str) and rule.islower():  # a key; classes have capitals
            names.append(rule)
            continue
        for called in _registered(rule):
            names += _parameters(called)
    return names


def _registered(kind: Any) -> list:
    """What is registered by this name, in whichever registry."""
    if not isinstance(kind, str):
        return [kind]
    registries = {r for r in vars(mmdet.registry).values() if isinstance(r, Registry)}
    return [found for registry in registries if (found := registry.get(kind)) is not None]


def _parameters(called: Any) -> list[str]:
    """Names of the arguments, through **kwargs up to the base classes."""
    if not inspect.isclass(called):
        return list(inspect.signature(called).parameters)
    names: list[str] = []
    for owner in called.__mro__:
        if owner is object or "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(owner.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in names if name != "self"]


def _flat(value: Any, prefix: str = "") -> list[str]:
    items: Iterable = ()
    if isinstance(value, dict | Config):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [
        name
        for key, inner in items
        for name in (f"{prefix}{key}", *_flat(inner, f"{prefix}{key}."))
    ]
