"""Schedules as shares of a run's length."""

import copy
import logging
import math
import warnings
from typing import Any

from mmengine.logging import print_log

WARM_UP = ("LinearLR", "ConstantLR", "LinearParamScheduler", "ConstantParamScheduler")
PLACES = ("begin", "end", "milestones", "T_max", "total_iters")


def resolve(scheduler: dict[str, Any], epochs: float, iters: int) -> dict[str, Any]:
    """A scheduler's config with its floats turned into epochs or iterations.

    `begin`, `end`, `milestones`, `T_max` and `total_iters` that are floats are shares of the run
    (1.0 is its end); integers keep mmengine's meaning.

    Args:
        scheduler: config of one of mmengine's schedulers; `by_epoch` (True) says what it counts.
        epochs: length of the run in epochs.
        iters: length of the run in iterations.
    """
    scheduler = copy.deepcopy(dict(scheduler))
    by_epoch = scheduler.get("by_epoch", True)
    length = epochs if by_epoch else iters
    shares = False
    for key in PLACES:
        value = scheduler.get(key)
        if isinstance(value, float) and math.isfinite(value):
            scheduler[key] = round(value * length)
            shares = True
        elif isinstance(value, list | tuple):
            shares |= any(isinstance(v, float) for v in value)
            scheduler[key] = [round(v * length) if isinstance(v, float) else v for v in value]
    end = scheduler.get("end")
    if not shares and isinstance(end, int) and end != length:
        before = end < length
        if not (before and scheduler["type"] in WARM_UP):
            unit = "epochs" if by_epoch else "iterations"
            print_log(
                f"{scheduler['type']} ends {'before' if before else 'after'} the run: end={end}, "
                f"and the run has {length:g} {unit}; end=1.0 (a share) follows the run's length",
                logger="current",
                level=logging.WARNING,
            )
    return scheduler


def places(schedulers: list) -> list[dict[str, Any]]:
    """What says where the schedulers begin, bend and end."""
    return [{key: vars(s)[key] for key in PLACES if key in vars(s)} for s in schedulers]


def reset(optimizer) -> None:
    """Every rate of the optimizer as it was before the first scheduler."""
    for group in optimizer.param_groups:
        for key in [key for key in group if key.startswith("initial_")]:
            group[key.removeprefix("initial_")] = group[key]


def advance(schedulers: list, iters: int, epoch_length: int) -> None:
    """Step new schedulers as a training of `iters` iterations would have done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no optimizer has stepped in between
        for i in range(1, iters + 1):
            for by_epoch in (False, True) if i % epoch_length == 0 else (False,):
                for scheduler in schedulers:
                    if scheduler.by_epoch == by_epoch:
                        scheduler.step()
