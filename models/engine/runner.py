"""mmengine's Runner, for runs that can be interrupted and trusted."""

import io
import logging
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import mmengine.runner
import torch
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_distributed, master_only
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import CheckpointLoader, EpochBasedTrainLoop

from .checkpoint import (
    check_resumable,
    check_state,
    find_resumable,
    latest_run,
    load_weights,
    whole_file,
)
from .compiling import compile_maps
from .errors import CheckpointError, EngineError
from .hooks import (
    CheckpointHook,
    DataCheckHook,
    EpochSeedHook,
    MissedValidationHook,
    NonFiniteHook,
    PlainValuesHook,
)
from .locking import only_training
from .offsets import OffsetStatisticsHook
from .optim import with_slow_offsets
from .pictures import MimicPictureHook
from .schedules import advance, places, reset, resolve
from .screen import SummaryHook, limit, say


class Runner(mmengine.runner.Runner):
    """Runner whose checkpoints are complete, fit the model, and resume to the same losses.

    - A run that was stopped in an evaluation makes up for it when it resumes.
    - A work directory takes one training at a time.
    - A checkpoint appears under its name only when all of it is on disk, and holds tensors and
      plain values only.
    - Testing and resuming refuse weights that do not fit the model exactly; ``load_from`` alone
      (fine-tuning) says how much of the model they fill and refuses those that fill next to
      nothing.
    - ``resume=True`` without ``load_from`` takes the newest complete checkpoint of the work
      directory and refuses if there is none.
    - :class:`EpochSeedHook`, :class:`NonFiniteHook`, for deformable layers
      :class:`OffsetStatisticsHook` and for mimicking :class:`MimicPictureHook` are always on.
    - Data workers restart every epoch, since their random state would be lost with the process.
    - The model runs channels-last, which dcn's kernels and oneDNN's convolutions want;
      ``channels_last = False`` in the config keeps the usual order.
    - ``compile`` (True or a dict of options of ``torch.compile``) compiles what has shapes that do
      not depend on values, for training and testing (:func:`compile_maps`).
    - Floats in a parameter scheduler are shares of the run's length (`schedules.resolve`). Resuming
      with another length goes on with the rate that a run of that length has there.
    - ``skip_non_finite = N`` in the config skips up to N iterations with a NaN.
    - The convolutions that predict offsets learn at a tenth of the rate
      (`optim.with_slow_offsets`).
    - Until the first iteration the terminal shows a dozen lines, and the log file all.
    - Without a GPU the log's ``memory`` is the peak of the process (:class:`LogProcessor`).
    - With ``launcher='pytorch'`` and no accelerator the processes use gloo on the CPU.
    """

    _fine_tuning = False
    goes_on = False  # with what this work directory holds
    run_number = 1  # among the runs of this work directory

    def setup_env(self, env_cfg):
        # mmengine's init_dist selects a CUDA device whatever the backend is
        if self._launcher == "pytorch" and get_device() == "cpu" and not is_distributed():
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)

    def build_model(self, model):
        # weights in this format make every convolution's output follow, whatever the images have
        try:
            model = super().build_model(model)
        except ValueError as error:  # settings of the model that contradict each other
            raise EngineError(f"model: {error}") from error
        last = self.cfg.get("channels_last", True)
        return model.to(memory_format=torch.channels_last) if last else model

    def build_logger(self, *args, **kwargs):
        logger = super().build_logger(*args, **kwargs)
        self._screen = limit(logger)
        return logger

    def build_log_processor(self, log_processor):
        if isinstance(log_processor, dict):  # without a type mmengine takes its own, unregistered
            log_processor = {"type": "LogProcessor", **log_processor}
        return super().build_log_processor(log_processor)

    def dump_config(self):
        """Left to :meth:`write_config`: a run that is refused must not replace another's config."""

    def write_config(self):
        """Write the config to the work directory."""
        super().dump_config()

    def wrap_model(self, model_wrapper_cfg, model):
        if self.distributed and get_device() == "cpu" and model_wrapper_cfg is None:
            model_wrapper_cfg = {
                "type": "MMDistributedDataParallel",
                "device_ids": None,
                "broadcast_buffers": False,
                "find_unused_parameters": self.cfg.get("find_unused_parameters", False),
            }
        return super().wrap_model(model_wrapper_cfg, model)

    def register_hooks(self, default_hooks=None, custom_hooks=None):
        super().register_hooks(default_hooks, custom_hooks)
        self.register_hook(EpochSeedHook())
        self.register_hook(NonFiniteHook(self.cfg.get("skip_non_finite", 0)))
        self.register_hook(DataCheckHook())
        self.register_hook(SummaryHook(self._screen))
        self.register_hook(MissedValidationHook())
        self.register_hook(PlainValuesHook())
        for watching in (OffsetStatisticsHook, MimicPictureHook):
            if not any(isinstance(hook, watching) for hook in self.hooks):
                self.register_hook(watching())

    @staticmethod
    def build_dataloader(dataloader, seed=None, diff_rank_seed=False):
        if isinstance(dataloader, dict):
            dataloader = dict(dataloader)
            if dataloader.pop("persistent_workers", False):
                print_log(
                    "persistent_workers=True is ignored: the workers start anew every epoch, so "
                    "that a resumed run draws the same numbers",
                    logger="current",
                    level=logging.WARNING,
                )
            # torch seeds a worker's python, numpy and torch from the epoch's seed; mmengine's
            # default would then seed them alike in every epoch
            dataloader.setdefault("worker_init_fn", {"type": _keep_seeds})
        with redirect_stdout(io.StringIO()):  # pycocotools says that it reads
            try:
                return mmengine.runner.Runner.build_dataloader(dataloader, seed, diff_rank_seed)
            except ValueError as error:
                if type(error) is not ValueError:  # such as DataError
                    raise
                raise EngineError(f"dataloader: {error}") from error  # settings of a transform

    def build_evaluator(self, evaluator):
        with redirect_stdout(io.StringIO()):
            return super().build_evaluator(evaluator)

    def build_optim_wrapper(self, optim_wrapper):
        if isinstance(optim_wrapper, dict):
            optim_wrapper = with_slow_offsets(optim_wrapper, self.model)
        return super().build_optim_wrapper(optim_wrapper)

    def scale_lr(self, optim_wrapper, auto_scale_lr=None):
        """Scale the rate by batch / base batch, gradients that are accumulated included."""
        if not auto_scale_lr or "base_batch_size" not in auto_scale_lr:
            return
        before = optim_wrapper.param_groups[0]["lr"]
        steps = getattr(optim_wrapper, "_accumulative_counts", 1)
        base = auto_scale_lr["base_batch_size"]
        super().scale_lr(optim_wrapper, {**auto_scale_lr, "base_batch_size": base / steps})
        after = optim_wrapper.param_groups[0]["lr"]
        loader = self._train_dataloader
        images = loader["batch_size"] if isinstance(loader, dict) else loader.batch_size
        batch = f"batch: {images * self.world_size * steps} images"
        if self.world_size * steps > 1:
            batch += f" ({images} × {self.world_size} processes × {steps} accumulated)"
        rate = f"{before:.6g} → {after:.6g}" if after != before else f"{before:.6g}"
        switch = "auto_scale_lr.enable=False keeps the config's"
        if not auto_scale_lr.get("enable", False):
            switch = "not scaled, auto_scale_lr.enable=False"
        say(
            self.logger,
            f"{batch}, the config's rate is for {base}; learning rate {rate} ({switch})",
        )

    def build_param_scheduler(self, scheduler):
        def resolved(one):
            if isinstance(one, list | tuple):
                return [resolved(inner) for inner in one]
            if isinstance(one, dict) and "type" in one:
                length = self.max_iters
                epochs = length / len(self.train_dataloader)
                return resolve(one, int(epochs) if epochs.is_integer() else epochs, length)
            return {k: resolved(v) for k, v in one.items()} if isinstance(one, dict) else one

        return super().build_param_scheduler(resolved(scheduler))

    def train(self):
        """Train.

        Raises:
            EngineError: another training writes to the work directory, or nothing would be trained.
        """
        self._fine_tuning = not self._resume
        self._schedule = self.param_schedulers
        with ExitStack() as stack:
            refusal = [""]
            if self.rank == 0:
                try:
                    stack.enter_context(only_training(self.work_dir))
                except EngineError as error:
                    refusal = [str(error)]
            broadcast_object_list(refusal)
            if refusal[0]:
                raise EngineError(refusal[0])
            return super().train()

    def build_train_loop(self, loop):
        try:
            loop = super().build_train_loop(loop)
        except AssertionError as error:
            raise EngineError(f"train_cfg: {error}") from error
        batches, images = len(loop.dataloader), len(loop.dataloader.dataset)
        if loop.max_iters < 1 or not batches:
            raise EngineError(
                f"nothing to train: {loop.max_iters} iterations, and {batches} batches in the "
                f"training set of {images} images"
            )
        intervals = [loop.val_interval, *loop.dynamic_intervals]
        if bad := [i for i in intervals if not isinstance(i, int) or i < 1]:
            raise EngineError(f"train_cfg.val_interval: expected at least 1, got {bad[0]!r}")
        return loop

    def test(self):
        self._maybe_compile("test_step")
        return super().test()

    def _maybe_compile(self, target):
        options = self.cfg.get("compile", None)
        if options is None or options is False:
            return
        if options is not True and not isinstance(options, dict):
            raise EngineError(f"compile: expected True, False or a dict, got {options!r}")
        model = self.model.module if is_model_wrapper(self.model) else self.model
        compile_maps(model, **({} if options is True else options))

    def load_or_resume(self):
        self.goes_on = self._resume and self._load_from is None and not self._has_loaded
        # As CheckpointHook has it, which knows its folder only when training begins.
        outside = [h.out_dir for h in self.hooks if isinstance(h, CheckpointHook) and h.out_dir]
        folders = [self.work_dir, *(Path(o, Path(self.work_dir).name) for o in outside)]
        if self.goes_on:
            model = self.model.module if is_model_wrapper(self.model) else self.model
            self._load_from = find_resumable(*folders, model=model)
        elif not self._has_loaded:
            self.run_number = latest_run(*folders) + 1
        super().load_or_resume()

    def load_checkpoint(self, filename, map_location="cpu", strict=None):
        """Load the weights of ``filename``; strictly, but for ``load_from`` of a training run.

        Raises:
            CheckpointError: it cannot be read, or does not fit the model.
        """
        checkpoint = CheckpointLoader.load_checkpoint(filename, map_location)
        if self._resume:
            check_resumable(checkpoint, filename)
            checkpoint["meta"].pop("config", None)  # mmengine would execute it
            if self.goes_on:
                self.run_number = checkpoint["meta"].get("run", 0)
            self._compare(checkpoint["meta"])
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        strict = not self._fine_tuning if strict is None else strict
        load_weights(model, checkpoint, filename, strict)
        self._has_loaded = True
        self._has_schedule = bool(checkpoint.get("param_schedulers"))
        self.logger.info(f"Load checkpoint from {filename}")
        return checkpoint

    def _compare(self, meta):
        """Warn where the losses cannot be those of the run that wrote a checkpoint."""
        consequences = {
            "processes": (self.world_size, "its batches and their learning rate are others"),
            "threads": (torch.get_num_threads(), "its losses are not the same to the bit"),
        }
        for what, (count, consequence) in consequences.items():
            if meta.get(what, count) != count:
                self.logger.warning(
                    f"the checkpoint is of a run with {meta[what]} {what}, this one has {count}: "
                    f"{consequence}"
                )

    def resume(self, filename, *args, **kwargs):
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it cannot be read, or its contents do not fit this training.
        """
        asked = [places(schedulers) for schedulers in self._schedulers()]
        try:
            super().resume(filename, *args, **kwargs)
        except EngineError:
            raise
        except Exception as error:  # whatever the optimizer and the schedulers make of odd contents
            raise CheckpointError(
                f"cannot resume from {filename}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(self.optim_wrapper, OptimWrapperDict):
            check_state(self.optim_wrapper.optimizer, filename)
        loop, length = self.train_loop, len(self.train_dataloader)
        if loop.epoch > loop.max_epochs:
            raise CheckpointError(
                f"cannot resume from {filename}: it is of epoch {loop.epoch}, and "
                f"train_cfg.max_epochs is {loop.max_epochs}"
            )
        if isinstance(loop, EpochBasedTrainLoop) and loop.iter != loop.epoch * length:
            self.logger.warning(
                f"the checkpoint has {loop.iter} iterations in {loop.epoch} epochs, where an epoch "
                f"has {length} here: counting goes on from {loop.epoch * length}"
            )
            loop._iter = loop.epoch * length
        if any(asked) and not self._has_schedule:
            self._follow_schedule("the checkpoint holds no param_schedulers")
        elif self._has_schedule and not any(asked):
            self._follow_schedule("the config has no param_scheduler")
        elif asked != [places(schedulers) for schedulers in self._schedulers()]:
            self._follow_schedule("the schedule is another than the checkpoint's")
        # the checkpoint may bring another seed, and the sampler was built before it
        loader = self.train_dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if hasattr(sampler, "seed") and not self._randomness_cfg.get("diff_rank_seed"):
                sampler.seed = self.seed

    def _schedulers(self):
        """Lists of schedulers, one per optimizer."""
        built = self.param_schedulers or []
        return list(built.values()) if isinstance(built, dict) else [built]

    def _follow_schedule(self, reason):
        """Put the rate where a run of this config's schedule has it after `self.iter` iterations.

        A checkpoint brings its run's schedule along.
        """
        before = self.optim_wrapper.param_groups[0]["lr"]
        reset(self.optim_wrapper)
        self.param_schedulers = self.build_param_scheduler(self._schedule or [])
        for schedulers in self._schedulers():
            advance(schedulers, self.iter, len(self.train_dataloader))
        after = self.optim_wrapper.param_groups[0]["lr"]
        self.logger.warning(
            f"{reason}: the learning rate goes on from {after:.6g}, where a run of this schedule "
            f"has it, not from {before:.6g}"
        )

    @master_only
    def save_checkpoint(self, out_dir, filename, *args, meta=None, **kwargs):
        """Save a file that appears whole or not at all.

        Raises:
            CheckpointError: writing failed; other files are untouched.
        """
        meta = {
            **(meta or {}),
            "run": self.run_number,
            "processes": self.world_size,
            "threads": torch.get_num_threads(),
        }
        path = Path(out_dir, filename)
        try:
            with whole_file(path) as temporary:
                super().save_checkpoint(out_dir, temporary.name, *args, meta=meta, **kwargs)
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoint {path}: {error.strerror or error}; earlier ones are kept"
            ) from error


def _keep_seeds(worker_id):
    """A worker_init_fn that leaves torch's seeding of the worker as it is."""
