"""Training hooks: seeds by epoch, NaN stops the run, checkpoints outlive their successors."""

import functools
import itertools
import math
import re
from pathlib import Path

import mmengine.hooks
import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, set_random_seed
from torch.utils._pytree import tree_leaves

from .checkpoint import EVALUATED
from .errors import CheckpointError, EngineError, NonFiniteError
from .plain import from_plain, to_plain

OUTDATED = "outdated"  # in the message hub: names of the files that the next save replaces


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
    """Stop training at the first NaN or infinite loss, and never save weights that hold one.

    Args:
        skip: how many iterations with a non-finite loss or gradient, in any process, are skipped
            before the next one stops the run. Nothing is learnt from them: no step is taken, and
            the model's buffers (BatchNorm's statistics) are put back.
    """

    def __init__(self, skip: int = 0) -> None:
        self.where = "before the first iteration"
        self.skip = skip
        self.skipped = 0

    def before_train(self, runner) -> None:
        if not self.skip:
            return
        step = runner.optim_wrapper.step

        @functools.wraps(step)  # with mmengine's mark that schedulers count its calls
        def checked(**kwargs):
            # DDP has summed the gradients: all processes find the same. float16's scaler looks
            # at its gradients itself.
            groups = runner.optim_wrapper.param_groups
            grads = [p.grad for g in groups for p in g["params"] if p.grad is not None]
            scaled = isinstance(runner.optim_wrapper, AmpOptimWrapper)
            self.stepped = scaled or all(bool(grad.isfinite().all()) for grad in grads)
            if self.stepped:
                step(**kwargs)

        runner.optim_wrapper.step = checked

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.where = f"epoch {runner.epoch + 1}, iteration {batch_idx + 1}{_images(data_batch)}"
        self.stepped = True
        if self.skip:
            self.buffers = [buffer.clone() for buffer in runner.model.buffers()]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Raise NonFiniteError with the epoch, the iteration, the losses and the images."""
        terms = {
            name: float(torch.as_tensor(value).detach())
            for name, value in outputs.items()
            if "loss" in name
        }
        bad = [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)]
        if not self.skip:
            if bad:
                raise NonFiniteError(f"{', '.join(bad)} at {self.where}; training stops")
            return
        found = torch.tensor(float(bool(bad) or not self.stepped), device=get_device())
        all_reduce(found, "max")
        if not found:
            return
        for buffer, before in zip(runner.model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        self.skipped += 1
        what = f"{', '.join(bad) or 'the gradient is not finite'} at {self.where}"
        if self.skipped > self.skip:
            raise NonFiniteError(f"{what}; training stops, {self.skip} were skipped before")
        runner.logger.warning(f"{what}; skipped, {self.skipped} of at most {self.skip}")

    def before_val_epoch(self, runner):
        """Watch the outputs: weights can be finite and too large to compute with."""
        self.watched = [
            module.register_forward_hook(functools.partial(self._check_output, name))
            for name, module in runner.model.named_modules()
            if name.endswith(("backbone", "head"))
        ]

    def after_val_epoch(self, runner, metrics=None):
        for handle in self.watched:
            handle.remove()

    def _check_output(self, name, module, inputs, output):
        if any(x.isnan().any() for x in tree_leaves(output) if isinstance(x, torch.Tensor)):
            raise NonFiniteError(
                f"in evaluation {name} computes NaN, from the weights after {self.where}; a lower "
                "learning rate may help"
            )

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
class MissedValidationHook(Hook):
    """Makes up for the evaluation in which a run was stopped, before the training goes on.

    The checkpoint of an epoch is written before the epoch is evaluated, and a loop that resumes
    from it begins with the next one.
    """

    priority = "LOWEST"  # all others have begun the training

    def before_train(self, runner):
        loop = runner.train_loop
        done = runner.iter if isinstance(loop, IterBasedTrainLoop) else runner.epoch
        last = loop.max_iters if isinstance(loop, IterBasedTrainLoop) else loop.max_epochs
        if runner.val_loop is None or done == 0 or done < loop.val_begin:
            return
        loop._decide_current_val_interval()
        due = done % loop.val_interval == 0 or done >= last
        if due and runner.message_hub.runtime_info.get(EVALUATED) != runner.iter:
            # As in the evaluation that was stopped; training sets them anew.
            runner.message_hub.update_info("iter", runner.iter - 1)
            if not isinstance(loop, IterBasedTrainLoop):
                runner.message_hub.update_info("epoch", runner.epoch - 1)
            runner.val_loop.run()


@HOOKS.register_module()
class PlainValuesHook(Hook):
    """Keeps objects out of checkpoints, so that they are read without allowing any.

    Raises:
        CheckpointError: what another hook wants to save could not be read again.
    """

    priority = "LOWEST"  # all others have added to the checkpoint

    def before_train(self, runner):
        """Look at what is there already, lest the first epoch be in vain."""
        metainfo = getattr(runner.train_dataloader.dataset, "metainfo", None)
        self._plain(message_hub=runner.message_hub.state_dict(), metainfo=metainfo)

    def before_save_checkpoint(self, runner, checkpoint):
        lists = checkpoint.get("param_schedulers", [])
        for scheduler in itertools.chain(*lists.values()) if isinstance(lists, dict) else lists:
            for key in [key for key, value in scheduler.items() if callable(value)]:
                del scheduler[key]  # its own, which it has when it is built
        parts = {k: v for k, v in checkpoint.items() if k not in ("state_dict", "optimizer")}
        checkpoint.update(self._plain(**parts))

    def _plain(self, **parts):
        try:
            return {key: to_plain(part, key) for key, part in parts.items()}
        except TypeError as error:
            raise CheckpointError(f"cannot write a checkpoint: {error}") from error

    def after_load_checkpoint(self, runner, checkpoint):
        hub = checkpoint.get("message_hub")
        if isinstance(hub, dict) and isinstance(hub.get("log_scalars"), dict):
            hub["log_scalars"] = from_plain(hub["log_scalars"])


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Compares the data with the model and the metrics before the first iteration.

    With too few classes in a head, a class silently becomes background; with too many, the first
    evaluation fails, and so it does where a metric reads the annotations of other images: a metric
    with a method ``check_dataset`` is asked.
    """

    def before_train(self, runner) -> None:
        """Raise EngineError with both numbers of classes and the key of the config."""
        if runner.val_loop is not None:
            self._ask_metrics(runner.val_loop)
        metainfo = getattr(runner.train_dataloader.dataset, "metainfo", {})
        classes = metainfo.get("thing_classes", metainfo.get("classes"))
        if classes is None:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for name, module in model.named_modules():
            if name and not re.search(r"(^|\.)(bbox|mask)_head(\.\d+)?$", name):
                continue
            count = getattr(module, "num_classes", len(classes))
            if count != len(classes):
                key = ".".join(filter(None, ("model", name, "num_classes")))
                raise EngineError(
                    f"{key} is {count}, but the training data has "
                    f"{len(classes)} classes ({', '.join(classes[:5])}"
                    f"{', ...' if len(classes) > 5 else ''}): set it to {len(classes)}"
                )

    def before_test(self, runner) -> None:
        self._ask_metrics(runner.test_loop)

    def _ask_metrics(self, loop) -> None:
        for metric in loop.evaluator.metrics:
            if hasattr(metric, "check_dataset"):
                metric.check_dataset(loop.dataloader.dataset)


def _images(data_batch):
    samples = data_batch.get("data_samples", []) if isinstance(data_batch, dict) else []
    paths = [sample.img_path for sample in samples if hasattr(sample, "img_path")]
    return f", images {', '.join(paths)}" if paths else ""


class _LateRemoval(LocalBackend):
    """A backend that removes files only when told that their successors are safe.

    Until then their names are in `info`, which the successor is saved with. A file outside `folder`
    does not exist for it: the path of the best checkpoint comes from the checkpoint that a run
    resumes from, which may be another run's, or anybody's.
    """

    def __init__(self, folder, info):
        self.folder = Path(folder).resolve()
        self.info = info

    def isfile(self, filepath):
        return Path(filepath).resolve().parent == self.folder and super().isfile(filepath)

    def isdir(self, filepath):
        return False  # checkpoints are files

    def remove(self, filepath):
        names = self.info.get_info(OUTDATED, [])
        self.info.update_info(OUTDATED, [*names, Path(filepath).name])

    def flush(self):
        for name in self.info.get_info(OUTDATED, []):
            path = self.folder / str(name)
            if path.suffix == ".pth" and self.isfile(path):
                super().remove(path)
        self.info.update_info(OUTDATED, [])


@HOOKS.register_module(force=True)
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's hook, for runs that may be killed at any moment. Registered in its place.

    - Outdated checkpoints are removed after the new one is saved, not before: with
      ``max_keep_ckpts=1`` a full disk would leave none.
    - An epoch's checkpoint is written again after its evaluation, whatever the result.
    - What a killed run left half written, or could not remove any more, is removed.
    """

    def before_train(self, runner):
        super().before_train(runner)
        self.file_backend = _LateRemoval(self.out_dir, runner.message_hub)
        if runner.rank == 0:
            for path in filter(Path.is_file, Path(self.out_dir).glob("*.pth.tmp")):
                path.unlink()
                runner.logger.info(f"{path}, left half written, is removed")
            if runner.goes_on:
                self.file_backend.flush()
        runner.message_hub.update_info(OUTDATED, [])
        if self.file_backend.isfile(self._path(runner)):
            self.last_ckpt = self._path(runner)

    def after_val_epoch(self, runner, metrics):
        runner.message_hub.update_info(EVALUATED, runner.iter)
        self.written = self.last_ckpt is None or self.last_ckpt != self._path(runner)
        super().after_val_epoch(runner, metrics)
        if not self.written:
            meta = {"epoch": runner.epoch, "iter": runner.iter}
            self._save_checkpoint_with_step(runner, self._step(runner), meta)

    def _step(self, runner):
        return runner.epoch if self.by_epoch else runner.iter

    def _path(self, runner):
        """Of the checkpoint of the epoch or iteration that was trained last."""
        name = self.filename_tmpl.format(self._step(runner))
        return self.file_backend.join_path(self.out_dir, name)

    def _save_checkpoint_with_step(self, runner, step, meta):
        self.written = True
        super()._save_checkpoint_with_step(runner, step, meta)
        self.file_backend.flush()

    def _save_best_checkpoint(self, runner, metrics):
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.flush()
