#!/usr/bin/env python
"""Measure operators or detectors beside others: tools/benchmark.py ops|detector --device cpu."""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from tools.benchmarks import measure, ops, report


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure operators or detectors beside others.")
    parser.add_argument(
        "what",
        choices=["ops", "detector"],
        help="ops: beside F.conv2d, torchvision and, where it is installed, mmcv; "
        "detector: beside mmdet's own",
    )
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--repeats", type=positive, default=7)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/benchmarks"),
        help="folder for the JSON, the tables and the plot (default: %(default)s)",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:  # before minutes of measuring
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {args.out}: {error.strerror}")

    settings = dict(threads=args.threads, repeats=args.repeats, dtype="float32")
    if args.what == "ops":
        sections = ops.run(args.repeats, args.threads)
    else:
        from tools.benchmarks import detector  # needs mmdet, which the operators do not

        sections = detector.run(args.repeats)
        settings.update(batch=detector.BATCH, image=f"{detector.HEIGHT}×{detector.WIDTH}")
    bars = (
        report.ops_bars(sections, args.threads)
        if args.what == "ops"
        else report.detector_bars(sections)
    )
    result = {
        "command": shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": measure.machine(),
        "versions": versions(),
        "settings": settings,
        "bars": bars,
        "sections": sections,
    }
    path = args.out / f"{args.what}_{args.device}"
    text = report.ops_markdown(result) if args.what == "ops" else report.detector_markdown(result)
    path.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(text)
    print(f"\n{text}\nWritten to {path}.json and .md")
    if args.what == "ops" and importlib.util.find_spec("matplotlib") is None:
        print("No plot: matplotlib is not installed")
    elif args.what == "ops":
        report.ops_plot(result, path.with_suffix(".png"))


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def versions() -> dict[str, str]:
    """Of the packages that take part."""
    packages = {
        "torch": "torch",
        "torchvision": "torchvision",
        "mmcv": "onedl-mmcv",
        "mmdet": "onedl-mmdetection",
    }
    found = {}
    for name, package in packages.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
