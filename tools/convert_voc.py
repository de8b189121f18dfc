#!/usr/bin/env python
"""Convert Pascal VOC annotations to COCO format: tools/convert_voc.py ROOT."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.data.custom import print_command
from dcndet.data.errors import DataError
from dcndet.data.voc import convert_voc


def main():
    parser = argparse.ArgumentParser(
        description="Convert Pascal VOC XML to COCO JSON, one file per split. What is bad is left "
        "out and named on stderr. Exit status: 0 if every split was written, even with something "
        "left out; 1 if one was not."
    )
    parser.add_argument("root", help="folder of the set")
    parser.add_argument(
        "--annotations", help="folder of the XML files (Annotations, annots, labels, ...)"
    )
    parser.add_argument("--images", help="folder of the pictures (JPEGImages, images, ...)")
    parser.add_argument("--lists", help="folder of the lists of images (ImageSets/Main)")
    parser.add_argument("--out", help="folder of the JSON files (ROOT/annotations)")
    parser.add_argument(
        "--splits", nargs="+", help="names of lists (those of train val trainval test)"
    )
    parser.add_argument(
        "--val", type=float, help="without lists: share of the images to evaluate on (0.2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of that split's draw (0)")
    parser.add_argument(
        "--classes",
        nargs="+",
        help="categories, in the config's order (all there are, sorted)",
    )
    args = parser.parse_args()
    splits = convert_voc(**vars(args))

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
    print_command(args.root)


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
