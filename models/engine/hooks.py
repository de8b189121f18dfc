"""Training hooks: seeds by epoch, NaN stops the run, checkpoints outlive their successors."""

import math

import mmengine.hooks
import numpy as np
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import set_random_seed

from .errors import NonFiniteError


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed python, numpy and torch from (seed, epoch, rank) before every training epoch.

    A resumed run then draws what an uninterrupted one would have drawn, whatever validation, data
    loading or a resume consumed in between.
    """

    priority = "VERY_HIGH"

    def before_train_epoch(self, runner):
        mixed = np.random.SeedSequence([runner.seed, runner.epoch, runner.rank])
        set_random_seed(int(mixed.generate_state(1)[0]))


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop training at the first NaN or infinite loss, and never save weights that hold one."""

    def __init__(self):
        self.where = "before the first iteration"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.where = f"epoch {runner.epoch + 1}, iteration {batch_idx + 1}{_images(data_batch)}"

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Raise NonFiniteError with the epoch, the iteration, the losses and the images."""
        terms = {
            name: float(torch.as_tensor(value).detach())
            for name, value in outputs.items()
            if "loss" in name
        }
        bad = {name: value for name, value in terms.items() if not math.isfinite(value)}
        if bad:
            losses = ", ".join(f"{name} = {value}" for name, value in bad.items())
            raise NonFiniteError(f"{losses} at {self.where}; training stops")

    def before_save_checkpoint(self, runner, checkpoint):
        """Raise NonFiniteError naming the weights: a finite loss can have an infinite gradient."""
        bad = [
            name
            for name, value in checkpoint["state_dict"].items()
            if isinstance(value, torch.Tensor) and not value.isfinite().all()
        ]
        if bad:
            raise NonFiniteError(
                f"{len(bad)} weights are not finite ({bad[0]}, ...) after {self.where}; training "
                "stops, no checkpoint is written"
            )


@HOOKS.register_module()
class LastValidationHook(Hook):
    """Evaluates the last epoch of a run that was stopped after its checkpoint was written.

    The checkpoint comes before the evaluation, and a loop that resumes from it is at its end.
    """

    priority = "LOWEST"  # all others have begun the training

    def before_train(self, runner):
        if runner.epoch >= runner.max_epochs and runner.val_loop is not None:
            runner.val_loop.run()


def _images(data_batch):
    samples = data_batch.get("data_samples", []) if isinstance(data_batch, dict) else []
    paths = [sample.img_path for sample in samples if hasattr(sample, "img_path")]
    return f", images {', '.join(paths)}" if paths else ""


class _LateRemoval(LocalBackend):
    """A backend that removes files only when told that their successors are safe."""

    def __init__(self):
        self.outdated = []

    def remove(self, filepath):
        self.outdated.append(filepath)

    def flush(self):
        while self.outdated:
            super().remove(self.outdated.pop())


@HOOKS.register_module(force=True)
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's hook, but outdated checkpoints go after the new one is saved, not before.

    Registered in place of mmengine's: with ``max_keep_ckpts=1`` a full disk would leave none.
    """

    def before_train(self, runner):
        super().before_train(runner)
        self.file_backend = _LateRemoval()

    def _save_checkpoint_with_step(self, runner, step, meta):
        super()._save_checkpoint_with_step(runner, step, meta)
        self.file_backend.flush()

    def _save_best_checkpoint(self, runner, metrics):
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.flush()
