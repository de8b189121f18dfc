"""How many of a layer's samples lie on the object, with its offsets and without."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from mmengine.dataset import BaseDataset
from scipy.stats import bootstrap
from tqdm import trange

from dcn.deformable import Samples, deformable_layers

from ..engine.errors import EngineError
from .annotated import Annotation, annotations_of
from .figures import DPI, rendered, style
from .sampling import chosen_layer, short_name, stacked
from .views import View, centre, view_of, watched

if TYPE_CHECKING:
    from ..inference.detector import Detector

SHARES = ("regular", "regular_weighted", "offsets", "offsets_weighted")
COMPARED = ("offsets", "offsets_weighted")  # each with "regular"


@torch.no_grad()
def on_object(
    detector: "Detector",
    dataset: BaseDataset,
    images: int | None = None,
    layers: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The share of sampling points that lie on the object that they are sampled for.

    For every annotated object and every layer, these are all points that the output positions
    inside of the object's mask sample, or, where none is inside, the position nearest to the centre
    of its box; of positions see `View`. A point is on the object if the pixel that it falls into is
    in the mask (or the box, where no mask is annotated). Shares are averaged over the objects of an
    image.

    Args:
        detector: or a classifier, loaded as one.
        dataset: annotated images that the detector was not trained on, see `validation_set`.
        images: the first so many; by default all.
        layers: names of deformable convolutions of the backbone; by default all.

    Returns:
        A line for each layer and image that has objects: `layer`, `image` (its path), `objects`
        (how many), and the shares, from 0 to 1. `regular` are the points without offsets, where an
        untrained layer samples. `offsets` are those with the layer's offsets. In
        `regular_weighted` and `offsets_weighted` each point counts by |Δm|; they are NaN where the
        layer does not modulate, or by zeros only.

    Raises:
        DataError: an image cannot be read.
        EngineError: no deformable convolution of the backbone samples a map, or none has such a
            name, or the images have no annotated objects.
    """
    found = {
        name: layer
        for name, layer in deformable_layers(detector.model).items()
        if name.startswith("backbone.")
    }
    for name in layers or [None]:
        chosen_layer(detector.model, found, name, {"map"})
    wanted = {n: layer for n, layer in found.items() if layer.sampled == "map"}
    if layers is not None:
        wanted = {name: wanted[name] for name in layers}
    lines = []
    for i in trange(min(images or len(dataset), len(dataset)), unit="image", disable=None):
        info = dataset.get_data_info(i)
        if not (objects := annotations_of(info) if "instances" in info else []):
            continue
        view = view_of(detector, info["img_path"])

        def shares(samples: Samples, _, view=view, objects=objects) -> np.ndarray:
            return shares_of(samples, view, objects)

        with watched(wanted, shares) as seen:
            detector.model.backbone(view.inputs)
        for name, runs in seen.items():
            for values in runs:
                line = dict(zip(SHARES, values.mean(0).tolist(), strict=True))
                lines.append(dict(layer=name, image=info["img_path"], objects=len(objects)) | line)
    if not lines:
        raise EngineError("the images of the validation set have no annotated objects")
    return pd.DataFrame(lines)


def shares_of(samples: Samples, view: View, objects: Sequence[Annotation]) -> np.ndarray:
    """Of one image's objects: [objects, 4], in the order of `SHARES`."""
    x, y, mask, rest_x, rest_y = stacked(samples)[:, 0].flatten(1, 2).numpy()
    size = x.shape[1:]
    rows, columns = np.indices(size)
    positions = view.to_image(np.stack((columns, rows), -1), size)
    points = [
        view.to_image(np.stack(xy, -1), samples.high) for xy in ((rest_x, rest_y), (x, y))
    ]  # [G·K, rows, columns, 2] each
    weight = np.full_like(mask, np.nan) if samples.mask is None else np.abs(mask)
    lines = []
    for annotation in objects:
        inside = _look_up(annotation.mask, positions)
        if not inside.any():
            column, row = view.to_map(centre(annotation.box), size)
            inside[row, column] = True
        line = []
        for xy in points:
            hit = _look_up(annotation.mask, xy[:, inside])
            own = weight[:, inside]
            with np.errstate(invalid="ignore"):  # zeros only: NaN
                line += [hit.mean(), (hit * own).sum() / own.sum()]
        lines.append(line)
    return np.array(lines)


def _look_up(mask: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """bool [...]: whether points [..., 2] of the image lie in its mask [H, W]."""
    column, row = np.moveaxis(np.floor(xy + 0.5).astype(int), -1, 0)
    height, width = mask.shape
    within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return within & mask[row.clip(0, height - 1), column.clip(0, width - 1)]


def summarise(shares: pd.DataFrame, confidence: float = 0.95) -> tuple[pd.DataFrame, int]:
    """Means over images, and what the offsets add to them.

    Args:
        shares: of `on_object`.
        confidence: with which all intervals hold together.

    Returns:
        A line for each layer: its shares, and of `offsets` and `offsets_weighted` the mean
        difference to `regular` (`_gain`) and the interval of that (`_low`, `_high`): percentiles of
        a bootstrap over images (9999 resamples, seeded), whose level is corrected for the number of
        intervals in the table (Bonferroni); and that number.

    Raises:
        EngineError: there are fewer than two images.
    """
    if shares["image"].nunique() < 2:
        raise EngineError("an interval over images needs at least two that have objects")
    tables = dict([*shares.groupby("layer", sort=False)])
    count = sum(table[name].notna().all() for table in tables.values() for name in COMPARED)
    lines = {}
    for layer, table in tables.items():
        line = table[[*SHARES]].mean(skipna=False).to_dict()
        for name in COMPARED:
            gain = (table[name] - table["regular"]).to_numpy()
            low = high = float("nan")
            if not np.isnan(gain).any():
                low, high = bootstrap(
                    (gain,),
                    np.mean,
                    confidence_level=1 - (1 - confidence) / count,
                    method="percentile",
                    rng=np.random.default_rng(0),
                ).confidence_interval
            line |= {f"{name}_gain": gain.mean(), f"{name}_low": low, f"{name}_high": high}
        lines[layer] = line
    return pd.DataFrame(lines).T.rename_axis("layer"), int(count)


def on_object_table(summary: pd.DataFrame, comparisons: int, confidence: float = 0.95) -> str:
    """What `summarise` returns, as Markdown; in percent, differences in percentage points."""
    texts = {"regular grid": (100 * summary["regular"]).map("{:.1f}".format)}
    for name, title in zip(COMPARED, ("with offsets", "weighted by Δm"), strict=True):
        known = 100 * summary[[f"{name}_gain", f"{name}_low", f"{name}_high"]]
        texts[title] = (100 * summary[name]).map("{:.1f}".format)
        texts[f"{title}: difference"] = known.apply(
            lambda line: "{:+.1f} ({:+.1f} to {:+.1f})".format(*line), axis=1
        )
    table = (
        pd.DataFrame(texts).replace(r".*nan.*", "", regex=True).to_markdown(disable_numparse=True)
    )
    return (
        f"{table}\n\nPercent of the points that lie on the object; differences are to the regular "
        f"grid, in percentage points. All {comparisons} intervals hold together at "
        f"{confidence:.0%} (bootstrap over images, Bonferroni)."
    )


def draw_on_object(summary: pd.DataFrame, comparisons: int, confidence: float = 0.95) -> np.ndarray:
    """Shares, and what the offsets add to the regular grid, by layer.

    Args:
        summary, comparisons: of `summarise`, with the same `confidence`.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    names = [short_name(name) for name in summary.index]
    y = np.arange(len(names))
    looks = {
        "regular": ("regular grid", "#1f2328", "s"),
        "offsets": ("with offsets", "#0072b2", "o"),
        "offsets_weighted": ("with offsets, weighted by Δm", "#d55e00", "D"),
    }
    with style():
        figure = Figure((6.4, 1.45 + 0.25 * len(names)), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for name, (label, colour, marker) in looks.items():
            left.scatter(
                100 * summary[name], y, s=18, color=colour, marker=marker, label=label, zorder=3
            )
        for shift, name in ((-0.12, "offsets"), (0.12, "offsets_weighted")):
            gain, low, high = (
                100 * summary[f"{name}_{part}"].to_numpy() for part in ("gain", "low", "high")
            )
            _, colour, marker = looks[name]
            errors = np.stack([gain - low, high - gain])
            right.errorbar(gain, y + shift, xerr=errors, fmt=marker, color=colour, ms=3, lw=1)
        right.axvline(0, color="#1f2328", lw=0.8)
        left.set(yticks=y, yticklabels=names, xlabel="points on the object [%]")
        left.invert_yaxis()
        right.set_xlabel("difference to the regular grid [percentage points]")
        figure.supxlabel(
            f"Intervals over images; all {comparisons} hold together at {confidence:.0%} "
            "(bootstrap, Bonferroni).",
            fontsize=7,
        )
        for axis in (left, right):
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        return rendered(figure)
