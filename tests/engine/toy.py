"""A toy model that trains in no time. As a script (see ``killed``) it trains until it is killed."""

import errno
import os
import random
import signal
import sys
import uuid
from pathlib import Path

import numpy as np
import torch
from dcndet.models.engine import Runner
from dcndet.models.engine.hooks import CheckpointHook, _LateRemoval
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset


class Images(Dataset):
    """Six samples, augmented at random from all three generators."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(4)
        sample = BaseDataElement(metainfo={"img_path": f"{index}.jpg"})
        return {"inputs": index + noise, "data_samples": sample}


class Toy(BaseModel):
    def __init__(self, width=4, fault=None, fault_iter=4):
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.head = nn.Linear(4, width)
        self.fault, self.fault_iter, self.calls, self.seen = fault, fault_iter, 0, []

    def forward(self, inputs, data_samples, mode):
        if mode == "predict":
            return data_samples
        x = torch.stack(inputs)
        self.seen.append(x[:, 0].tolist())
        loss = self.head(nn.functional.dropout(self.backbone(x))).square().mean() / 100
        if self.calls == self.fault_iter and self.fault == "loss":
            loss = loss * float("nan")
        if self.calls == self.fault_iter and self.fault == "gradient":
            loss = loss + (self.head.weight * 0).sqrt().sum()
        self.calls += 1
        return {"loss_cls": loss, "loss_bbox": loss * 2}


class Score(BaseMetric):
    """A score that rises with every epoch."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return {"score": MessageHub.get_current_instance().get_info("epoch")}


class Falling(Score):
    """The first epoch stays the best."""

    def compute_metrics(self, results):
        return {"score": -super().compute_metrics(results)["score"]}


class Stop(Hook):
    """Ctrl-C after the first epoch."""

    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            raise KeyboardInterrupt


class Start(Hook):
    """Remembers the weights that training starts from."""

    priority = "LOWEST"

    def before_train(self, runner):
        runner.model.start = runner.model.backbone.weight.detach().clone()


WARM_UP = {"type": "LinearLR", "by_epoch": False, "start_factor": 0.1, "end": 7}


def build(
    work_dir,
    model=None,
    workers=0,
    seed=5,
    epochs=3,
    batch=2,
    validate=False,
    score=Score,
    val_interval=1,
    schedule=WARM_UP,
    checkpoint=None,
    hook=None,
    **kwargs,
):
    loader = {
        "dataset": Images(),
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "batch_size": batch,
        "drop_last": True,
        "num_workers": workers,
        "persistent_workers": workers > 0,
    }
    checkpoint = {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 1} | (checkpoint or {})
    if validate:
        kwargs.update(val_dataloader=loader, val_cfg={}, val_evaluator={"type": score})
        checkpoint.update(save_best="score", rule="greater")
    torch.manual_seed(0)  # the runner seeds only after the model is built
    runner = Runner(
        model or Toy(),
        str(work_dir),
        train_dataloader=loader,
        train_cfg={"by_epoch": True, "max_epochs": epochs, "val_interval": val_interval},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}},
        param_scheduler=schedule,
        default_hooks={"checkpoint": checkpoint},
        randomness={"seed": seed},
        experiment_name=uuid.uuid4().hex,
        **kwargs,
    )
    if hook is not None:
        runner.register_hook(hook)
    return runner


def train(*args, **kwargs):
    """The loss of every iteration, and the runner."""
    runner = build(*args, **kwargs)
    runner.train()
    return runner.message_hub.get_scalar("train/loss").data[0].tolist(), runner


def fail_write(name, action):
    """A ``LocalBackend.put`` that writes half of ``name`` and then does ``action``."""
    put = LocalBackend.put

    def half(self, obj, filepath):
        if Path(filepath).name.startswith(name):
            put(self, obj[: len(obj) // 2], filepath)
            action()
        put(self, obj, filepath)

    return half


def disk_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def checkpoints(work_dir):
    return sorted(p.name for p in work_dir.iterdir() if ".pth" in p.name)


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work_dir, moment="writing", score="Score"):
    """Train until ``moment`` in the second epoch."""
    if moment == "writing":
        LocalBackend.put = fail_write("epoch_2.pth", die)
        train(work_dir, workers=1)
    score = globals()[score]
    compute, _save, flush = (
        score.compute_metrics,
        CheckpointHook._save_best_checkpoint,
        _LateRemoval.flush,
    )

    def second(hub=None):
        return MessageHub.get_current_instance().get_info("epoch") == 1

    if moment == "evaluating":
        score.compute_metrics = lambda self, results: die() if second() else compute(self, results)
    elif moment == "best saved":
        step = CheckpointHook._save_checkpoint_with_step
        CheckpointHook._save_checkpoint_with_step = lambda self, runner, at, meta: (
            die() if runner.epoch == 2 else step(self, runner, at, meta)
        )
    else:
        saves = []
        _LateRemoval.flush = lambda self: (
            die() if second() and (saves.append(1) or len(saves) == 2) else flush(self)
        )
    train(work_dir, score=score, validate=True)


if __name__ == "__main__":
    killed(*sys.argv[1:])
