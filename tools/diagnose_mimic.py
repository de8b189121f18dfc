#!/usr/bin/env python
"""Measure what mimicking does to a detector: tools/diagnose_mimic.py CONFIG CHECKPOINT..."""

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.data.errors import DataError
from dcndet.models.detectors.diagnosis import diagnose_checkpoint
from dcndet.models.engine.cli import add_config, existing_checkpoint, one_line_errors
from dcndet.models.engine.options import merge_options, read_config


def main():
    parser = argparse.ArgumentParser(
        description="Compare a detector with its R-CNN branch on images of val: accuracies of both "
        "classifiers, cosines, gradients, and how much of a score depends on the object itself."
    )
    add_config(parser)
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="path or URL of the weights; several, for example one per seed, are averaged, with "
        "standard deviations",
    )
    parser.add_argument("--images", type=int, default=100, help="how many (%(default)s)")
    parser.add_argument("--out", metavar="FOLDER", help="write classes.csv and losses.csv there")
    args = parser.parse_args()
    if args.images < 1:
        parser.error("--images: at least 1")
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options or {})
    for path in args.checkpoints:
        existing_checkpoint(path)
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    tables = []
    for path in args.checkpoints:
        cfg.load_from = path
        tables.append(diagnose_checkpoint(cfg, args.images))
    for name, each in zip(("classes", "losses"), zip(*tables, strict=True), strict=True):
        every = pd.concat(each, keys=args.checkpoints, names=["checkpoint"])
        lines = every.groupby(level=1, sort=False)
        print(lines.mean().to_markdown(floatfmt=".3f"), end="\n\n")
        if len(args.checkpoints) > 1:
            print("Standard deviations:\n")
            print(lines.std().to_markdown(floatfmt=".3f"), end="\n\n")
        if args.out:
            every.to_csv(Path(args.out) / f"{name}.csv", float_format="%.6g")


if __name__ == "__main__":
    with one_line_errors(DataError):
        main()
