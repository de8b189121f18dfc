#!/usr/bin/env python
"""Split one COCO JSON into train.json and val.json: tools/split_coco.py JSON."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.data.custom import print_command
from dcndet.data.errors import DataError
from dcndet.data.split import split_coco


def main():
    parser = argparse.ArgumentParser(
        description="Split a COCO JSON at random, with every class in both parts as evenly as "
        "possible. The same seed gives the same split; images stay where they are."
    )
    parser.add_argument("path", metavar="JSON", help="the file to split")
    parser.add_argument("--out", help="folder of train.json and val.json (that of JSON)")
    parser.add_argument("--val", type=float, default=0.2, help="share to evaluate on (0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument(
        "--outside-paths", action="store_true", help="file names may leave the image folder"
    )
    args = parser.parse_args()
    parts = split_coco(**vars(args))
    for path, content in parts.items():
        print(f"{path}: {len(content['images'])} images, {len(content['annotations'])} objects")
    folder = next(iter(parts)).parent
    print_command(folder.parent if folder.name.lower() == "annotations" else folder)


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
