#!/usr/bin/env python
"""Make the dataset of warped digits: tools/make_digits.py."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.data.digits import make_digits
from dcndet.data.errors import DataError


def main():
    parser = argparse.ArgumentParser(
        description="Make a COCO-format dataset of warped handwritten digits, without a download."
    )
    parser.add_argument(
        "--root", help="folder of the set (data/digits, or data/digits_clutter-LEVEL)"
    )
    parser.add_argument("--num-train", type=int, default=1000, help="images (%(default)s)")
    parser.add_argument("--num-val", type=int, default=200, help="images (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument(
        "--clutter",
        type=float,
        default=0,
        metavar="LEVEL",
        help="fragments of digits of other classes around each digit, LEVEL of them on average; "
        "they hide no digit and are not annotated (%(default)s)",
    )
    args = parser.parse_args()
    if args.root is None:
        args.root = f"data/digits_clutter-{args.clutter:g}" if args.clutter else "data/digits"

    start = time.perf_counter()
    if make_digits(**vars(args)):
        count = args.num_train + args.num_val
        print(f"{args.root}: made {count} images in {time.perf_counter() - start:.1f} s")
    else:
        print(f"{args.root}: already made")


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
