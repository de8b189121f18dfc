"""Tables of what has been measured on a GPU; a cell of what has not, or has failed, says so."""

from collections.abc import Callable, Iterable

from .report import bar_lines

NOT_MEASURED = "Not measured: no GPU was at hand."
KINDS = ("forward", "both")
CUDNN = "F.conv2d (NHWC)"

# A float, the name of what failed, or None where nothing was measured.
Figure = float | str | None


def ops_markdown(result: dict) -> str:
    sections = result["sections"]
    rates = sections["rates"]
    return "\n".join(
        [
            "# Operators on a GPU",
            "",
            *_head(result),
            "",
            "Forward / forward + backward. ms: the GPU's time, median; it sleeps until a call is",
            "enqueued, and the call finds nothing in its L2 cache. host: the time until Python has",
            "enqueued a call, which eager code pays where it is the longer one. dcn is given",
            "channels-last tensors, torchvision contiguous ones. float32 is multiplied as TF32 by",
            "all. Extra memory is the peak of what a call allocates beyond what it returns.",
            "Difference is the largest error of output and gradients against float64 on the same",
            "(rounded) inputs, as a share of each tensor's largest value, at batch 1.",
            "",
            "floor: the longer of two times that no implementation can beat by much: to move every",
            "input, output and gradient once between memory and chip, at the rate of a large copy",
            "(what is written may stay in the cache), and to multiply, at the rate of a large",
            "matrix product of the type.",
            "",
            "torchvision has no bfloat16 on GPUs: beside dcn's it is measured in float32.",
            "It has no RoI pooling with offsets and masks either: beside dcn's there stands its",
            "RoIAlign, which has less to do.",
            "",
            "## Against the bars",
            "",
            "The worst of all shapes, batches and types that a line names.",
            "",
            *bar_lines(result["bars"]),
            "",
            "## What this GPU does at best",
            "",
            f"| copy, GB/s | {' | '.join(f'{_typed(t)}, TFLOP/s' for t in _dtypes(sections))} |",
            "|---" * (1 + len(_dtypes(sections))) + "|",
            f"| {' | '.join(_rate_cells(rates, _dtypes(sections)))} |",
            "",
            *_tables("deform_conv2d, modulated, 3×3", sections["convolution"], rates),
            *_tables("deform_roi_pool, 7×7 bins", sections["pooling"], rates),
        ]
    )


def detector_markdown(result: dict) -> str:
    rows = result["sections"]["models"]
    return "\n".join(
        [
            "# Detector on a GPU",
            "",
            *_head(result),
            "",
            "A whole training step (forward, backward, SGD) and inference of Faster R-CNN",
            f"R-50-FPN on {result['settings']['batch']} images of {result['settings']['image']}",
            "under bfloat16 autocast, here and in mmdet with the same weights; medians in ms, the",
            "host's time included. Ours runs channels-last, as all detectors here do, mmdet's as",
            "mmdet runs it. Extra memory is the peak beyond what stays allocated between calls.",
            "",
            "## Against the bars",
            "",
            *bar_lines(result["bars"]),
            "",
            "## Measured",
            "",
            "| | training step | inference | extra memory, MB |",
            "|---|---|---|---|",
            *(_detector_line(row) for row in rows),
            "",
        ]
    )


def ops_bars(sections: dict) -> list[tuple]:
    """(what, ≤ or ≥, bar, goal, the worst that was measured, unit)."""
    conv, pool = sections["convolution"], sections["pooling"]
    bfloat16 = [row for row in conv if row["dtype"] == "bfloat16"]

    def ratios(rows: list[dict], kinds: Iterable[str], what: str, a: str, b: str) -> list[Figure]:
        return [
            over(figure(row["results"][a], kind, what), figure(row["results"][b], kind, what))
            for row in rows
            for kind in kinds
        ]

    def against_cudnn(kind: str) -> Figure:
        return worst(max, ratios(bfloat16, [kind], "ms", "dcn", CUDNN))

    def faster(rows: list[dict]) -> Figure:
        return worst(min, ratios(rows, ["both"], "ms", "torchvision", "dcn"))

    regular = "cuDNN's `F.conv2d`, channels-last, bfloat16"
    return [
        (
            f"deform_conv2d, bfloat16, forward against {regular}",
            *("≤", 2.0, 1.3, against_cudnn("forward"), "×"),
        ),
        (
            f"deform_conv2d, bfloat16, forward + backward against {regular}",
            *("≤", 3.0, 2.0, against_cudnn("both"), "×"),
        ),
        (
            "deform_conv2d, forward + backward, faster than torchvision in the same type "
            "(for bfloat16: in float32 with TF32)",
            *("≥", 3, 8, faster(conv), "×"),
        ),
        (
            "deform_roi_pool, 512 and 1000 RoIs, forward + backward, faster than torchvision's "
            "`roi_align`",
            *("≥", 1.5, 3, faster(pool), "×"),
        ),
        (
            "deform_conv2d, peak extra memory against torchvision (for bfloat16: in float32)",
            *("≤", 0.5, 0.3, worst(max, ratios(conv, KINDS, "mb", "dcn", "torchvision")), "×"),
        ),
    ]


def detector_bars(sections: dict) -> list[tuple]:
    rows = {row["model"]: row for row in sections["models"]}
    deformable, regular = rows["dcn, mdconv c3–c5"], rows["dcn, regular"]
    step = over(figure(deformable, "train", "ms"), figure(regular, "train", "ms"))
    return [
        (
            "Faster R-CNN R-50-FPN mdconv c3–c5 training step, against the regular network",
            *("≤", 1.4, 1.15, step, "×"),
        )
    ]


def figure(values: dict, kind: str, what: str) -> Figure:
    value = values.get(f"{kind}_error", values.get(f"{kind}_{what}"))
    return value.partition(":")[0] if isinstance(value, str) else value


def over(a: Figure, b: Figure) -> Figure:
    """a / b, or why there is none."""
    for value in (a, b):
        if value is None or isinstance(value, str):
            return value
    return a / b if b else None


def worst(pick: Callable, ratios: list[Figure]) -> Figure:
    """Of a failure a bar tells first, and nothing of ratios that are not all there."""
    failed = [ratio for ratio in ratios if isinstance(ratio, str)]
    if failed:
        return failed[0]
    return None if None in ratios else pick(ratios)


def floor_ms(row: dict, kind: str, rates: dict) -> float | None:
    if not rates:
        return None
    moving = row[f"{kind}_bytes"] / rates["bytes_per_s"]
    multiplying = row[f"{kind}_operations"] / rates["operations_per_s"][row["dtype"]]
    return max(moving, multiplying) * 1e3


def _head(result: dict) -> list[str]:
    lines = [f"Written by `{result['command']}` on {result['date']}."]
    if "note" in result:
        return [*lines, result["note"]]
    machine = result["machine"]
    return [
        *lines,
        f"Machine: {machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}; "
        f"{machine['cpu']}. "
        f"{', '.join(f'{name} {version}' for name, version in result['versions'].items())}. "
        f"{result['settings']['repeats']} repeats, seed 0.",
    ]


def _dtypes(sections: dict) -> list[str]:
    return list(dict.fromkeys(row["dtype"] for row in sections["convolution"]))


def _typed(dtype: str, multiplied: bool = True) -> str:
    return f"{dtype} (TF32)" if multiplied and dtype == "float32" else dtype


def _rate_cells(rates: dict, dtypes: list[str]) -> list[str]:
    if not rates:
        return ["–"] * (1 + len(dtypes))
    return [
        f"{rates['bytes_per_s'] / 1e9:.0f}",
        *(f"{rates['operations_per_s'][dtype] / 1e12:.0f}" for dtype in dtypes),
    ]


def _tables(title: str, rows: list[dict], rates: dict) -> list[str]:
    lines = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        of_type = [row for row in rows if row["dtype"] == dtype]
        lines += [
            f"## {title}, {_typed(dtype, _multiplied(of_type[0]))}",
            "",
            "| | | ms | ÷ dcn | host, µs | extra memory, MB | difference |",
            "|---|---|---|---|---|---|---|",
            *(line for row in of_type for line in _lines(row, rates)),
            "",
        ]
    return lines


def _multiplied(row: dict) -> bool:
    return row["forward_operations"] > 0


def _lines(row: dict, rates: dict) -> list[str]:
    """The floor, then every implementation."""
    own = [figure(row["results"]["dcn"], kind, "ms") for kind in KINDS]

    def line(first: str, name: str, ms: list[Figure], *rest: str) -> str:
        ratios = [over(a, b) for a, b in zip(ms, own, strict=True)]
        return f"| {' | '.join([first, name, _pair(ms, '.3f'), _pair(ratios, '.2f'), *rest])} |"

    floor = [floor_ms(row, kind, rates) for kind in KINDS]
    lines = [line(row["case"], f"floor: {_work(row)}", floor, "", "", "")]
    for name, values in row["results"].items():
        label = name
        if values["dtype"] != row["dtype"]:
            label += f", {_typed(values['dtype'], _multiplied(row))}"
        label = f"**{label}**" if name == "dcn" else label
        if any(values.get(f"{kind}_late", 0) > 0.5 for kind in KINDS):
            label += " (the host's time included)"
        ms, host, memory = (
            [figure(values, kind, what) for kind in KINDS] for what in ("ms", "us", "mb")
        )
        difference = _show(figure(values, "both", "difference"), ".1e")
        lines.append(line("", label, ms, _pair(host, ".0f"), _pair(memory, ".1f"), difference))
    return lines


def _detector_line(row: dict) -> str:
    step, inference = (_show(figure(row, kind, "ms"), ".1f") for kind in ("train", "inference"))
    memory = _pair([figure(row, kind, "mb") for kind in ("train", "inference")], ".0f")
    return f"| {row['model']} | {step} | {inference} | {memory} |"


def _work(row: dict) -> str:
    parts = [f"{row['forward_bytes'] / 1e6:.1f} / {row['both_bytes'] / 1e6:.1f} MB"]
    if _multiplied(row):
        operations = [row[f"{kind}_operations"] / 1e9 for kind in KINDS]
        parts.append(f"{operations[0]:.1f} / {operations[1]:.1f} GFLOP")
    return ", ".join(parts)


def _show(value: Figure, form: str) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else format(value, form)


def _pair(values: list[Figure], form: str) -> str:
    first, second = (_show(value, form) for value in values)
    return "–" if first == second == "–" else f"{first} / {second}"
