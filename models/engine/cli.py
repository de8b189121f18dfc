"""What tools/train.py and tools/test.py share: their common flags, and one-line errors."""

import argparse
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import DictAction

from .errors import CheckpointError, EngineError
from .options import merge_options, read_config

ROOT = Path(__file__).resolve().parents[2]


class _Options(DictAction):
    def __call__(self, parser, namespace, values, option_string=None):
        if wrong := [value for value in values if "=" not in value]:
            parser.error(f"argument {option_string}: expected KEY=VALUE, got {wrong[0]!r}")
        super().__call__(parser, namespace, values, option_string)


def config_parser(description):
    """An ArgumentParser with the flags of mmdet's tools that concern the config."""
    parser = argparse.ArgumentParser(description=description)
    add_config(parser)
    parser.add_argument(
        "--work-dir",
        help="folder of logs and checkpoints (default: work_dirs/ and the config's path)",
    )
    add_amp(parser)
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="who started the processes (pytorch: torchrun)",
    )
    return parser


def add_config(parser):
    """Add the config and the flag that changes it."""
    parser.add_argument("config", help="path of the config file")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Options,
        metavar="KEY=VALUE",
        help="override settings of the config, for example train_cfg.max_epochs=1",
    )


def add_amp(parser):
    """Add the flag of mixed precision."""
    parser.add_argument(
        "--amp",
        nargs="?",
        const="auto",
        choices=["auto", "bf16", "fp16"],
        help="mixed precision; without a value bf16 where the device has it, fp16 elsewhere",
    )


def load_config(args):
    """The Config that the parsed ``args`` of a :func:`config_parser` ask for.

    Raises:
        EngineError: there is no such file, or an option that nothing would read.
    """
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options or {})
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(default_work_dir(args.config, args.data))
    return cfg


def default_work_dir(config, data=None):
    """``work_dirs/`` and the config's path below ``configs/``, or below the current folder.

    For a config outside both it is the whole path, so that no two share a folder. With ``data``
    it ends in the name of that folder.
    """
    path = Path(config).resolve().with_suffix("")
    if data is not None:
        path = path / Path(data).resolve().name
    for root in (Path.cwd() / "configs", ROOT / "configs", Path.cwd(), Path(path.anchor)):
        if path.is_relative_to(root):
            return Path("work_dirs", path.relative_to(root))


def existing_checkpoint(path):
    """``path`` itself, so that a missing file is reported before anything is built.

    Raises:
        CheckpointError: ``path`` is no URL and there is no such file.
    """
    if "://" not in path and not Path(path).expanduser().is_file():
        raise CheckpointError(f"checkpoint not found: {path}")
    return path


@contextmanager
def one_line_errors(*types):
    """Exit with status 1 and ``error: ...`` on an EngineError, an OSError or one of ``types``.

    Ctrl-C ends the process by the signal, as whoever started it expects, after one line. Any other
    exception keeps its traceback.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # the tools' while they import
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except (EngineError, *types) as error:
        message = str(error).strip()
        if message.startswith("Caught "):  # torch wraps a data worker's error in its traceback
            message = message.splitlines()[-1]
        sys.exit(f"error: {message}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror or error}")
    except KeyboardInterrupt as interrupt:
        print(f"\nstopped; {interrupt}" if str(interrupt) else "\nstopped", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def running_in(work_dir):
    """Name ``work_dir`` where writing fails and the error names no file; keep Ctrl-C what it is.

    Raises:
        EngineError: writing failed.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise EngineError(f"cannot write to {work_dir}: {error.strerror or error}") from error
    except SyntaxError as error:  # mmengine's for whatever stops it while it formats a config
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
