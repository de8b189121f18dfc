"""What a run says on the terminal; the log file has everything."""

import logging
import os
import re
from pathlib import Path

import mmengine.runner
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import LOG_PROCESSORS

UNTRUE = ("FileClient", "HardDiskBackend")  # warnings of mmengine about its own calls


class FirstScreen(logging.Filter):
    """Until the first iteration, lets only :func:`say`, warnings and errors through."""

    started = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return not any(word in record.getMessage() for word in UNTRUE)
        return self.started or getattr(record, "terminal", False)


def limit(logger: logging.Logger) -> FirstScreen:
    """Put one on the terminal's handlers of `logger`."""
    screen = FirstScreen()
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.addFilter(screen)
    return screen


def say(logger: logging.Logger, message: str) -> None:
    """Log at INFO, to the terminal as well."""
    logger.info(message, extra={"terminal": True})


@LOG_PROCESSORS.register_module(force=True)
class LogProcessor(mmengine.runner.LogProcessor):
    """mmengine's, whose ``memory`` is the peak of the process, in MB, where there is no GPU.

    Registered in place of mmengine's, which then logs none.
    """

    def get_log_after_iter(self, runner, batch_idx, mode):
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        if "memory" not in tag and (peak := _peak_memory()) is not None:
            tag["memory"] = peak
            line = re.sub(r"data_time: \S+  ", rf"\g<0>memory: {peak}  ", line)
        return tag, line


def _peak_memory() -> int | None:
    """In MB; None where the system does not tell.

    What getrusage says would begin with the parent's memory, from before the exec.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) // 1024 if found else None


class SummaryHook(Hook):
    """Says what is about to run, in one line per fact, and then opens the terminal to the log."""

    priority = "LOWEST"

    def __init__(self, screen: FirstScreen) -> None:
        self.screen = screen

    def before_train(self, runner) -> None:
        loader = runner.train_dataloader
        say(runner.logger, _data("trains on", loader))
        if runner.val_loop is not None:
            say(runner.logger, _data("validates on", runner.val_loop.dataloader))
        length = f"{runner.max_iters} iterations"
        if runner.max_epochs:
            epochs = "1 epoch" if runner.max_epochs == 1 else f"{runner.max_epochs} epochs"
            length = f"{epochs} of {len(loader)} iterations"
        if runner.iter:
            length += f", goes on after iteration {runner.iter}"
        self._say(runner, length)

    def before_test(self, runner) -> None:
        say(runner.logger, _data("tests on", runner.test_dataloader))
        self._say(runner, None)

    def before_val(self, runner) -> None:
        self.screen.started = True

    def _say(self, runner, length: str | None) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        device = model.data_preprocessor.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        processes = f", {runner.world_size} processes" if runner.world_size > 1 else ""
        threads = torch.get_num_threads()
        parameters = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        counts = f"{parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained"
        lines = [
            f"config: {os.path.relpath(runner.cfg.filename)}" if runner.cfg.filename else None,
            f"device: {name}, {threads} thread{'s' * (threads > 1)}{processes}",
            f"model: {type(model).__name__}, {counts if parameters else model.extra_repr()}",
            f"length: {length}" if length else None,
            f"checkpoints: {os.path.relpath(runner.work_dir)}" if length else None,
            f"log: {os.path.relpath(Path(runner.log_dir, runner.timestamp))}.log",
            f"curves: tensorboard --logdir {os.path.relpath(runner.work_dir)}" if length else None,
        ]
        for line in filter(None, lines):
            say(runner.logger, line)
        runner.write_config()
        self.screen.started = True


def _data(verb: str, loader) -> str:
    classes = getattr(loader.dataset, "metainfo", {}).get("classes", ())
    few = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    named = f", {len(classes)} classes: {few}" if classes else ""
    return f"{verb} {len(loader.dataset)} images{named}"
