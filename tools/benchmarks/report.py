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


def page(result: dict) -> str:
    """The Markdown page of any benchmark's result."""
    body = {"ops": _ops, "detector": _detector, "kernels": _kernels}[result["benchmark"]]
    return "\n".join(body(result)).rstrip() + "\n"


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    columns = list(columns)
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return ["", lines[0], "|---" * len(columns) + "|", *lines[1:], ""]


def _measured(result: dict) -> list[str]:
    settings, machine = result["settings"], result["machine"]
    place = f"{machine['cpu']}, {machine['vectors']} (dcn: {machine['dcn_vectors']})"
    if settings["device"] == "cuda":
        place = f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}; {place}"
    return [
        f"Measured by `{result['command']}` on {result['date']}.",
        f"Machine: {place}, {settings['threads']} threads. {_versions(result)}. "
        f"{settings['repeats']} repeats, seed 0.",
        "",
    ]


def _versions(result: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items())


def _ops(result: dict) -> Iterator[str]:
    sections, threads = result["sections"], result["settings"]["threads"]
    gpu = result["settings"]["device"] == "cuda"
    yield from (f"# Operators on a {'GPU' if gpu else 'CPU'}", "", *_measured(result))
    yield "Times are medians in ms, forward / forward + backward. [README.md](README.md)"
    yield "explains how they are measured and what the columns mean."
    if not gpu and "mmcv" not in sections["pooling"][0]["results"]:
        yield from ("", SKIPPED.format("mmcv's column was"))

    yield from (
        "",
        "## Time relative to dcn",
        "",
        "Over all cases below; 2 is twice as long as dcn.",
    )
    yield from table(("", "forward", "forward + backward"), _relative(sections))
    if gpu:
        rates = sections["rates"]["operations_per_s"]
        cells = [f"{rate / 1e12:.0f}" for rate in rates.values()]
        yield "## What this GPU does at best"
        yield from table(
            ("copy, GB/s", *(f"{dtype}, TFLOP/s" for dtype in rates)),
            [[f"{sections['rates']['bytes_per_s'] / 1e9:.0f}", *cells]],
        )
    for section, dtype, rows in _groups(sections):
        yield f"## {OPERATORS[section]}, {dtype}"
        if not gpu:
            yield from ("", f"Medians of {rows[0]['repeats']}.")
        if gpu or section == "pooling":
            yield from _long_table(rows, sections.get("rates"))
        else:
            yield from _conv_table(rows)
        if not gpu:
            yield from _accuracy_table(rows)
    if gpu:
        return

    if sections["threads"]:
        yield "## Threads"
        rows = ((row["case"], *_threads(row)) for row in sections["threads"])
        yield from table(("", "1 thread", f"{threads} threads", "times as fast"), rows)
    yield from ("## Extra memory on a large image", "")
    yield "The kernels work on channels-last tensors. A contiguous image is converted as a"
    yield "whole; the gradient of a bfloat16 image is summed in float32, also as a whole."
    names = ("shape", "implementation")
    yield from table(
        ("", "image, MB", "extra memory, MB"),
        (
            [", ".join(row[n] for n in names), f"{row['image_mb']:.0f}", _pair(_both(row, "mb"), 1)]
            for row in sections["memory"]
        ),
    )


def _groups(sections: dict) -> Iterator[tuple[str, str, list[dict]]]:
    """(section, dtype, rows)."""
    for section in OPERATORS:
        for dtype in dict.fromkeys(row["dtype"] for row in sections.get(section, [])):
            yield section, dtype, [row for row in sections[section] if row["dtype"] == dtype]


def _relative(sections: dict) -> Iterator[list[str]]:
    for section, dtype, rows in _groups(sections):
        everything = [_one_regular(row["results"]) for row in rows]
        for name in (name for name in everything[0] if name != "dcn"):
            ratios = [_ratios(results[name], results["dcn"]) for results in everything]
            spans = (_span(values, 2) for values in zip(*ratios, strict=True))
            yield [f"{OPERATORS[section]}, {dtype}: {name}", *spans]


def _one_regular(results: dict) -> dict:
    """`F.conv2d` once, for each figure in the faster of its formats."""
    if FORMATS[0] not in results:
        return results
    regular = {
        f"{k}_ms": min(_both(results[f], "ms")[i] for f in FORMATS) for i, k in enumerate(KINDS)
    }
    return {REGULAR: regular} | {n: v for n, v in results.items() if n not in FORMATS}


def _conv_table(rows: list[dict]) -> list[str]:
    """A line per case."""
    others = [name for name in rows[0]["results"] if name not in (*FORMATS, "dcn")]
    columns = ["", f"`{REGULAR}`", "dcn", f"dcn ÷ `{REGULAR}`"]
    lines = []
    for row in rows:
        results = _one_regular(row["results"])
        own, regular = results["dcn"], results[REGULAR]
        line = [f"{row['case']}, {row['shape']}", _ms(regular), f"**{_ms(own)}**"]
        line.append(_pair(_ratios(own, regular), 2))
        for name in others:
            line += [_ms(results[name]), _pair(_ratios(results[name], own), 2)]
        lines.append(line)
    return table(columns + [title for name in others for title in (name, "÷ dcn")], lines)


def _long_table(rows: list[dict], rates: dict | None) -> list[str]:
    """A line per case and implementation; with all of its figures, where there are rates of a GPU.

    Errors stand below the table.
    """
    columns, lines, errors = ["", "implementation", "ms", "÷ dcn"], [], []
    if rates:
        columns += ["floor, ms", "host, µs", "extra memory, MB", "difference"]
    for row in rows:
        for name, values in row["results"].items():
            case = f"{row['shape']}, {row['case']}"
            errors += [f"- {name}, {case}, {k}: {values[k]}" for k in values if "error" in k]
            label = f"{name}, {values['dtype']}" if "dtype" in values else name
            if max(_both(values, "late", 0)) > 0.5:
                label += " (the host's time included)"
            line = [case, label, _ms(values), _pair(_ratios(values, row["results"]["dcn"]), 2)]
            if rates:
                line.append(_pair([floor_ms(values, k, row["dtype"], rates) for k in KINDS], 3))
                line += [_pair(_both(values, "host_us"), 0), _pair(_both(values, "mb"), 1)]
                line.append(_cell(values.get("difference", nan), ".1e"))
            lines.append(line)
    return [*table(columns, lines), *errors]


def floor_ms(values: dict, kind: str, dtype: str, rates: dict) -> float:
    """The longer of moving every tensor once and of multiplying, at the GPU's best rates."""
    moving = values[f"{kind}_bytes"] / rates["bytes_per_s"]
    rate = rates["operations_per_s"][values.get("dtype", dtype)]
    return max(moving, values[f"{kind}_operations"] / rate) * 1e3


def _accuracy_table(rows: list[dict]) -> list[str]:
    """A line per implementation, over all cases."""
    lines = []
    for name in rows[0]["results"]:
        results = [row["results"][name] for row in rows]
        differences = [r["difference"] for r in results if "difference" in r]
        memory = zip(*(_both(r, "mb") for r in results), strict=True)
        difference = f"{max(differences):.1e}" if differences else "another function"
        lines.append([name, difference, *(_span(values, 1) for values in memory)])
    columns = ("", "largest difference from float64", "extra memory, MB", "with backward")
    return table(columns, lines)


def _threads(row: dict) -> list[str]:
    one, many = ([row[f"{kind}_ms_{count}"] for kind in KINDS] for count in ("one", "many"))
    return [_pair(one, 1), _pair(many, 1), _pair([one[i] / many[i] for i in range(2)], 2)]


def _detector(result: dict) -> Iterator[str]:
    settings, sections = result["settings"], result["sections"]
    rows = {row["model"]: row for row in sections["models"]}

    def times(a: str, b: str, kind: str = "train") -> str:
        """As long."""
        ms = (rows[name].get(f"{kind}_ms", nan) for name in (a, b))
        return _cell(next(ms) / next(ms), ".2f")

    yield from (f"# Detector on a {'GPU' if settings['device'] == 'cuda' else 'CPU'}", "")
    yield from _measured(result)
    yield "A training step (forward, backward, SGD) and inference of Faster R-CNN R-50-FPN,"
    yield "here and in"
    yield "mmdet with the same weights. Medians in seconds; detectors here run channels-last."
    yield f"The input is {settings['batch']} images of {settings['image']}, {settings['dtype']}."
    kinds = {"train": "training step", "inference": "inference"}
    used = [k for k in kinds if any(f"{k}_mb" in row for row in rows.values())]
    yield from table(
        ["", *(f"{title}, s" for title in kinds.values())]
        + [f"extra memory of {kinds[k]}, MB" for k in used],
        (
            [name, *(_cell(row.get(f"{k}_ms", nan) / 1e3, ".3g") for k in kinds)]
            + [_cell(row.get(f"{k}_mb", nan), ".0f") for k in used]
            for name, row in rows.items()
        ),
    )
    yield from (f"- {n}, {k}: {row[k]}" for n, row in rows.items() for k in row if "error" in k)
    own, theirs, regular = "dcn, mdconv c3–c5", "mmdet, mdconv c3–c5", "mmdet, regular"
    yield f"A training step with mdconv takes {times(own, 'dcn, regular')} times as long as"
    yield "without."
    if theirs in rows:
        yield f"mmdet's with mdconv takes {times(theirs, own)} times as long as ours with"
        yield "mdconv, and"
        yield f"mmdet's regular one {times(regular, own)} times. mmdet's inference with mdconv"
        yield f"takes {times(theirs, own, 'inference')} times as long as ours."
    else:
        yield from ("", SKIPPED.format("mmdet's detectors were"))
    if sections["loss_difference"] is not None:
        yield "With the same images and random numbers, the losses differ by at most"
        yield f"{sections['loss_difference']:.1e} of their value."
    if (watched := f"{own}, offsets measured") in rows:
        yield f"A step that measures offsets, by default one in 50, takes {times(watched, own)}"
        yield "times as long."


def _kernels(result: dict) -> Iterator[str]:
    yield from ("# Kernels for the GPU, compiled", "")
    yield f"Compiled by `{result['command']}` on {result['date']}, without a GPU."
    yield from (f"{_versions(result)}.", "")
    yield "In each cell the first figure is for compute capability 8.0 (A100), the second for 9.0"
    yield "(H100, H200). [README.md](README.md) explains the columns."
    yield ""
    columns = ("", "tile", "warps, stages", "registers", "shared, KB", "programs")
    columns += ("tensor cores", "16-byte loads")
    rows = result["sections"]["kernels"]
    for name in dict.fromkeys(row["type"] for row in rows):
        of_type = [row for row in rows if row["type"] == name]
        pairs = zip(of_type[::2], of_type[1::2], strict=True)
        yield from (f"## {name}", *table(columns, map(_kernel_cells, pairs)))


def _kernel_cells(pair: tuple[dict, dict]) -> list[str]:
    def cell(form: str) -> str:
        return " / ".join(form.format(**row) for row in pair)

    registers = ("{registers} ({spilled})" if row["spilled"] else "{registers}" for row in pair)
    return [
        pair[0]["kernel"],
        pair[0]["tile"],
        "{warps}, {stages}".format(**pair[0]),
        " / ".join(form.format(**row) for form, row in zip(registers, pair, strict=True)),
        cell("{shared_kb:.0f}"),
        cell("{programs}"),
        " / ".join(row["tensor_cores"] or "none" for row in pair),
        cell("{wide_loads}"),
    ]


def _both(values: dict, what: str, missing: float = nan) -> list[float]:
    """Forward, and forward + backward; not a number where one failed."""
    return [values.get(f"{kind}_{what}", missing) for kind in KINDS]


def _ratios(values: dict, over: dict) -> list[float]:
    return [a / b for a, b in zip(_both(values, "ms"), _both(over, "ms"), strict=True)]


def _cell(value: float, form: str) -> str:
    return "–" if isnan(value) else f"{value:{form}}"


def _pair(values: list[float], digits: int) -> str:
    return " / ".join(_cell(value, f".{digits}f") for value in values)


def _ms(values: dict) -> str:
    """To three digits or four."""
    ms = _both(values, "ms")
    return _pair(ms, 0 if ms[0] >= 100 else 1 if ms[0] >= 1 else 3)


def _span(values: Iterable[float], digits: int) -> str:
    """From the least to the largest, of those that there are."""
    values = [value for value in values if not isnan(value)] or [nan]
    return " – ".join(_cell(value, f".{digits}f") for value in (min(values), max(values)))


def ops_plot(result: dict, path: Path) -> None:
    """Bars of forward + backward, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sections = result["sections"]
    panels = [
        *((f"deform_conv2d\n{row['shape']}", row["results"]) for row in sections["convolution"]),
        (f"RoIAlign\n{sections['pooling'][0]['shape']}", sections["pooling"][0]["results"]),
    ]
    colours = {REGULAR: "#9aa0a6", "dcn": "#1a73e8", "reference": "#8ab4f8"}
    names = (REGULAR, "dcn", "reference", "torchvision", "mmcv")
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 2.9))
    for axis, (title, results) in zip(axes, panels, strict=True):
        results = _one_regular(results)
        bars = {name: results[name]["both_ms"] for name in names if name in results}
        drawn = axis.barh(
            [{"reference": "dcn, plain PyTorch"}.get(name, name) for name in bars],
            list(bars.values()),
            color=[colours.get(name, "#dadce0") for name in bars],
        )
        axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=9)
        axis.set(xscale="log", xlim=(5, max(bars.values()) * 4))
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=9)
        axis.xaxis.set_visible(False)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle(
        f"Forward + backward in ms, {result['settings']['threads']} threads, float32 "
        "(logarithmic; shorter is faster)",
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
