#!/usr/bin/env python
"""Train a detector or a classifier: tools/train.py CONFIG."""

import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # Ctrl-C while it imports: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from dcndet.data.custom import use_data
from dcndet.data.errors import DataError
from dcndet.models.engine import EngineError, Runner
from dcndet.models.engine.cli import (
    config_parser,
    existing_checkpoint,
    load_config,
    one_line_errors,
    running_in,
)
from dcndet.models.engine.optim import amp_dtype


def main():
    parser = config_parser("Train a detector or a classifier.")
    parser.add_argument("--data", metavar="ROOT", help="train on the set in this folder instead")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from this checkpoint; without a path from the newest of the work dir",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by batch size / auto_scale_lr.base_batch_size (the default)",
    )
    args = parser.parse_args()

    cfg = load_config(args)
    if args.data is not None:
        use_data(cfg, args.data)
    elif cfg.get("data_root") == "data/custom/" and not Path(cfg.data_root).is_dir():
        raise EngineError(f"{args.config}: give the folder of your set with --data ROOT")
    if args.amp:
        half = amp_dtype(args.amp) == torch.float16
        cfg.optim_wrapper.type = "AmpOptimWrapper" if half else "BFloat16OptimWrapper"
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise EngineError(
                f"--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size"
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else existing_checkpoint(args.resume)

    try:
        with running_in(cfg.work_dir):
            Runner.from_cfg(cfg).train()
    except KeyboardInterrupt as interrupt:
        kept = any(Path(cfg.work_dir).glob("*.pth"))
        then = f"--resume goes on from the newest checkpoint in {cfg.work_dir}"
        raise KeyboardInterrupt(then if kept else "no checkpoint was written yet") from interrupt


if __name__ == "__main__":
    with one_line_errors(DataError):
        main()
