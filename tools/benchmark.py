#!/usr/bin/env python
"""Measure operators or detectors beside others: tools/benchmark.py ops|detector --device cpu|cuda.

What the kernels for the GPU compile to, without one: tools/benchmark.py kernels. The Markdown page
and the plot, again, from figures that were measured: tools/benchmark.py report FILE...
"""

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

REPEATS = {"cpu": 7, "cuda": 50}
PACKAGES = {"mmcv": "onedl-mmcv", "mmdet": "onedl-mmdetection"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] + ".")
    commands = parser.add_subparsers(dest="what", required=True)
    into = argparse.ArgumentParser(add_help=False)
    into.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/benchmarks"),
        help="folder for the JSON, the tables and the plot (default: %(default)s)",
    )
    for name, text in (
        ("ops", "the operators beside F.conv2d, torchvision and, on a CPU, a compiled mmcv"),
        ("detector", "a training step and inference beside mmdet's, where mmcv is compiled"),
    ):
        command = commands.add_parser(name, parents=[into], help=text, description=text)
        command.add_argument("--device", choices=REPEATS, default="cpu")
        command.add_argument("--threads", type=positive, default=2)
        repeats = "default: {cpu} on a CPU, {cuda} on a GPU".format(**REPEATS)
        command.add_argument("--repeats", type=positive, help=repeats)
    text = "what the kernels for the GPU compile to; no GPU is needed"
    commands.add_parser("kernels", parents=[into], help=text, description=text)
    text = "write the page and the plot beside each JSON again, without measuring"
    again = commands.add_parser("report", help=text, description=text)
    again.add_argument("files", nargs="+", type=measured, metavar="FILE")
    args = parser.parse_args()

    if args.what == "report":
        for path, result in args.files:
            write_page(path, result)
        return
    device = getattr(args, "device", None)
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU")
    try:  # before minutes of measuring
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {args.out}: {error.strerror}")
    settings = {}
    if device is not None:
        torch.set_num_threads(args.threads)
        repeats = args.repeats or REPEATS[device]
        settings = dict(device=device, threads=args.threads, repeats=repeats)
    result = dict(
        benchmark=args.what,
        command=shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]]),
        date=datetime.date.today().isoformat(),
        machine=measure.machine(),
        versions=versions(),
        settings=settings,
    )
    if args.what == "ops":
        result["sections"] = ops.run(**settings)
    elif args.what == "detector":
        from tools.benchmarks import detector  # needs mmdet, which the operators do not

        image = "{}×{}".format(*detector.SIZES[device])
        settings |= dict(batch=detector.BATCH, image=image, dtype=detector.DTYPES[device])
        result["sections"] = detector.run(device, repeats)
    else:
        from tools.benchmarks import kernels  # needs Triton

        result["sections"] = {"kernels": kernels.run()}
    path = args.out / f"{'_'.join(filter(None, (args.what, device)))}.json"
    # Eight digits are more than any clock here resolves.
    rounded = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.8g}"))
    path.write_text(lines(rounded, depth=3) + "\n")
    write_page(path, rounded)


def write_page(path: Path, result: dict) -> None:
    text = report.page(result)
    path.with_suffix(".md").write_text(text)
    print(f"\n{text}\nWritten to {path.with_suffix('.md')}")
    if result["benchmark"] != "ops" or result["settings"]["device"] != "cpu":
        return
    if importlib.util.find_spec("matplotlib") is None:
        print("No plot: matplotlib is not installed")
    else:
        report.ops_plot(result, path.with_suffix(".png"))


def lines(value: object, depth: int) -> str:
    """JSON with a line for each item, down to that depth; what is deeper shares its line."""
    if depth == 0 or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[\n" + ",\n".join(lines(item, depth - 1) for item in value) + "\n]"
    items = (f"{json.dumps(key)}: {lines(item, depth - 1)}" for key, item in value.items())
    return "{\n" + ",\n".join(items) + "\n}"


def measured(text: str) -> tuple[Path, dict]:
    """The JSON that a benchmark wrote."""
    try:
        result = json.loads(Path(text).read_text())
        return Path(text), result | {"benchmark": result["benchmark"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text}: not what a benchmark wrote ({error})") from None


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def versions() -> dict[str, str]:
    """Of the packages that take part, as far as they are installed."""
    found = {}
    for name in ("torch", "triton", "torchvision", "mmcv", "mmdet"):
        try:
            found[name] = importlib.metadata.version(PACKAGES.get(name, name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
