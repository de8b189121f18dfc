"""Whether deformable layers learn: their offsets and masks, logged and watched during training."""

import logging
import math

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor

from dcn.deformable import Deformable, Samples, deformable_layers

from ..roi_heads import DeformRoIExtractor

DEAD = 0.01  # pixels; bilinear samples moved by less are the regular ones to a hundredth
RUNAWAY = 0.5  # of the samples moved out
SAMPLES = 100_000  # a convolution's figures are taken from about this many at most


@HOOKS.register_module()
class OffsetStatisticsHook(Hook):
    """Logs the offsets and masks of every deformable layer, and warns about layers that fail.

    Every `interval` iterations, of the images of that iteration, a layer `NAME` has

    - `offsets/NAME/mean`, `offsets/NAME/p95`: mean and 95th percentile of the length of Δp, for a
      convolution in pixels of its input, for RoI pooling in pixels of the image, for a kernel that
      is read from a scope in cells of that;
    - `offsets/NAME/outside`: the share of samples outside of the image: of a convolution's kernel
      points those that read no pixel, of RoI bins those whose centre is outside;
    - `offsets/NAME/moved_out`: the share of those that are inside without an offset (padding puts
      some outside) and outside with it;
    - `offsets/NAME/mask_mean`, `offsets/NAME/mask_std`: mean and standard deviation of Δm.

    It warns once about each layer that is dead (after a tenth of the schedule the 95th percentile
    has never reached 0.01 pixels), and once about each that has run away (over half of its samples
    moved out).

    The Runner of this repository has it on; without deformable layers it does nothing.

    Args:
        interval: iterations between two measurements.
    """

    priority = "LOW"

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self.largest: dict[str, float] = {}
        self.warned: set[str] = set()
        self.handles: list = []
        self.samples: dict[str, list[Measured]] = {}
        self.measured: set[str] = set()

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.layers = deformable_layers(model)
        # The module whose first pass is over the images: it may call a layer for every level.
        self.passes = dict(self.layers)
        for name, module in model.named_modules():
            if isinstance(module, DeformRoIExtractor):
                self.passes |= {own: module for own in self.layers if own.startswith(f"{name}.")}

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.layers and self.every_n_train_iters(runner, self.interval):
            self.samples = {name: [] for name in self.layers}
            self.measured = set()
            # Compiled modules would not notice hooks inside of them.
            torch.compiler.set_stance("force_eager")
            for name, layer in self.layers.items():
                self._watch(name, layer)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.handles:
            return
        for handle in self.handles:
            handle.remove()
        self.handles = []
        torch.compiler.set_stance("default")
        found = {
            name: figures
            for name, samples in self.samples.items()
            if (figures := _figures(samples))  # none of a map that no RoI was pooled from
        }
        scalars = {
            f"offsets/{name}/{key}": value
            for name, figures in found.items()
            for key, value in figures.items()
        }
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        for name, figures in found.items():
            self.largest[name] = max(self.largest.get(name, 0.0), figures["p95"])
            self._warn(name, figures, (runner.iter + 1) / runner.max_iters)

    def _watch(self, name: str, layer: Deformable) -> None:
        """Measure what `layer` does in its next pass, the one over the images."""

        def measure(module, args, kwargs, output) -> None:
            if name not in self.measured:
                with torch.no_grad():
                    self.samples[name].append(_thinned(module.samples(*args, **kwargs)))

        def end(module, args, output) -> None:
            self.measured.add(name)

        self.handles.append(layer.register_forward_hook(measure, with_kwargs=True))
        self.handles.append(self.passes[name].register_forward_hook(end))

    def _warn(self, name: str, figures: dict[str, float], progress: float) -> None:
        if name in self.warned:
            return
        if figures["moved_out"] > RUNAWAY:
            problem = (
                f"has run away: {figures['moved_out']:.0%} of its samples left the image (or "
                "the scope). "
                "Try a lower learning rate for its offsets (optim_wrapper.paramwise_cfg."
                "custom_keys), clip_grad, or a longer warm-up"
            )
        elif progress > 0.1 and self.largest[name] < DEAD:
            problem = (
                f"is dead: after {progress:.0%} of the schedule its offsets have not moved by "
                f"{DEAD} pixels. Try a higher learning rate for its offsets (optim_wrapper."
                "paramwise_cfg.custom_keys), and see that it is not frozen (frozen_stages) and "
                "that pre-trained weights are loaded"
            )
        else:
            return
        self.warned.add(name)
        print_log(f"{name} {problem}", logger="current", level=logging.WARNING)


# Of n samples: the lengths of their offsets in pixels [n], masks [n] or None, and which are outside
# of the image [n], with their offsets and without.
Measured = tuple[Tensor, Tensor | None, Tensor, Tensor]


def _figures(samples: list[Measured]) -> dict[str, float]:
    if not sum(len(length) for length, *_ in samples):
        return {}
    length, mask, outside, at_rest = (
        None if parts[0] is None else torch.cat(parts) for parts in zip(*samples, strict=True)
    )
    moved_out = (outside & ~at_rest).sum() / (~at_rest).sum().clamp(min=1)
    figures = [length.mean(), length.quantile(0.95), outside.float().mean(), moved_out]
    names = ["mean", "p95", "outside", "moved_out"]
    if mask is not None:
        figures += [mask.mean(), mask.std(unbiased=False)]
        names += ["mask_mean", "mask_std"]
    return dict(zip(names, torch.stack(figures).tolist(), strict=True))  # one wait for the device


def _thinned(samples: Samples) -> Measured:
    shape = samples.y.shape
    count = samples.y.numel()
    step = _step(count, shape[3] * shape[4])
    y, x, rest_y, rest_x, mask = (
        None if t is None else t.expand(shape).reshape(-1)[::step].float()
        for t in (samples.y, samples.x, samples.rest_y, samples.rest_x, samples.mask)
    )
    outside, at_rest = (
        ~((samples.low[0] < y) & (y < samples.high[0]))
        | ~((samples.low[1] < x) & (x < samples.high[1]))
        for y, x in ((y, x), (rest_y, rest_x))
    )
    return torch.hypot(y - rest_y, x - rest_x), mask, outside, at_rest


def _step(count: int, pixels: int) -> int:
    """Takes about `SAMPLES` of `count` samples, and all columns and rows of the map alike."""
    step = math.ceil(max(count, 1) / SAMPLES)
    while math.gcd(step, pixels) > 1:
        step += 1
    return step
