#!/usr/bin/env python
"""Convert Pascal VOC annotations to COCO format: tools/convert_voc.py ROOT."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.data.errors import DataError
from dcndet.data.voc import convert_voc


def main():
    parser = argparse.ArgumentParser(
        description="Convert Pascal VOC XML to COCO JSON, one file a split. What is bad is left "
        "out and named on stderr. Exit status: 0 if every split was written, even with something "
        "left out; 1 if one was not."
    )
    parser.add_argument("root", help="folder of Annotations, ImageSets and JPEGImages")
    parser.add_argument("--out", help="folder of the JSON files (ROOT/annotations)")
    parser.add_argument(
        "--splits", nargs="+", help="lists in ImageSets/Main (those of train val trainval test)"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        help="categories, in the config's order (all there are, sorted)",
    )
    splits = convert_voc(**vars(parser.parse_args()))

    for problem in dict.fromkeys(problem for split in splits for problem in split.problems):
        print(problem, file=sys.stderr)
    for split in splits:
        boxes = ", ".join(f"{name} {count}" for name, count in split.boxes.items())
        print(
            f"{split.path or f'{split.split}: not written'}: {split.images} images, "
            f"{split.skipped} skipped; {split.boxes.total()} boxes ({boxes}); "
            f"problems: {len(split.problems)}"
        )
    if empty := [split.split for split in splits if split.path is None]:
        sys.exit(f"error: not one image could be converted of {', '.join(empty)}")


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
