#!/usr/bin/env python
"""Evaluate a detector or a classifier: tools/test.py CONFIG CHECKPOINT."""

import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # Ctrl-C while it imports: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.data.custom import use_data
from dcndet.data.errors import DataError
from dcndet.models.deploy import FORMATS, use_exported
from dcndet.models.engine.cli import (
    config_parser,
    existing_checkpoint,
    load_config,
    one_line_errors,
    running_in,
)
from dcndet.models.engine.evaluation import evaluate
from dcndet.models.engine.optim import amp_dtype


def main():
    parser = config_parser(
        "Evaluate a detector: print the COCO table and each class's AP. Or a classifier: print its "
        "accuracy."
    )
    parser.add_argument(
        "checkpoint", help="path or URL of the weights, or a file that tools/export.py wrote"
    )
    parser.add_argument("--data", metavar="ROOT", help="test on the set in this folder instead")
    parser.add_argument("--out", metavar="JSON", help="write the detections as COCO result JSON")
    parser.add_argument("--show-dir", help="folder for pictures: annotated beside found")
    parser.add_argument(
        "--show-score-thr",
        type=float,
        default=0.3,
        metavar="SCORE",
        help="leave detections below this score out of the pictures (%(default)s)",
    )
    args = parser.parse_args()

    if args.work_dir is None and "://" not in args.checkpoint:
        args.work_dir = str(Path(args.checkpoint).expanduser().parent / "test")
    cfg = load_config(args)
    if args.data is not None:
        use_data(cfg, args.data, train=False)
    cfg.load_from = existing_checkpoint(args.checkpoint)
    if Path(args.checkpoint).suffix in FORMATS.values():
        if args.amp:
            parser.error(f"{args.checkpoint}: an exported file runs in its own precision")
        use_exported(cfg, args.checkpoint)
    with running_in(cfg.work_dir):
        evaluate(
            cfg,
            out=args.out,
            show_dir=args.show_dir,
            show_score_thr=args.show_score_thr,
            amp=amp_dtype(args.amp) if args.amp else None,
        )


if __name__ == "__main__":
    with one_line_errors(DataError):
        main()
