#!/usr/bin/env python
"""Run a detector on pictures: tools/detect.py CONFIG CHECKPOINT INPUT..., or FILE INPUT..."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.data.errors import DataError
from dcndet.models.deploy import FORMATS, ExportedDetector
from dcndet.models.engine.cli import add_amp, one_line_errors
from dcndet.models.inference import Detector, detect_files


def main():
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] CONFIG CHECKPOINT INPUT...\n"
        "       %(prog)s [options] FILE INPUT...",
        description="Detect objects in images and videos; no annotations are needed. Writes "
        "detections.json (COCO results), detections.csv and pictures/.",
    )
    parser.add_argument(
        "detector",
        metavar="CONFIG CHECKPOINT",
        help="path of the config file, and path or URL of the weights; or, instead of both, a FILE "
        "that tools/export.py wrote",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, video, folder, or a quoted pattern such as 'photos/**/*.jpg'",
    )
    parser.add_argument("--out-dir", default="work_dirs/detect", help="folder (%(default)s)")
    parser.add_argument(
        "--score-thr",
        type=float,
        default=0.3,
        metavar="SCORE",
        help="leave out detections below this score (%(default)s)",
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="keep only these classes")
    parser.add_argument("--batch-size", type=int, default=1, help="images (%(default)s)")
    parser.add_argument("--device", help="for example cuda:1 or cpu (default: a GPU if any)")
    add_amp(parser)
    parser.add_argument("--no-pictures", action="store_true", help="write only JSON and CSV")
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error("--batch-size: at least 1")
    exported = Path(args.detector).suffix in FORMATS.values()
    if exported and (args.amp or args.device not in (None, "cpu")):
        parser.error(f"{args.detector}: an exported file runs on the CPU, in its own precision")
    if exported and args.inputs[0].endswith(".pth"):
        parser.error(f"{args.detector} holds its weights: leave out {args.inputs[0]}")
    checkpoint, *inputs = (None, *args.inputs) if exported else args.inputs
    if checkpoint and Path(checkpoint).suffix in FORMATS.values():
        parser.error(f"{checkpoint} takes the place of the config too: leave out {args.detector}")
    if not inputs:
        parser.error("CONFIG, CHECKPOINT and INPUT are needed, or FILE and INPUT")
    if more := [name for name in inputs if name.endswith(".pth")]:
        parser.error(f"expected one checkpoint, got {checkpoint} and {more[0]}")

    done = detect_files(
        ExportedDetector(args.detector)
        if exported
        else Detector(args.detector, checkpoint, args.device, args.amp),
        inputs,
        args.out_dir,
        score_thr=args.score_thr,
        classes=args.classes,
        batch_size=args.batch_size,
        pictures=not args.no_pictures,
    )
    print(f"{done.detections} detections in {done.images} images: {args.out_dir}", end="")
    print(f"; {len(done.unreadable)} inputs skipped" if done.unreadable else "")


if __name__ == "__main__":
    with one_line_errors(DataError):
        main()
