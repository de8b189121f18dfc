"""The detectors' training step and inference on a GPU, under bfloat16 autocast."""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import nn

from . import detector, measure_cuda
from .measure import times

HEIGHT, WIDTH = 800, 1344
SETTINGS = dict(batch=detector.BATCH, image=f"{HEIGHT}×{WIDTH}", dtype="bfloat16 autocast")
NAMES = [f"{whose}, {kind}" for kind in detector.PAIRS for whose in ("dcn", "mmdet")]


def run(repeats: int) -> dict:
    """All measurements; progress goes to standard output."""
    detector.set_up()
    data = detector.batch(HEIGHT, WIDTH)
    rows = {name: {"model": name} for name in NAMES}
    models = build()
    for kind, make in (("train", detector.training_step), ("inference", detector.inference)):
        calls = {}
        for name, model in models.items():
            call = make(model, data, amp=True)
            _, error = measure_cuda.attempt(partial(measure_cuda.warm_up, call))
            if error is None:
                calls[name] = call
            else:
                rows[name][f"{kind}_error"] = error
        taken = times({name: until_done(call) for name, call in calls.items()}, repeats)
        for name, call in calls.items():
            rows[name][f"{kind}_ms"] = median(taken[name])
            rows[name][f"{kind}_ms_all"] = taken[name]
            rows[name][f"{kind}_mb"] = measure_cuda.peak_extra_memory(call)[0]
        for name, row in rows.items():
            print(f"{kind}: {name}: {row.get(f'{kind}_ms', row.get(f'{kind}_error'))}", flush=True)
    return {"models": list(rows.values())}


def empty() -> dict:
    """The same without a measurement."""
    return {"models": [{"model": name} for name in NAMES]}


def build() -> dict[str, nn.Module]:
    models = {}
    for kind, pair in detector.PAIRS.items():
        own, other = detector.build_pair(*pair)
        models[f"dcn, {kind}"] = own.to(measure_cuda.DEVICE)
        models[f"mmdet, {kind}"] = other.to(measure_cuda.DEVICE)
    return models


def until_done(call: Callable) -> Callable[[], None]:
    """A step waits for the GPU in its midst: the host's clock takes it as it is."""

    def done() -> None:
        call()
        torch.cuda.synchronize()

    return done
