#!/usr/bin/env python
"""Write configs/dcnv2/, the rows of the paper's tables: tools/make_rows.py.

This file says what the rows are. Every one is a config of its own that shows what it sets, named in
mmdetection's order: detector_backbone-convolution_neck_pooling_mimicking_schedule_dataset.
"""

import itertools
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "dcnv2"

DETECTORS = {"faster-rcnn": "detection", "mask-rcnn": "instance"}  # with the kind of their dataset
NECKS = ("fpn", "dc5")
SCHEDULES = {  # with the schedule, and what the dataset's name has for the size of images
    "1x": ("1x", ""),
    "16e-800px": ("16e", ""),
    "16e-1000px": ("16e", "_1000px"),
}

STAGES = {"c5": (False, False, False, True), "c4-c5": (False, False, True, True)}
STAGES["c3-c5"] = (False, True, True, True)

# Convolution, pooling, mimicking: the tables 1 and 2, 3, and those of stronger backbones, 4.
PLAIN = [
    ("", "roipool", ""),
    ("", "", ""),
    *itertools.product(("dconv-c5", "dconv-c4-c5", "dconv-c3-c5"), ("", "dpool"), ("",)),
    *itertools.product(("mdconv-c3-c5",), ("", "mdpool"), ("",)),
]
MIMIC = [
    ("", "", "mimic"),
    *itertools.product(
        ("mdconv-c3-c5",), ("", "mdpool"), ("mimic", "mimic-background", "mimic-both")
    ),
]
STRONGER = [("", "", ""), ("dconv-c5", "dpool", ""), ("mdconv-c3-c5", "mdpool", "mimic")]

ROWS = {
    "r50": PLAIN + MIMIC,
    "r101": STRONGER,
    "x101-32x4d": STRONGER,
    "x101-64x4d": STRONGER,
}


def rows() -> dict[str, str]:
    """The content of every file, by its name."""
    files = {}
    for (backbone, own), detector, neck, schedule in itertools.product(
        ROWS.items(), DETECTORS, NECKS, SCHEDULES
    ):
        for conv, pool, mimic in own:
            parts = [detector, "-".join(filter(None, (backbone, conv))), neck, pool, mimic]
            name = "_".join([*filter(None, parts), schedule, "coco.py"])
            files[name] = _content(detector, backbone, neck, conv, pool, mimic, schedule)
    return files


def _content(detector, backbone, neck, conv, pool, mimic, schedule) -> str:
    length, size = SCHEDULES[schedule]
    bases = [
        f"models/{detector}_r50_{neck}.py",
        f"datasets/coco_{DETECTORS[detector]}{size}.py",
        f"schedules/schedule_{length}.py",
        "default_runtime.py",
    ]
    model = _backbone(backbone, neck)
    if conv:
        kind, stages = conv.split("-", 1)
        deform = dict(stages=STAGES[stages])
        if kind == "dconv":
            deform["conv"] = "dconv"
        model["backbone"]["deform"] = deform
    if pool:
        extractor = dict(pool=pool)
        if (pool, neck) == ("dpool", "fpn"):
            extractor["deform"] = dict(per_level=True)  # as DCNv1's FPN has it
        heads = ["bbox"] + ["mask"] * (detector == "mask-rcnn")
        model["roi_head"] = {f"{head}_roi_extractor": extractor for head in heads}
    if mimic:
        model["mimic"] = dict(on=mimic.partition("-")[2] or "foreground")
    lines = [f'    "../_base_/{base}",\n' for base in bases]
    settings = {key: value for key, value in model.items() if value}
    return "".join(
        [
            "# Written by tools/make_rows.py.\n_base_ = [\n",
            *lines,
            "]\n",
            f"\nmodel = {_source(settings, 'model = ')}\n" if settings else "",
        ]
    )


def _backbone(name: str, neck: str) -> dict:
    """What a row sets of the backbone and of the images' normalisation."""
    own = {}
    if neck == "fpn":
        own["norm_cfg"] = dict(requires_grad=False)  # frozen, as mmdetection's DC5 has it already
    if name == "r50":
        return dict(backbone=own)
    if name == "r101":
        homes = dict(fpn="torchvision://resnet101", dc5="open-mmlab://detectron2/resnet101_caffe")
        return dict(backbone=own | dict(depth=101, init_cfg=dict(checkpoint=homes[neck])))
    _, groups, width = name.replace("x4d", "-4").split("-")
    own |= dict(
        type="DeformResNeXt",
        depth=101,
        groups=int(groups),
        base_width=int(width),
        init_cfg=dict(checkpoint=f"open-mmlab://resnext101_{groups}x{width}d"),
    )
    if neck == "fpn":
        return dict(backbone=own)
    images = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
    return dict(data_preprocessor=images, backbone=own | dict(style="pytorch"))


def _source(value, before: str, indent: int = 0) -> str:
    """Python source of a value that stands behind `before`, in lines of up to 100 characters."""
    if not isinstance(value, dict):
        return f'"{value}"' if isinstance(value, str) else repr(value)
    line = f"dict({', '.join(k + '=' + _source(v, '') for k, v in value.items())})"
    if len(before) + len(line) + bool(indent) <= 100 - indent or not before:
        return line
    indent += 4
    inner = (f"{' ' * indent}{k}={_source(v, f'{k}=', indent)},\n" for k, v in value.items())
    return f"dict(\n{''.join(inner)}{' ' * (indent - 4)})"


def main() -> None:
    files = rows()
    for stale in {path.name for path in FOLDER.glob("*.py")} - files.keys():
        (FOLDER / stale).unlink()
    for name, content in files.items():
        (FOLDER / name).write_text(content, encoding="utf-8")
    print(f"{FOLDER}: {len(files)} configs")


if __name__ == "__main__":
    main()
