#!/usr/bin/env python
"""Measure operators or detectors: tools/benchmark.py ops|family|detector|export --device cpu|cuda.

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

COMMANDS = {
    "ops": "the operators beside F.conv2d, torchvision and, on a CPU, a compiled mmcv",
    "family": "dcnv3, dcnv4, deformable kernels and narrow groups beside plain PyTorch",
    "detector": "a training step and inference beside mmdet's, where mmcv is compiled",
    "export": "inference of a detector, exported, compiled and eager, on a CPU",
    "kernels": "what the kernels for the GPU compile to; no GPU is needed",
    "report": "write the page and the plot beside each JSON again, without measuring",
}
REPEATS = {"cpu": 7, "cuda": 50}
PACKAGES = ("torch", "triton", "torchvision", "mmcv", "mmdet", "onnxruntime", "openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] + ".")
    commands = parser.add_subparsers(dest="what", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "report":
            command.add_argument("files", nargs="+", type=measured, metavar="FILE")
            continue
        text = "folder for the JSON, the tables and the plot (default: %(default)s)"
        command.add_argument("--out", type=Path, default=Path("work_dirs/benchmarks"), help=text)
        if name != "kernels":
            devices = ["cpu"] if name == "export" else REPEATS
            command.add_argument("--device", choices=devices, default="cpu")
            command.add_argument("--threads", type=measure.positive, default=2)
            repeats = "default: {cpu} on a CPU, {cuda} on a GPU".format(**REPEATS)
            command.add_argument("--repeats", type=measure.positive, help=repeats)
    args = parser.parse_args()

    if args.what == "report":
        for path, result in args.files:
            write_page(path, result)
        return
    name, settings = args.what, {}
    if name != "kernels":
        device, repeats = args.device, args.repeats or REPEATS[args.device]
        if device == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda: PyTorch finds no GPU")
        torch.set_num_threads(args.threads)
        name += f"_{device}"
        settings = dict(device=device, threads=args.threads, repeats=repeats)
    try:  # before minutes of measuring
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {args.out}: {error.strerror}")
    found = importlib.metadata.packages_distributions()
    versions = {n: importlib.metadata.version(found[n][0]) for n in PACKAGES if n in found}
    result = dict(
        benchmark=args.what,
        command=shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]]),
        date=datetime.date.today().isoformat(),
        machine=measure.machine(),
        versions=versions,
        settings=settings,
    )
    if args.what == "ops":
        result["sections"] = ops.run(**settings)
    elif args.what == "family":
        result["sections"] = ops.run_family(**settings)
    elif args.what == "detector":
        from tools.benchmarks import detector  # needs mmdet, which the operators do not

        image = "{}×{}".format(*detector.SIZES[device])
        settings |= dict(batch=detector.BATCH, image=image, dtype=detector.DTYPES[device])
        result["sections"] = detector.run(device, repeats)
    elif args.what == "export":
        from tools.benchmarks import export  # needs the runtimes

        result["sections"] = export.run(device, repeats)
    else:
        from tools.benchmarks import kernels  # needs Triton

        result["sections"] = {"kernels": kernels.run()}
    path = args.out / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_page(path, result)


def write_page(path: Path, result: dict) -> None:
    text = report.page(result)
    path.with_suffix(".md").write_text(text)
    print(f"\n{text}\nWritten to {path.with_suffix('.md')}")
    if result["benchmark"] == "ops" and result["settings"]["device"] == "cpu":
        if importlib.util.find_spec("matplotlib"):
            report.ops_plot(result, path.with_suffix(".png"))
        else:
            print("No plot: matplotlib is not installed")


def measured(text: str) -> tuple[Path, dict]:
    """The JSON that a benchmark wrote."""
    try:
        result = json.loads(Path(text).read_text())
        return Path(text), result | {"benchmark": result["benchmark"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text}: not what a benchmark wrote ({error})") from None


if __name__ == "__main__":
    main()
