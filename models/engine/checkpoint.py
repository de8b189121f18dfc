"""Reading checkpoints without executing them, and finding the one to resume from.

Importing this module replaces every loader of mmengine's ``CheckpointLoader``, so that
``load_from``, ``--resume``, ``init_cfg=dict(type='Pretrained', ...)`` and
``mmengine.runner.load_checkpoint`` all go through it. mmengine's own loaders let a pickle call
``getattr`` and numpy's constructors, and retry with ``weights_only=False`` when that fails.
"""

import copy
import errno
import logging
import os
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import MMLogger, print_log
from mmengine.runner import (
    CheckpointLoader,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from .errors import CheckpointError
from .plain import STAND_INS, ArrayUnpickler, is_history, is_plain, to_plain
from .screen import say

TRAINING_ONLY = "mimic."  # the auxiliary classifier of feature mimicking
NEARLY_NOTHING = 0.1  # the share of the parameters' values that load_from has to fill
# How torch.load names what it refuses to make.
OBJECT = re.compile(
    r"GLOBAL (.+?)(?: was not| whose|$)|recognized function (.+)|but got (<.+)", re.M
)
# In the message hub: the iteration after which the model was evaluated last.
EVALUATED = "evaluated"
RESUME_KEYS = ("meta", "state_dict", "message_hub", "optimizer")


def _read(source, load):
    """Call ``load()``, which reads ``source`` and makes nothing but tensors and plain values.

    Raises:
        CheckpointError: the file cannot be read, holds Python objects, or is not a dict.
    """
    try:
        with torch.serialization.safe_globals(STAND_INS):
            checkpoint = load()
    except Exception as error:  # torch.load has no type of its own for a damaged file
        raise CheckpointError(f"cannot load {source}: {_reason(error)}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"cannot load {source}: it holds a {type(checkpoint).__name__}, not a state dict"
        )
    return checkpoint


def _reason(error):
    """Why torch.load failed, without its advice to load the file in the unsafe way."""
    text = str(error)
    if isinstance(error, OSError) and error.errno != errno.EINVAL:  # disk; network (URLError)
        return text
    if "TorchScript" in text:
        return "it is a TorchScript archive, not a state dict"
    if found := OBJECT.search(text):
        name = next(filter(None, found.groups()))
        return (
            f"it holds a Python object ({name}), which could run code; only tensors and plain "
            "values are loaded"
        )
    reason = "truncated or not a checkpoint"
    if "weights_only" in text or isinstance(error, KeyError | IndexError):  # bytes, misread
        return reason
    return f"{reason} ({type(error).__name__}: {(text.splitlines() or [''])[0]})"


def _check_checksums(path):
    """Raise CheckpointError if a part of the file is not as it was written; torch.load skips this.

    Files in PyTorch's format before 1.6 have no checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
        damage = record and f"{record} has another checksum than when it was written"
    except Exception as error:  # zipfile has no type of its own for a damaged file
        damage = str(error)
    if damage:
        raise CheckpointError(f"cannot load {path}: it is damaged ({damage})")


@CheckpointLoader.register_scheme(prefixes="", force=True)
def load_from_local(filename, map_location=None, mmap=None):
    """Load a local file. ``map_location`` and ``mmap`` are those of ``torch.load``.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint that is safe to load, or
            a part of it has another checksum than when it was written. With ``mmap``, by which only
            what is looked at is read, checksums are not compared.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise CheckpointError(f"checkpoint not found: {path}")
    if not mmap:
        _check_checksums(path)
    return _read(
        path, lambda: torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    )


def load_arrays(filename):
    """Load a pickle of numpy's arrays by name, as detectron2 publishes its weights, as tensors.

    Raises:
        CheckpointError: there is no such file, it holds anything but arrays and plain values, or it
            is damaged.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise CheckpointError(f"checkpoint not found: {path}")

    def load():
        with open(path, "rb") as file:
            return to_plain(ArrayUnpickler(file).load(), path.name)

    return _read(path, load)


@CheckpointLoader.register_scheme(prefixes=("http://", "https://"), force=True)
def load_from_http(url, map_location=None):
    """Load a URL through torch.hub's cache; rank 0 downloads, the others read what it left.

    Raises:
        CheckpointError: the download failed, or the file is not a checkpoint that is safe to load.
    """

    cached = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(url).path))

    def load():
        if cached.is_file():
            _check_checksums(cached)
        return torch.hub.load_state_dict_from_url(url, map_location=map_location, weights_only=True)

    if get_rank() == 0:
        checkpoint = _read(url, load)
    barrier()
    return checkpoint if get_rank() == 0 else _read(url, load)


def _published(models, filename):
    name = filename.split("://", 1)[1]
    if name not in models:
        raise CheckpointError(f"checkpoint not found: {filename} names no published model")
    return models[name]


@CheckpointLoader.register_scheme(prefixes=("modelzoo://", "torchvision://"), force=True)
def load_from_torchvision(filename, map_location=None):
    """Load torchvision's weights by name, for example ``torchvision://resnet50``."""
    return load_from_http(_published(get_torchvision_models(), filename), map_location)


@CheckpointLoader.register_scheme(prefixes=("open-mmlab://", "openmmlab://"), force=True)
def load_from_openmmlab(filename, map_location=None):
    """Load OpenMMLab's weights by name, for example ``open-mmlab://detectron2/resnet50_caffe``."""
    models = get_external_models()
    models.update(
        {old: models[new] for old, new in get_deprecated_model_names().items() if new in models}
    )
    return CheckpointLoader.load_checkpoint(_published(models, filename), map_location)


@CheckpointLoader.register_scheme(prefixes="mmcls://", force=True)
def load_from_mmcls(filename, map_location=None):
    """Load the backbone of a classifier of MMClassification by name."""
    checkpoint = load_from_http(_published(get_mmcls_models(), filename), map_location)
    state = checkpoint.get("state_dict", checkpoint)
    prefix = "backbone."
    return {"state_dict": {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}}


@CheckpointLoader.register_scheme(
    prefixes=("pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://"), force=True
)
def load_from_remote_storage(filename, map_location=None):
    """Refuse the storages whose mmengine loaders execute pickles."""
    raise CheckpointError(f"cannot load {filename}: download it and give the local file")


@contextmanager
def whole_file(path):
    """A temporary path beside ``path``, for a file that appears there whole or not at all.

    What is written to it is flushed to disk and renamed at the end, and removed if that fails.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(model, checkpoint, source, strict):
    """Copy the weights of ``checkpoint`` into ``model``.

    The auxiliary classifier of feature mimicking is left out where the model has none.

    Args:
        model (nn.Module): The model, unwrapped.
        checkpoint (dict): A state dict, or a dict that holds one as ``state_dict``.
        source (str): Where it comes from, for messages.
        strict (bool): Every key and shape has to match. Otherwise what differs keeps its
            initial values, one line says how much of the model was filled, and a tenth of the
            parameters' values, in the backbone as well, has to be.

    Raises:
        CheckpointError: the weights do not fit the model.
    """
    state = copy.copy(checkpoint.get("state_dict", checkpoint))  # with its _metadata
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{source}: its state_dict holds no weights by name")
    consume_prefix_in_state_dict_if_present(state, "module.")
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if not any(key.startswith(TRAINING_ONLY) for key in own):
        unused = [key for key in state if key.startswith(TRAINING_ONLY)]
        for key in unused:
            del state[key]
        if unused:
            print_log(f"{source}: {', '.join(unused)} left unused", logger="current")
    _check_values(model, state, source)
    given = {key: tuple(getattr(value, "shape", ())) for key, value in state.items()}
    if not strict:
        _load_what_fits(model, state, own, given, source)
        return
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        differences = {
            "missing": [key for key in own if key not in given],
            "unexpected": [key for key in given if key not in own],
            "of another shape": [
                f"{key} {given[key]} for {own[key]}"
                for key in own
                if key in given and given[key] != own[key]
            ],
        }
        found = "; ".join(
            f"{len(keys)} keys {what}: {_few(keys)}" for what, keys in differences.items() if keys
        )
        saved = sorted(Path(source).expanduser().parent.glob("*.py"))
        hint = f"; a config lies beside it: {saved[0]}" if len(saved) == 1 else ""
        raise CheckpointError(f"{source} does not fit the model: {found or error}{hint}") from error


def _check_values(model, state, source):
    """Refuse tensors that cannot be computed with; say where numbers are rounded."""
    own = model.state_dict()
    rounded = []
    for key, value in state.items():
        if key not in own or getattr(value, "shape", None) != own[key].shape:
            continue
        if value.layout != torch.strided or value.is_meta or value.is_complex():
            raise CheckpointError(f"{source}: {key} is no dense tensor of real numbers")
        if not value.isfinite().all():
            raise CheckpointError(f"{source}: {key} is not finite")
        if value.dtype != own[key].dtype:
            rounded.append(f"{key} {value.dtype} for {own[key].dtype}".replace("torch.", ""))
    if rounded:
        message = f"{source}: {len(rounded)} tensors are of another dtype: {_few(rounded)}"
        print_log(message, logger="current", level=logging.WARNING)


def _load_what_fits(model, state, own, given, source):
    fits = {key for key in own if given.get(key) == own[key]}
    size = {key: value.numel() for key, value in model.named_parameters()}
    backbone = [key for key in size if key.startswith("backbone.")]

    def share(keys):
        return sum(size[key] for key in keys if key in fits) / max(1, sum(map(size.get, keys)))

    filled = f"{share(size):.1%} of the model's parameters ({len(fits)} of {len(own)} tensors" + (
        f"; {share(backbone):.1%} of the backbone)" if backbone else ")"
    )
    others = [key for key in given if key not in fits]
    differ = f"; of its {len(given)} keys these do not fit: {_few(others)}" if others else ""
    if share(size) < NEARLY_NOTHING or (backbone and share(backbone) < NEARLY_NOTHING):
        raise CheckpointError(
            f"{source} does not fit the model: it would fill {filled}{differ} (model: {_few(own)})"
        )
    for key in others:
        del state[key]
    model.load_state_dict(state, strict=False)
    say(MMLogger.get_current_instance(), f"{source} fills {filled}{differ}")


def _few(names, count=3):
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def check_resumable(checkpoint, source):
    """Raise CheckpointError if ``checkpoint`` lacks what training needs to go on from it."""
    lacking = [key for key in RESUME_KEYS if key not in checkpoint]
    if lacking:
        raise CheckpointError(
            f"cannot resume from {source}: it lacks {', '.join(lacking)}; to start from its "
            "weights only, use --cfg-options load_from=..."
        )
    meta, hub = checkpoint["meta"], checkpoint["message_hub"]
    counts = [meta.get(key) for key in ("epoch", "iter")] if isinstance(meta, dict) else []
    state, optimizer = checkpoint["state_dict"], checkpoint["optimizer"]
    lists = checkpoint.get("param_schedulers", [])
    sound = {
        "meta": counts and all(type(count) is int and count >= 0 for count in counts),
        "message_hub": isinstance(hub, dict)
        and all(
            isinstance(hub.get(key), dict)
            for key in ("log_scalars", "runtime_info", "resumed_keys")
        )
        and all(map(is_history, hub["log_scalars"].values()))
        and is_plain(hub),
        "state_dict": isinstance(state, dict) and all(isinstance(key, str) for key in state),
        "optimizer": isinstance(optimizer, dict)
        and all(
            isinstance(one, dict) and one.keys() >= {"state", "param_groups"}
            for one in ([optimizer] if "param_groups" in optimizer else optimizer.values())
        )
        and optimizer,
        "param_schedulers": isinstance(lists, list | dict)
        and all(
            isinstance(one, list) and all(isinstance(scheduler, dict) for scheduler in one)
            for one in (lists.values() if isinstance(lists, dict) else [lists])
        ),
    }
    if unsound := [key for key, good in sound.items() if not good]:
        raise CheckpointError(
            f"cannot resume from {source}: its {', '.join(unsound)} "
            f"{'is' if len(unsound) == 1 else 'are'} not what a training run writes"
        )


def check_state(optimizer, source):
    """Raise CheckpointError if the state that ``optimizer`` got from ``source`` is another model's.

    Of optimizers that keep a value per weight: SGD, Adam and AdamW.
    """
    if not isinstance(optimizer, torch.optim.SGD | torch.optim.Adam):
        return
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            shape = tuple(getattr(value, "shape", ()))
            if value is not None and name != "step" and shape != tuple(weight.shape):
                raise CheckpointError(
                    f"cannot resume from {source}: the optimizer has a {name} {shape} for a weight "
                    f"{tuple(weight.shape)}"
                )
            if isinstance(value, torch.Tensor) and not value.isfinite().all():
                raise CheckpointError(f"cannot resume from {source}: a {name} is not finite")


def find_resumable(*folders, model=None):
    """Path of the newest checkpoint in the work directory, and other folders, that can serve.

    Checkpoints there, and the one that the file ``last_checkpoint`` names, are opened. The newest
    is the one furthest in the latest of the runs that wrote there, by what the files say, not by
    the clock: a killed run leaves ``last_checkpoint`` one checkpoint behind, or empty. One that is
    incomplete, damaged or, if ``model`` is given, of another model is passed over, and the log says
    so. The model then has the weights.

    Raises:
        CheckpointError: there is none.
    """
    found, refused = _resumable(folders)
    for path in sorted(found, key=found.get, reverse=True):
        try:
            checkpoint = load_from_local(path, map_location="cpu")
            if model is not None:
                load_weights(model, checkpoint, path, strict=True)
            return str(path)
        except CheckpointError as error:
            refused.append(_refuse(path, error))
    damaged = f" (not {', '.join(refused)})" if refused else ""
    raise CheckpointError(f"nothing to resume: {folders[0]} holds no complete checkpoint{damaged}")


def latest_run(*folders):
    """Number of the latest of the runs that left checkpoints in the folders; 0 if none did.

    A run that starts anew has the next number, one that is resumed keeps its own.
    """
    return max((run for run, *_ in _resumable(folders)[0].values()), default=0)


def _resumable(folders):
    """What can be resumed from, as {path: (run, iteration, whether evaluated)}; what cannot."""
    candidates = {path for folder in folders for path in Path(folder).glob("*.pth")}
    pointer = Path(folders[0], "last_checkpoint")
    if pointer.is_file():
        named = os.fsdecode(pointer.read_bytes()).strip()
        if named and os.path.isfile(named):
            candidates.add(Path(named).absolute())
    found, refused = {}, []
    for path in sorted(candidates):
        try:
            checkpoint = load_from_local(path, map_location="cpu", mmap=True)
            check_resumable(checkpoint, path)
        except CheckpointError as error:
            refused.append(_refuse(path, error))
        else:
            meta, info = checkpoint["meta"], checkpoint["message_hub"]["runtime_info"]
            run = meta.get("run", 0)
            evaluated = info.get(EVALUATED) == meta["iter"]
            found[path] = run if type(run) is int else 0, meta["iter"], evaluated
    return found, refused


def _refuse(path, error):
    print_log(f"Not resuming from {path.name}: {error}", logger="current")
    return path.name
