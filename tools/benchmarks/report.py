"""The Markdown pages and the plot of what has been measured."""

from collections.abc import Iterable, Iterator
from math import isnan, nan
from pathlib import Path

REGULAR = "F.conv2d"
FORMATS = (f"{REGULAR} (NCHW)", f"{REGULAR} (NHWC)")
KINDS = ("forward", "both")
OPERATORS = {
    "convolution": "deform_conv2d, modulated, 3×3",
    "variants": "deform_conv2d with other settings",
    "pooling": "deform_roi_pool, 7×7 bins",
}
SKIPPED = (
    "{} skipped, because mmcv's operators are not compiled. "
    "`./scripts/setup.sh --mmcv-ops` compiles them."
)
EXPLAINED = "[README.md](README.md) explains how they are measured and what the columns mean."


class Figures(dict):
    """What has not been measured is not a number."""

    def __missing__(self, key: str) -> float:
        return nan


def page(result: dict) -> str:
    """The Markdown page of any benchmark's result."""
    body = {"ops": _ops, "detector": _detector, "kernels": _kernels}[result["benchmark"]]
    return "\n\n".join(body(result)) + "\n"


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
    rates = sections.get("rates")
    yield f"# Operators on a {'GPU' if rates else 'CPU'}"
    yield _measured(result)
    yield f"Times are medians in ms, forward / forward + backward.\n{EXPLAINED}"
    if not rates and "mmcv" not in sections["pooling"][0]["results"]:
        yield SKIPPED.format("mmcv's rows were")
    if rates:
        products = (
            f"{rate / 1e12:.0f} TFLOP/s in {dtype}"
            for dtype, rate in rates["operations_per_s"].items()
        )
        yield (
            f"At best, this GPU copies {rates['bytes_per_s'] / 1e9:.0f} GB/s and multiplies "
            f"matrices at {', '.join(products)}."
        )
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
        rows = sections["threads"]
        yield table(
            columns, (r | {k: r[f"{k}_ms_one"] / r[f"{k}_ms_many"] for k in KINDS} for r in rows)
        )
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
            ratios = zip(*(_ratios(r[name], r["dcn"]) for r in everything), strict=True)
            yield {"name": f"{title}: {name}"} | dict(zip(KINDS, map(_span, ratios), strict=True))


def _one_regular(results: dict) -> dict:
    """`F.conv2d` once, for each figure in the faster of its formats."""
    if FORMATS[0] not in results:
        return results
    regular = {f"{k}_ms": min(results[f].get(f"{k}_ms", nan) for f in FORMATS) for k in KINDS}
    return {REGULAR: regular} | {n: v for n, v in results.items() if n not in FORMATS}


def _figures(rows: list[dict], rates: dict | None) -> Iterator[str]:
    """A line per case and implementation, and below them the errors."""
    columns = {
        "": "{case}",
        "implementation": "{name}",
        "ms": "{ms}",
        "÷ dcn": "{ratios[0]:.2f} / {ratios[1]:.2f}",
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
            line = {"ms": _ms(values), "ratios": _ratios(values, row["results"]["dcn"])}
            if rates:
                line |= {f"{k}_floor": floor_ms(values, k, row["dtype"], rates) for k in KINDS}
            lines.append(values | line | {"case": "" if i else case, "name": label})
    yield table(columns, lines)
    if errors:
        yield "\n".join(errors)


def floor_ms(values: dict, kind: str, dtype: str, rates: dict) -> float:
    """The longer of moving every tensor once and of multiplying, at the GPU's best rates."""
    moving = values[f"{kind}_bytes"] / rates["bytes_per_s"]
    rate = rates["operations_per_s"][values.get("dtype", dtype)]
    return max(moving, values[f"{kind}_operations"] / rate) * 1e3


def _ratios(values: dict, over: dict) -> list[float]:
    return [values.get(f"{k}_ms", nan) / over.get(f"{k}_ms", nan) for k in KINDS]


def _ms(values: dict) -> str:
    """To three digits or four."""
    forward, both = (values.get(f"{k}_ms", nan) for k in KINDS)
    digits = 0 if forward >= 100 else 1 if forward >= 1 else 3
    return f"{forward:.{digits}f} / {both:.{digits}f}"


def _span(values: Iterable[float]) -> str:
    """From the least to the largest, of those that there are."""
    values = [value for value in values if not isnan(value)]
    return f"{min(values):.2f} – {max(values):.2f}" if values else "–"


def _detector(result: dict) -> Iterator[str]:
    settings, sections = result["settings"], result["sections"]
    rows = {row["model"]: Figures(row) for row in sections["models"]}

    def times(a: str, b: str, kind: str = "train") -> str:
        return f"{rows[a][f'{kind}_ms'] / rows[b][f'{kind}_ms']:.2f} times"

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
        "extra memory of training step, MB": "{train_mb:.0f}",
        "extra memory of inference, MB": "{inference_mb:.0f}",
    }
    kinds = ("train", "inference")
    yield table(columns, (r | {f"{k}_s": r[f"{k}_ms"] / 1e3 for k in kinds} for r in rows.values()))
    if errors := [f"- {n}, {k}: {row[k]}" for n, row in rows.items() for k in row if "error" in k]:
        yield "\n".join(errors)
    own, theirs = "dcn, mdconv c3–c5", "mmdet, mdconv c3–c5"
    lines = [f"With mdconv, a training step takes {times(own, 'dcn, regular')} as long as without."]
    if theirs in rows:
        lines += [
            f"In mmdet, it takes {times(theirs, own)} as long as here, and inference "
            f"{times(theirs, own, 'inference')}.",
            f"A step of mmdet's regular network takes {times('mmdet, regular', own)} as long as "
            "one with mdconv here.",
        ]
    else:
        lines.append(SKIPPED.format("mmdet's detectors were"))
    if sections["loss_difference"] is not None:
        lines.append(
            "With the same images and random numbers, the losses differ by at most "
            f"{sections['loss_difference']:.1e} of their value."
        )
    if (watched := f"{own}, offsets measured") in rows:
        lines.append(
            "A step that measures offsets, by default one in 50, takes "
            f"{times(watched, own)} as long as one that does not."
        )
    yield "\n".join(lines)


def _kernels(result: dict) -> Iterator[str]:
    yield "# Kernels for the GPU, compiled"
    yield (
        f"Compiled by `{result['command']}` on {result['date']}, without a GPU.\n"
        f"{_versions(result)}."
    )
    yield (
        "In each cell the first figure is for compute capability 8.0 (A100), the second for 9.0\n"
        "(H100, H200). [README.md](README.md) explains the columns."
    )
    columns = {
        "": "{kernel}",
        "tile": "{tile}",
        "warps, stages": "{warps}, {stages}",
        "registers": "{registers}",
        "shared, KB": "{shared_kb}",
        "programs": "{programs}",
        "tensor cores": "{tensor_cores}",
        "16-byte loads": "{wide_loads}",
    }
    rows = result["sections"]["kernels"]
    for name in dict.fromkeys(row["type"] for row in rows):
        of_type = [row for row in rows if row["type"] == name]
        yield f"## {name}"
        yield table(columns, map(_one_line, of_type[::2], of_type[1::2]))


def _one_line(*rows: dict) -> dict:
    """Of a kernel on both GPUs."""
    cells = [
        {
            "registers": str(row["registers"]) + (f" ({row['spilled']})" if row["spilled"] else ""),
            "shared_kb": f"{row['shared_kb']:.0f}",
            "programs": str(row["programs"]),
            "tensor_cores": row["tensor_cores"] or "none",
            "wide_loads": str(row["wide_loads"]),
        }
        for row in rows
    ]
    return rows[0] | {key: " / ".join(cell[key] for cell in cells) for key in cells[0]}


def ops_plot(result: dict, path: Path) -> None:
    """Bars of forward + backward, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sections = result["sections"]
    panels = {f"deform_conv2d\n{r['shape']}": r["results"] for r in sections["convolution"]}
    panels[f"RoIAlign\n{sections['pooling'][0]['shape']}"] = sections["pooling"][0]["results"]
    colours = {REGULAR: "#9aa0a6", "dcn": "#1a73e8", "reference": "#8ab4f8"}
    names = (REGULAR, "dcn", "reference", "torchvision", "mmcv")
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 2.9))
    for axis, (title, results) in zip(axes, panels.items(), strict=True):
        results = _one_regular(results)
        bars = {name: results[name]["both_ms"] for name in names if name in results}
        drawn = axis.barh(
            [{"reference": "dcn, plain PyTorch"}.get(name, name) for name in bars],
            bars.values(),
            color=[colours.get(name, "#dadce0") for name in bars],
        )
        axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=9)
        axis.set(xscale="log", xlim=(5, max(bars.values()) * 4))
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=9)
        axis.xaxis.set_visible(False)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    threads = result["settings"]["threads"]
    title = "Forward + backward in ms, {} threads, float32 (logarithmic; shorter is faster)"
    figure.suptitle(title.format(threads), fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
