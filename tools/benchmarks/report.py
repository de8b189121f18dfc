"""Tables and a plot of what has been measured."""

from collections.abc import Callable
from statistics import median

REGULAR = "F.conv2d"
FORMATS = (f"{REGULAR} (NCHW)", f"{REGULAR} (NHWC)")


def ops_markdown(result: dict) -> str:
    sections = result["sections"]
    return "\n".join(
        [
            "# Operators",
            "",
            *_head(result),
            "",
            "Times are medians in ms, forward / forward + backward: dcn channels-last, torchvision",
            f"and mmcv contiguous, `{REGULAR}` in whichever of the two is faster for each figure.",
            "Extra memory is the growth of the process's peak beyond what the call returns.",
            "Difference is the largest error of output and gradients against float64, as a share",
            "of each tensor's largest value.",
            "",
            "## Against the bars",
            "",
            *bar_lines(result["bars"]),
            "",
            "## deform_conv2d, modulated, 3×3",
            "",
            *_conv_table(sections["convolution"]),
            "",
            "## The same, varied",
            "",
            f"Medians of {sections['variants'][0]['repeats']}.",
            "",
            *_conv_table(sections["variants"]),
            "",
            "## deform_roi_pool, 7×7 bins",
            "",
            "Without offsets and masks it is RoIAlign, torchvision's and mmcv's as well. With them",
            "nobody else has it for the CPU.",
            "",
            *_pool_table(sections["pooling"]),
            "",
            "## One thread and more",
            "",
            f"| | one | {result['settings']['threads']} | × faster |",
            "|---|---|---|---|",
            *(
                f"| {row['case']} | {_pair(row, '{}_ms_one')} | {_pair(row, '{}_ms_many')} | "
                f"{row['forward_ms_one'] / row['forward_ms_many']:.2f} / "
                f"{row['both_ms_one'] / row['both_ms_many']:.2f} |"
                for row in sections["threads"]
            ),
            "",
            "## Extra memory on a large image",
            "",
            "The kernels work channels-last; a contiguous image is converted as a whole, and the",
            "gradient of a bfloat16 image is summed in float32, as a whole as well.",
            "",
            "| | image, MB | extra, MB |",
            "|---|---|---|",
            *(
                f"| conv3, {row['shape']}, {row['implementation']} | {row['image_mb']:.0f} | "
                f"{row['forward_mb']:.1f} / {row['both_mb']:.1f} |"
                for row in sections["memory"]
            ),
            "",
        ]
    )


def detector_markdown(result: dict) -> str:
    rows = result["sections"]["models"]
    plain = next(row["train_s"] for row in rows if row["model"].startswith("dcn, md"))
    watched = result["sections"]["watched_step_s"]
    share = (watched / plain - 1) / 50
    return "\n".join(
        [
            "# Detector",
            "",
            *_head(result),
            "",
            "A whole training step (forward, backward, SGD) and inference of Faster R-CNN",
            f"R-50-FPN on {result['settings']['batch']} images of {result['settings']['image']},",
            "here and in mmdet with the same weights and random numbers; medians in s. Ours runs",
            "channels-last, as all detectors here do, mmdet's as mmdet runs it.",
            "",
            "## Against the bars",
            "",
            *bar_lines(result["bars"]),
            "",
            "## Measured",
            "",
            "| | training step | inference | extra memory of a step, MB |",
            "|---|---|---|---|",
            *(
                f"| {row['model']} | {row['train_s']:.2f} | {row['inference_s']:.2f} | "
                f"{row['train_mb']:.0f} |"
                for row in rows
            ),
            "",
            "Same weights, same images, same random numbers: the losses of the two differ by "
            f"{result['sections']['loss_difference']:.1e} of their value at most.",
            "",
            f"A step of mdconv c3–c5 in which its offsets are measured takes {watched:.2f} s. By "
            f"default one in 50 is such a step, which is {share:.2%} of training time.",
            "",
        ]
    )


def _head(result: dict) -> list[str]:
    versions = result["versions"]
    return [
        f"Written by `{result['command']}` on {result['date']}.",
        f"Machine: {result['machine']['cpu']}, {result['machine']['vectors']} "
        f"(dcn: {result['machine']['dcn_vectors']}), "
        f"{result['settings']['threads']} threads. "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}. "
        f"{result['settings']['dtype']}, {result['settings']['repeats']} repeats, seed 0.",
    ]


def _pair(values: dict, key: str) -> str:
    forward, both = values[key.format("forward")], values[key.format("both")]
    digits = 1 if forward < 100 else 0
    return f"{forward:.{digits}f} / {both:.{digits}f}"


def regular_ms(results: dict, kind: str) -> float:
    """Of `F.conv2d`, in the memory format in which it is faster."""
    return min(results[name][f"{kind}_ms"] for name in FORMATS)


def _conv_table(rows: list[dict]) -> list[str]:
    others = [name for name in rows[0]["results"] if name not in (*FORMATS, "dcn")]
    lines = [
        f"| | `{REGULAR}` | dcn | dcn ÷ `{REGULAR}` | "
        + " | ".join(f"{name} | ÷ dcn" for name in others)
        + " |",
        "|---" * (4 + 2 * len(others)) + "|",
    ]
    for row in rows:
        results = row["results"]
        own = results["dcn"]
        regular = {f"{kind}_ms": regular_ms(results, kind) for kind in ("forward", "both")}
        cells = [
            f"{row['case']}, {row['shape']}",
            _pair(regular, "{}_ms"),
            f"**{_pair(own, '{}_ms')}**",
            _ratios(own, regular),
        ]
        for name in others:
            cells += [_pair(results[name], "{}_ms"), _ratios(results[name], own)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *_accuracy_table(rows)]


def _pool_table(rows: list[dict]) -> list[str]:
    lines = ["| | implementation | ms | ÷ dcn |", "|---|---|---|---|"]
    for row in rows:
        own = row["results"]["dcn"]
        for name, values in row["results"].items():
            lines.append(
                f"| {row['shape']}, {row['case']} | {name} | {_pair(values, '{}_ms')} | "
                f"{_ratios(values, own)} |"
            )
    return [*lines, "", *_accuracy_table(rows)]


def _ratios(values: dict, over: dict) -> str:
    return " / ".join(f"{values[f'{k}_ms'] / over[f'{k}_ms']:.2f}" for k in ("forward", "both"))


def _accuracy_table(rows: list[dict]) -> list[str]:
    """One line an implementation, over all cases."""
    lines = [
        "| | largest difference to float64 | extra memory, MB | with backward |",
        "|---|---|---|---|",
    ]
    for name in rows[0]["results"]:
        results = [row["results"][name] for row in rows]
        differences = [r["difference"] for r in results if "difference" in r]
        cells = [
            name,
            f"{max(differences):.1e}" if differences else "another function",
            _span([r["forward_mb"] for r in results]),
            _span([r["both_mb"] for r in results]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _span(values: list[float]) -> str:
    return f"{min(values):.1f} – {max(values):.1f}"


def bar_lines(bars: list[tuple]) -> list[str]:
    """(what, ≤ or ≥, bar, goal or None, measured, unit) as a table.

    Instead of a figure, measured may be the name of what failed, or None.
    """
    lines = ["| | bar | goal | measured | |", "|---|---|---|---|---|"]
    for what, symbol, bar, goal, value, unit in bars:
        goal_cell = "" if goal is None else f"{symbol} {goal}{unit}"
        if value is None:
            measured, verdict = "–", "–"
        elif isinstance(value, str):
            measured, verdict = value, "failed"
        else:
            measured = f"{value:.2f}{unit}"
            verdict = "met" if _meets(symbol, value, bar) else "missed"
            if goal is not None and _meets(symbol, value, goal):
                verdict = "goal met"
        lines.append(f"| {what} | {symbol} {bar}{unit} | {goal_cell} | {measured} | {verdict} |")
    return lines


def _meets(symbol: str, value: float, limit: float) -> bool:
    return value <= limit if symbol == "≤" else value >= limit


def ops_bars(sections: dict, threads: int) -> list[tuple]:
    """(what, ≤ or ≥, bar, goal, the worst that was measured, unit)."""
    convs = [row["results"] for row in sections["convolution"]]
    variants = [row["results"] for row in sections["variants"]]
    pool = sections["pooling"][0]["results"]
    rivals = [name for name in ("torchvision", "mmcv") if name in convs[0]]

    def against_regular(kind: str) -> float:
        return max(r["dcn"][f"{kind}_ms"] / regular_ms(r, kind) for r in convs)

    def faster(rows: list[dict], kinds: tuple[str, ...], pick: Callable) -> float:
        return pick(
            [
                min(r[name][f"{kind}_ms"] for name in rivals) / r["dcn"][f"{kind}_ms"]
                for r in rows
                for kind in kinds
            ]
        )

    bars = [
        (f"forward against `{REGULAR}`", "≤", 1.4, 1.15, against_regular("forward"), "×"),
        (f"forward + backward against `{REGULAR}`", "≤", 2.0, 1.4, against_regular("both"), "×"),
        (
            f"forward + backward, faster than {' and '.join(rivals)}",
            *("≥", 6, 15, faster(convs, ("both",), min), "×"),
        ),
        (
            "the same, varied: forward or forward + backward, the worst",
            *("≥", 1, None, faster(variants, ("forward", "both"), min), "×"),
        ),
        (
            "the same, varied: forward + backward, the median",
            *("≥", 4, None, faster(variants, ("both",), median), "×"),
        ),
    ]
    for kind, title, bar, goal in (
        ("forward", "forward", 4, 8),
        ("both", "forward + backward", 6, 12),
    ):
        ratio = pool["torchvision"][f"{kind}_ms"] / pool["dcn"][f"{kind}_ms"]
        bars.append((f"RoIAlign {title}, faster than torchvision", "≥", bar, goal, ratio, "×"))
    deformed = pool["dcn, offsets and masks"]
    for kind, title in (("forward", "forward"), ("both", "forward + backward")):
        ratio = deformed[f"{kind}_ms"] / pool["dcn"][f"{kind}_ms"]
        bars.append((f"deform_roi_pool {title} against itself without", "≤", 1.5, 1.2, ratio, "×"))
    if threads == 2:
        scaling = min(
            row[f"{kind}_ms_one"] / row[f"{kind}_ms_many"]
            for row in sections["threads"]
            for kind in ("forward", "both")
        )
        bars.append(("one thread to two, the worst", "≥", 1.8, None, scaling, "×"))
    memory = [
        values[f"{kind}_mb"]
        for name in ("convolution", "variants", "pooling")
        for row in sections[name]
        for implementation, values in row["results"].items()
        if implementation.startswith("dcn")
        for kind in ("forward", "both")
    ]
    large = next(r for r in sections["memory"] if r["implementation"] == "dcn, channels-last")
    memory += [large["forward_mb"], large["both_mb"]]
    bars.append(("extra memory a thread, the worst", "≤", 32, None, max(memory) / threads, " MB"))
    return bars


def detector_bars(sections: dict) -> list[tuple]:
    rows = {row["model"]: row for row in sections["models"]}
    own, theirs = rows["dcn, mdconv c3–c5"], rows["mmdet, mdconv c3–c5"]
    regular = rows["mmdet, regular"]
    return [
        (
            "training step, faster than mmdet's",
            *("≥", 2.5, 4, theirs["train_s"] / own["train_s"], "×"),
        ),
        (
            "training step, faster than mmdet's regular model",
            *("≥", 1, None, regular["train_s"] / own["train_s"], "×"),
        ),
        (
            "inference, faster than mmdet's",
            *("≥", 1.6, 2, theirs["inference_s"] / own["inference_s"], "×"),
        ),
    ]


def ops_plot(result: dict, path: str) -> None:
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
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 2.9))
    for axis, (title, results) in zip(axes, panels, strict=True):
        bars = {}
        if FORMATS[0] in results:
            bars[REGULAR] = regular_ms(results, "both")
        for name in ("dcn", "reference", "torchvision", "mmcv"):
            if name in results:
                bars[name] = results[name]["both_ms"]
        names = [{"reference": "dcn, plain PyTorch"}.get(name, name) for name in bars]
        drawn = axis.barh(
            names, list(bars.values()), color=[colours.get(name, "#dadce0") for name in bars]
        )
        axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=9)
        axis.set_xscale("log")
        axis.set_xlim(left=5, right=max(bars.values()) * 4)
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
