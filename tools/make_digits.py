#!/usr/bin/env python
"""Make a dataset of warped digits: tools/make_digits.py."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.data.digits import make_crops, make_digits
from dcndet.data.errors import DataError


def main():
    parser = argparse.ArgumentParser(
        description="Make a COCO-format dataset of warped handwritten digits, without a download; "
        "or, with --crops, a classification set of single digits, one folder per class.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--root",
        help="folder of the set (data/digits, data/digits_clutter-LEVEL or data/digit-crops)",
    )
    parser.add_argument("--num-train", type=int, help="images (1000; crops: 8000)")
    parser.add_argument("--num-val", type=int, help="images (200; crops: 1000)")
    parser.add_argument("--size", type=int, help="pixels a side (128; crops: 64)")
    parser.add_argument("--seed", type=int, help="(0)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--clutter",
        type=float,
        metavar="LEVEL",
        help="fragments of digits of other classes around each digit, LEVEL of them on average; "
        "they hide no digit and are not annotated (0)",
    )
    kind.add_argument(
        "--crops",
        action="store_true",
        help="single digits in the training handwriting of the sets of the same seed: pre-training "
        "on them sees nothing that those sets are evaluated on",
    )
    args = vars(parser.parse_args())

    start = time.perf_counter()
    make, root = make_digits, "data/digits"
    if args.pop("crops", False):
        make, root = make_crops, "data/digit-crops"
    elif args.get("clutter"):
        root = f"data/digits_clutter-{args['clutter']:g}"
    root = args.setdefault("root", root)
    if make(**args):
        print(f"{root}: made in {time.perf_counter() - start:.1f} s")
    else:
        print(f"{root}: already made")


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
