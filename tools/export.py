#!/usr/bin/env python
"""Write a trained detector for other runtimes: tools/export.py CONFIG CHECKPOINT --out FILE."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.data.errors import DataError
from dcndet.models.deploy import FORMATS, OPSET, ExportedDetector, compare, export, pad_images
from dcndet.models.engine.cli import add_config, existing_checkpoint, one_line_errors
from dcndet.models.engine.errors import EngineError
from dcndet.models.engine.options import merge_options, read_config
from dcndet.models.inference import Detector

SCORE = 0.05  # detections below are noise


def main():
    parser = argparse.ArgumentParser(
        description="Write a detector as ONNX, for OpenVINO or as a compiled package of PyTorch, "
        "and compare what it finds with what is found here."
    )
    add_config(parser)
    parser.add_argument("checkpoint", help="path or URL of the weights")
    parser.add_argument("--to", choices=FORMATS, default="onnx", help="format (%(default)s)")
    suffixes = ", ".join(FORMATS.values())
    parser.add_argument("--out", required=True, metavar="FILE", help=f"where to ({suffixes})")
    parser.add_argument(
        "--check",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="run the file on these images, beside the detector, and print the differences",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images after the config's resizing (default: that of the first --check image)",
    )
    parser.add_argument(
        "--pad", action="store_true", help="pad images to --size, at the right and the bottom"
    )
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--batch", type=int, default=1, help="images at a time (%(default)s)")
    number.add_argument("--dynamic-batch", action="store_true", help="any number of images")
    parser.add_argument(
        "--no-preprocess",
        action="store_true",
        help="leave the normalisation to the caller: float images, normalised and padded",
    )
    parser.add_argument("--opset", type=int, default=OPSET, help="of ONNX (%(default)s)")
    parser.add_argument(
        "--no-deform-conv",
        action="store_true",
        help="write ONNX without the operator DeformConv, for runtimes that lack it",
    )
    args = parser.parse_args()
    if args.size is None and not args.check:
        parser.error("one of --size and --check is needed: it says how large images are")
    if args.pad and args.size is None:
        parser.error("--pad: needs --size")
    if args.to != "onnx" and (args.opset != OPSET or args.no_deform_conv):
        parser.error("--opset and --no-deform-conv: are for --to onnx")

    config = read_config(args.config)
    merge_options(config, args.cfg_options or {})
    if args.pad:
        pad_images(config, args.size)
    detector = Detector(config, existing_checkpoint(args.checkpoint), device="cpu")
    inputs = [detector.prepare([image])[1]["inputs"][0] for image in args.check]
    sizes = [tuple(image.shape[1:]) for image in inputs]
    size = tuple(args.size or sizes[0])
    for image, (height, width) in zip(args.check, sizes, strict=True):
        if (height, width) != size:
            raise EngineError(
                f"--check {image}: is {width}×{height} pixels after the config's resizing, and the "
                f"export {size[1]}×{size[0]}; --pad pads smaller images"
            )

    def check(file: Path) -> None:
        exported, same = ExportedDetector(file), True
        for image in args.check:
            difference = compare(detector(image, SCORE), exported(image, SCORE))
            print(f"{image}: {difference}")
            same = same and difference.complete
        if not same:
            raise EngineError(f"{args.out} would not find what the detector finds: not written")

    export(
        detector,
        args.out,
        size,
        to=args.to,
        batch=None if args.dynamic_batch else args.batch,
        preprocess=not args.no_preprocess,
        opset=args.opset,
        deform_conv=not args.no_deform_conv,
        check=check if args.check else None,
    )
    mebibytes = Path(args.out).stat().st_size / 2**20
    print(f"{args.out}: {mebibytes:.0f} MiB, images of {size[1]}×{size[0]} pixels")


if __name__ == "__main__":
    with one_line_errors(DataError):
        main()
