"""mmengine's Runner, for runs that can be interrupted and trusted."""

import logging
import os
from pathlib import Path

import mmengine.runner
import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed, master_only
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader

from .checkpoint import check_resumable, find_resumable, load_weights
from .errors import CheckpointError
from .hooks import EpochSeedHook, LastValidationHook, NonFiniteHook
from .offsets import OffsetStatisticsHook
from .pictures import MimicPictureHook


class Runner(mmengine.runner.Runner):
    """Runner whose checkpoints are complete, fit the model, and resume to the same losses.

    - A run that was stopped in its last evaluation makes up for it when it resumes.
    - A checkpoint appears under its name only when all of it is on disk.
    - Testing and resuming refuse weights that do not fit the model exactly; ``load_from`` alone
      (fine-tuning) refuses only those of which nothing fits.
    - ``resume=True`` without ``load_from`` takes the newest complete checkpoint of the work
      directory and refuses if there is none.
    - :class:`EpochSeedHook`, :class:`NonFiniteHook`, for deformable layers
      :class:`OffsetStatisticsHook` and for mimicking :class:`MimicPictureHook` are always on.
    - Data workers restart every epoch, since their random state would be lost with the process.
    - The model runs channels-last, which dcn's kernels and oneDNN's convolutions want.
    - With ``launcher='pytorch'`` and no accelerator the processes use gloo on the CPU.
    """

    _fine_tuning = False

    def setup_env(self, env_cfg):
        # mmengine's init_dist selects a CUDA device whatever the backend is
        if self._launcher == "pytorch" and get_device() == "cpu" and not is_distributed():
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)

    def build_model(self, model):
        # weights in this format make every convolution's output follow, whatever the images have
        return super().build_model(model).to(memory_format=torch.channels_last)

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
        self.register_hook(NonFiniteHook())
        self.register_hook(LastValidationHook())
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
        return mmengine.runner.Runner.build_dataloader(dataloader, seed, diff_rank_seed)

    def train(self):
        self._fine_tuning = not self._resume
        return super().train()

    def load_or_resume(self):
        if self._resume and self._load_from is None and not self._has_loaded:
            self._load_from = find_resumable(self.work_dir)
        super().load_or_resume()

    def load_checkpoint(self, filename, map_location="cpu", strict=None):
        """Load the weights of ``filename``; strictly, but for ``load_from`` of a training run.

        Raises:
            CheckpointError: it cannot be read, or does not fit the model.
        """
        checkpoint = CheckpointLoader.load_checkpoint(filename, map_location)
        if self._resume:
            check_resumable(checkpoint, filename)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        strict = not self._fine_tuning if strict is None else strict
        load_weights(model, checkpoint, filename, strict)
        self._has_loaded = True
        self.logger.info(f"Load checkpoint from {filename}")
        return checkpoint

    def resume(self, *args, **kwargs):
        super().resume(*args, **kwargs)
        # the checkpoint may bring another seed, and the sampler was built before it
        loader = self.train_dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if hasattr(sampler, "seed") and not self._randomness_cfg.get("diff_rank_seed"):
                sampler.seed = self.seed

    @master_only
    def save_checkpoint(self, out_dir, filename, *args, **kwargs):
        """Save under a temporary name, flush to disk, then rename.

        Raises:
            CheckpointError: writing failed; the temporary file is removed, others are untouched.
        """
        path = Path(out_dir, filename)
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            super().save_checkpoint(out_dir, temporary.name, *args, **kwargs)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(
                f"cannot write checkpoint {path}: {error.strerror or error}; earlier ones are kept"
            ) from error


def _keep_seeds(worker_id):
    """A worker_init_fn that leaves torch's seeding of the worker as it is."""
