"""The Markdown pages and the plot of what has been measured."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product
from math import isnan, nan
from pathlib import Path

REGULAR = "F.conv2d"
FORMATS = (f"{REGULAR} (NCHW)", f"{REGULAR} (NHWC)")
KINDS = ("forward", "both")
DETECTOR = "dcn, mdconv c3–c5"  # that others are compared with
OPERATORS = {
    "convolution": "deform_conv2d, modulated, 3×3",
    "variants": "deform_conv2d with other settings",
    "narrow": "deform_conv2d, modulated, 3×3, 32 groups of 4, 8 and 16 channels",
    "depthwise": "deform_conv2d, modulated, 3×3, depthwise",
    "aggregation": "dcnv3 and dcnv4, 3×3, 16 channels per group",
    "deform_kernel": "local_deform_kernel, depthwise, 3×3 of 4×4",
    "network": "InternImage-T, forward",
    "classifier": "a CNN of four layers, the last three modulated (dcn)",
    "pooling": "deform_roi_pool, 7×7 bins",
}
SKIPPED = "{} skipped: they need mmcv's operators (`./scripts/setup.sh --mmcv-ops`)."
Figures = partial(defaultdict, lambda: nan)  # what has not been measured is not a number
# In the order of the plot's bars.
COLOURS = {REGULAR: "#9aa0a6", "dcn": "#1a73e8", "reference": "#8ab4f8"}
COLOURS |= {"torchvision": "#dadce0", "mmcv": "#dadce0"}


def page(result: dict) -> str:
    """The Markdown page of any benchmark's result."""
    bodies = {
        "ops": _ops,
        "family": _ops,
        "detector": _detector,
        "export": _export,
        "kernels": _kernels,
    }
    return "\n\n".join(bodies[result["benchmark"]](result)) + "\n"


def table(columns: dict[str, str], rows: Iterable[dict]) -> str:
    """`columns` maps each title to a format of a row; a column without any figure is left out."""
    rows = [Figures(row) for row in rows]
    filled = [
        [title, *(form.format_map(row).replace("nan", "–") for row in rows)]
        for title, form in columns.items()
    ]
    filled = [cells for cells in filled if set(cells[1:]) - {"–", "– / –"}]
    head, *lines = (f"| {' | '.join(cells)} |" for cells in zip(*filled, strict=True))
    return "\n".join([head, "|---" * len(filled) + "|", *lines])


def _measured(result: dict) -> str:
    settings, machine = result["settings"], result["machine"]
    gpu = "{gpu}, driver {driver}, CUDA {cuda}; " if settings["device"] == "cuda" else ""
    place = (gpu + "{cpu}, {vectors} (dcn: {dcn_vectors})").format(**machine)
    return (
        f"Measured by `{result['command']}` on {result['date']}.\n"
        f"Machine: {place}, {settings['threads']} threads.\n"
        f"{_versions(result)}. {settings['repeats']} repeats, seed 0."
    )


def _versions(result: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items())


def _ops(result: dict) -> Iterator[str]:
    sections, threads = result["sections"], result["settings"]["threads"]
    gpu, rates = result["settings"]["device"] == "cuda", sections.get("rates")
    what = "The rest of the family" if result["benchmark"] == "family" else "Operators"
    yield f"# {what} on a {'GPU' if gpu else 'CPU'}"
    yield _measured(result)
    yield (
        "Times are medians in ms, forward / forward + backward.\n"
        "[README.md](README.md) explains how they are measured and what the columns mean."
    )
    first = next(rows for name, rows in sections.items() if name in OPERATORS)[0]
    if not gpu and "mmcv" not in first["results"]:
        yield SKIPPED.format("mmcv's rows were")
    if rates:
        of_types = rates["operations_per_s"].items()
        products = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {dtype}" for dtype, rate in of_types)
        copied = f"{rates['bytes_per_s'] / 1e9:.0f} GB/s"
        yield f"At best, this machine copies {copied} and multiplies matrices at {products}."
    groups = {
        f"{title}, {dtype}": [row for row in sections[name] if row["dtype"] == dtype]
        for name, title in OPERATORS.items()
        for dtype in dict.fromkeys(row["dtype"] for row in sections.get(name, []))
    }
    yield "## Time relative to dcn"
    yield "The lowest and the highest ratio of the cases below; 2 is twice as long as dcn."
    columns = {"": "{name}", "forward": "{forward}", "forward + backward": "{both}"}
    yield table(columns, _relative(groups))
    for title, rows in groups.items():
        yield f"## {title}"
        yield f"Medians of {rows[0]['repeats']}."
        yield from _figures(rows, rates)
    if sections.get("threads"):
        yield "## Threads"
        columns = {
            "": "{case}",
            "1 thread": "{forward_ms_one:.1f} / {both_ms_one:.1f}",
            f"{threads} threads": "{forward_ms_many:.1f} / {both_ms_many:.1f}",
            "times as fast": "{forward:.2f} / {both:.2f}",
        }
        for row, kind in product(sections["threads"], KINDS):
            row[kind] = row[f"{kind}_ms_one"] / row[f"{kind}_ms_many"]
        yield table(columns, sections["threads"])
    if "memory" in sections:
        yield "## Extra memory on a large image"
        yield (
            "The kernels work on channels-last tensors. A contiguous image is converted as a\n"
            "whole; the gradient of a bfloat16 image is summed in float32, also as a whole."
        )
        columns = {
            "": "{shape}, {implementation}",
            "image, MB": "{image_mb:.0f}",
            "extra memory, MB": "{forward_mb:.1f} / {both_mb:.1f}",
        }
        yield table(columns, sections["memory"])


def _relative(groups: dict[str, list[dict]]) -> Iterator[dict]:
    for title, rows in groups.items():
        everything = [_one_regular(row["results"]) for row in rows]
        for name in (name for name in everything[0] if name != "dcn"):
            line = {"name": f"{title}: {name}"}
            for kind in KINDS:
                ratios = (r[name][f"{kind}_ms"] / r["dcn"][f"{kind}_ms"] for r in everything)
                if known := [ratio for ratio in ratios if not isnan(ratio)]:
                    line[kind] = f"{min(known):.2f} – {max(known):.2f}"
            yield line


def _one_regular(results: dict[str, dict]) -> dict[str, dict]:
    """`F.conv2d` once, for each figure in the faster of its formats."""
    results = {name: Figures(values) for name, values in results.items()}
    if FORMATS[0] not in results:
        return results
    first, second = (results.pop(name) for name in FORMATS)
    regular = {f"{k}_ms": min(first[f"{k}_ms"], second[f"{k}_ms"]) for k in KINDS}
    return {REGULAR: Figures(regular)} | results


def _figures(rows: list[dict], rates: dict | None) -> Iterator[str]:
    """A line per case and implementation, and below them the errors."""
    columns = {
        "": "{case}",
        "implementation": "{name}",
        "ms": "{ms}",
        "÷ dcn": "{forward_ratio:.2f} / {both_ratio:.2f}",
        "floor, ms": "{forward_floor:.3f} / {both_floor:.3f}",
        "host, µs": "{forward_host_us:.0f} / {both_host_us:.0f}",
        "extra memory, MB": "{forward_mb:.1f} / {both_mb:.1f}",
        "difference": "{difference:.1e}",
    }
    lines, errors = [], []
    for row in rows:
        case = f"{row['case']}, {row['shape']}"
        for i, (name, values) in enumerate(row["results"].items()):
            errors += [f"- {name}, {case}, {k}: {values[k]}" for k in values if "error" in k]
            label = ", ".join(filter(None, (name, values.get("dtype"))))
            if max(values.get(f"{kind}_late", 0) for kind in KINDS) > 0.5:
                label += " (the host's time included)"
            line = values | {"case": "" if i else case, "name": label, "ms": _ms(values)}
            for kind in KINDS:
                key = f"{kind}_ms"
                line[f"{kind}_ratio"] = values.get(key, nan) / row["results"]["dcn"].get(key, nan)
                if rates and f"{kind}_bytes" in values:
                    line[f"{kind}_floor"] = floor_ms(values, kind, row["dtype"], rates)
            lines.append(line)
    yield table(columns, lines)
    if errors:
        yield "\n".join(errors)


def floor_ms(values: dict, kind: str, dtype: str, rates: dict) -> float:
    """The longer of moving every tensor once and of multiplying, at the GPU's best rates."""
    moving = values[f"{kind}_bytes"] / rates["bytes_per_s"]
    rate = rates["operations_per_s"][values.get("dtype", dtype)]
    return max(moving, values[f"{kind}_operations"] / rate) * 1e3


def _ms(values: dict) -> str:
    """To three digits or four."""
    forward, both = (values.get(f"{k}_ms", nan) for k in KINDS)
    digits = 0 if forward >= 100 else 1 if forward >= 1 else 3
    return f"{forward:.{digits}f} / {both:.{digits}f}"


def _detector(result: dict) -> Iterator[str]:
    settings, sections = result["settings"], result["sections"]
    yield f"# Detector on a {'GPU' if settings['device'] == 'cuda' else 'CPU'}"
    yield _measured(result)
    yield (
        "A training step (forward, backward, SGD) and inference of Faster R-CNN R-50-FPN,\n"
        "here and in mmdet with the same weights. Times are medians; detectors here run\n"
        f"channels-last. The input is {settings['batch']} images of {settings['image']}, "
        f"{settings['dtype']}."
    )
    columns = {
        "": "{model}",
        "training step, s": "{train_s:.3g}",
        "inference, s": "{inference_s:.3g}",
        f"÷ {DETECTOR}": "{train_ratio:.2f} / {inference_ratio:.2f}",
        "extra memory of training step, MB": "{train_mb:.0f}",
        "extra memory of inference, MB": "{inference_mb:.0f}",
    }
    rows = {row["model"]: Figures(row) for row in sections["models"]}
    for row, kind in product(rows.values(), ("train", "inference")):
        row[f"{kind}_s"] = row[f"{kind}_ms"] / 1e3
        row[f"{kind}_ratio"] = row[f"{kind}_ms"] / rows[DETECTOR][f"{kind}_ms"]
    yield table(columns, rows.values())
    if errors := [f"- {n}, {k}: {row[k]}" for n, row in rows.items() for k in row if "error" in k]:
        yield "\n".join(errors)
    if not any(name.startswith("mmdet") for name in rows):
        yield SKIPPED.format("mmdet's detectors were")
    if sections["loss_difference"] is not None:
        share = f"{sections['loss_difference']:.1e} of their value"
        yield f"With the same images and random numbers, the losses differ by at most {share}."
    if f"{DETECTOR}, offsets measured" in rows:
        yield "Offsets are measured in one step in 50 by default."


def _export(result: dict) -> Iterator[str]:
    yield "# Exported detectors on a CPU"
    yield _measured(result)
    yield (
        "Inference of Faster R-CNN R-50-FPN, mdconv c3–c5, on one image, from uint8 pixels to\n"
        "detections, with the same random weights. Times are medians. `match` counts the\n"
        "detections that are those of `dcn, eager`; boxes (pixels) and scores differ by at most\n"
        "so much."
    )
    for case in result["sections"]["cases"]:
        yield f"## {case['size']}"
        own = Figures(case["rows"][0])
        columns = {
            "": "{runtime}",
            "ms": "{ms:.0f}",
            f"÷ {own['runtime']}": "{ratio:.2f}",
            "extra memory, MB": "{mb:.0f}",
            "match": "{matched} of {found}",
            "boxes": "{boxes:.1e}",
            "scores": "{scores:.1e}",
        }
        rows = [Figures(row) for row in case["rows"]]
        for row in rows:
            row["ratio"] = row["ms"] / own["ms"]
        yield table(columns, rows)
        if errors := [f"- {row['runtime']}: {row['error']}" for row in rows if "error" in row]:
            yield "\n".join(errors)
    if not any(row["runtime"].startswith("mmdet") for row in case["rows"]):
        yield SKIPPED.format("mmdet's detector was")


def _kernels(result: dict) -> Iterator[str]:
    yield "# Kernels for the GPU, compiled"
    made = f"Compiled by `{result['command']}` on {result['date']}, without a GPU."
    yield f"{made}\n{_versions(result)}."
    yield (
        "In each cell the first figure is for compute capability 8.0 (A100), the second for 9.0\n"
        "(H100, H200). [README.md](README.md) explains the columns."
    )
    columns = {
        "": "{kernel}",
        "tile": "{tile}",
        "warps, stages": "{warps}, {stages}",
        "registers": "{a100[registers]} / {h100[registers]}",
        "shared, KB": "{a100[shared_kb]:.0f} / {h100[shared_kb]:.0f}",
        "programs": "{a100[programs]} / {h100[programs]}",
        "tensor cores": "{a100[tensor_cores]} / {h100[tensor_cores]}",
        "16-byte loads": "{a100[wide_loads]} / {h100[wide_loads]}",
    }
    of_type = defaultdict(list)
    for row in result["sections"]["kernels"]:
        cells = {"tensor_cores": row["tensor_cores"] or "none"}
        if row["spilled"]:
            cells["registers"] = f"{row['registers']} ({row['spilled']})"
        of_type[row["type"]].append(row | cells)
    for name, rows in of_type.items():
        yield f"## {name}"
        pairs = zip(rows[::2], rows[1::2], strict=True)
        yield table(columns, (a100 | {"a100": a100, "h100": h100} for a100, h100 in pairs))


def ops_plot(result: dict, path: Path) -> None:
    """Bars of forward + backward, on a logarithmic axis."""
    from matplotlib.figure import Figure

    sections = result["sections"]
    panels = {f"deform_conv2d\n{r['shape']}": r["results"] for r in sections["convolution"]}
    panels[f"RoIAlign\n{sections['pooling'][0]['shape']}"] = sections["pooling"][0]["results"]
    figure = Figure(figsize=(12, 2.9))
    axes = figure.subplots(1, len(panels))
    for axis, (title, results) in zip(axes, panels.items(), strict=True):
        results = _one_regular(results)
        bars = {name: results[name]["both_ms"] for name in COLOURS if name in results}
        names = [name.replace("reference", "dcn, plain PyTorch") for name in bars]
        drawn = axis.barh(names, bars.values(), color=[COLOURS[name] for name in bars])
        axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=9)
        axis.set(xscale="log", xlim=(5, max(bars.values()) * 4))
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=9)
        axis.xaxis.set_visible(False)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    threads = result["settings"]["threads"]
    title = f"Forward + backward in ms, {threads} threads, float32 (logarithmic; shorter is faster)"
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
