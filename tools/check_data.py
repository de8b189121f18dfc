#!/usr/bin/env python
"""Decode every image of a set and list what is wrong: tools/check_data.py CONFIG, ROOT or JSON."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.data.check import check_set, sets_of, sets_of_config
from dcndet.data.custom import use_data
from dcndet.data.errors import DataError
from dcndet.models.engine.cli import one_line_errors
from dcndet.models.engine.options import read_config


def main():
    parser = argparse.ArgumentParser(
        description="Check annotations and decode every image. What is wrong is listed by name. "
        "Exit status: 0 if nothing is wrong, else 1."
    )
    parser.add_argument("target", help="config, folder of a set, or COCO JSON")
    parser.add_argument("--data", metavar="ROOT", help="with a config: the set that it is to use")
    parser.add_argument("--workers", type=int, help="processes that decode (default: one per core)")
    parser.add_argument(
        "--outside-paths",
        action="store_true",
        help="file names may leave the image folder (a config says so itself)",
    )
    args = parser.parse_args()

    if args.target.endswith(".py"):
        cfg = read_config(args.target)
        if args.data is not None:
            use_data(cfg, args.data)
        found = sets_of_config(cfg)
    elif args.data is not None:
        raise DataError(f"--data goes with a config, and {args.target} is none")
    else:
        found = sets_of(args.target, args.outside_paths)

    sets = {(ann_file, images): dataset for ann_file, images, dataset in found}
    if not sets:
        raise DataError(f"{args.target} names no annotation file")
    wrong = 0
    for (ann_file, images), dataset in sets.items():
        faults = check_set(ann_file, images, dataset, args.workers, args.outside_paths)
        wrong += len(faults)
        print(f"{ann_file}, images in {images}: {len(faults) or 'nothing'} wrong")
        for fault in faults:
            print(f"  {fault}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    with one_line_errors(DataError):
        main()
