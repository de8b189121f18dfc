#!/usr/bin/env python
"""Convert another library's weights for the detectors here: tools/convert_weights.py IN OUT."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.models.engine.cli import one_line_errors
from dcndet.models.engine.conversion import convert_file


def main():
    parser = argparse.ArgumentParser(
        description="Convert another library's weights into a checkpoint for load_from, init_cfg "
        "and tools/test.py. Which library they are of is seen from their keys."
    )
    parser.add_argument("source", metavar="IN", help="path or URL of the weights")
    parser.add_argument("out", metavar="OUT", help="path of the checkpoint to write (.pth)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args()
    done = convert_file(**vars(args))
    print(
        f"{args.out}: {len(done.state)} tensors of {done.library}, {done.renamed} renamed; "
        f"left out: {', '.join(done.left_out) or 'none'}"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
