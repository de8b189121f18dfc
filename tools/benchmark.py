#!/usr/bin/env python
"""Measure operators or detectors beside others: tools/benchmark.py ops|detector --device cpu|cuda.

And what the kernels for the GPU compile to, without one: tools/benchmark.py kernels.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from tools.benchmarks import measure, measure_cuda, ops, ops_cuda, report, report_cuda

REPEATS = {"cpu": 7, "cuda": 50}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure operators or detectors beside others.")
    parser.add_argument(
        "what",
        choices=["ops", "detector", "kernels"],
        help="ops: beside F.conv2d, torchvision and, on a CPU where it is installed, mmcv; "
        "detector: beside mmdet's own; kernels: what those for the GPU compile to, without one",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument(
        "--repeats",
        type=positive,
        help="(default: {cpu} on a CPU, {cuda} on a GPU)".format(**REPEATS),
    )
    parser.add_argument(
        "--empty",
        action="store_true",
        help="with --device cuda and no GPU: write the tables without a measurement",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/benchmarks"),
        help="folder for the JSON, the tables and the plot (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.empty and args.device != "cuda":
        parser.error("--empty: only with --device cuda")
    if args.device == "cuda" and not args.empty and not measure_cuda.available():
        parser.error("--device cuda: no GPU is at hand (--empty writes the tables without figures)")
    torch.set_num_threads(args.threads)
    try:  # before minutes of measuring
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {args.out}: {error.strerror}")
    path = args.out / (args.what if args.what == "kernels" else f"{args.what}_{args.device}")
    files = path.with_suffix(".json"), path.with_suffix(".md")
    for file in files if args.empty else ():
        if file.exists() and report_cuda.NOT_MEASURED not in file.read_text():
            parser.error(f"--empty: {file} holds measurements")

    result = {
        "command": shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }
    if args.empty:
        result["note"] = report_cuda.NOT_MEASURED
    else:
        result |= {"machine": measure.machine(), "versions": versions(args.what, args.device)}
    repeats = args.repeats or REPEATS[args.device]
    if args.what == "kernels":
        parts, markdown = compiled()
    elif args.device == "cuda":
        parts, markdown = on_cuda(args.what, repeats, args.empty)
    else:
        parts, markdown = on_cpu(args.what, repeats, args.threads)
    result |= parts
    text = markdown(result)
    files[0].write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    files[1].write_text(text)
    print(f"\n{text}\nWritten to {path}.json and .md")
    if (args.what, args.device) != ("ops", "cpu"):
        return
    if importlib.util.find_spec("matplotlib") is None:
        print("No plot: matplotlib is not installed")
    else:
        report.ops_plot(result, path.with_suffix(".png"))


def on_cpu(what: str, repeats: int, threads: int) -> tuple[dict, Callable[[dict], str]]:
    """Settings, bars and measurements, and what makes tables of the result."""
    settings = dict(threads=threads, repeats=repeats, dtype="float32")
    if what == "ops":
        sections = ops.run(repeats, threads)
        bars = report.ops_bars(sections, threads)
        return dict(settings=settings, bars=bars, sections=sections), report.ops_markdown
    from tools.benchmarks import detector  # needs mmdet, which the operators do not

    sections = detector.run(repeats)
    settings.update(batch=detector.BATCH, image=f"{detector.HEIGHT}×{detector.WIDTH}")
    bars = report.detector_bars(sections)
    return dict(settings=settings, bars=bars, sections=sections), report.detector_markdown


def on_cuda(what: str, repeats: int, empty: bool) -> tuple[dict, Callable[[dict], str]]:
    """The same of a GPU; `empty`: without a measurement."""
    settings = {} if empty else dict(repeats=repeats)
    if what == "ops":
        sections = ops_cuda.empty() if empty else ops_cuda.run(repeats)
        bars = report_cuda.ops_bars(sections)
        return dict(settings=settings, bars=bars, sections=sections), report_cuda.ops_markdown
    from tools.benchmarks import detector_cuda  # needs mmdet

    sections = detector_cuda.empty() if empty else detector_cuda.run(repeats)
    settings |= detector_cuda.SETTINGS
    bars = report_cuda.detector_bars(sections)
    return dict(settings=settings, bars=bars, sections=sections), report_cuda.detector_markdown


def compiled() -> tuple[dict, Callable[[dict], str]]:
    """What becomes of the kernels, and what makes tables of it."""
    from tools.benchmarks import kernels  # needs Triton

    return dict(sections=dict(kernels=kernels.run())), kernels.markdown


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def versions(what: str, device: str) -> dict[str, str]:
    """Of the packages that take part."""
    packages = {"torch": "torch"}
    if what == "kernels" or device == "cuda":
        packages["triton"] = "triton"
    if what != "kernels":
        packages |= {
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
