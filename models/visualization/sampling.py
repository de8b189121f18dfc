"""Where a deformable layer samples, as in the figures of Deformable ConvNets.

(arXiv 1703.06211, figures 6 and 7; arXiv 1811.11168, figure 2.)
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torchvision.ops import box_iou

from dcn.deformable import Samples, deformable_layers

from ..engine.errors import EngineError
from .figures import panels, rendered, show, style
from .views import View, centre, detections_of, view_of, watched

if TYPE_CHECKING:
    from ..inference.detector import Detector, Picture

MAX_POINTS = 20_000
MAX_ROIS = 3
MIN_SCORE = 0.3  # of the detections whose RoIs are shown
MIN_IOU = 0.5  # of such an RoI with its detection: levels can have layers of their own


@dataclass(frozen=True, eq=False)
class SamplingPoints:
    """Where an output position, or the bins of some RoIs, sample the image.

    Positions are in pixels of the image, counted from the centre of the first one.

    Attributes:
        layers: names, from the output inwards.
        at: (x, y) of the output position; of RoIs, the centre of the first.
        x, y: float32 [n], the points; some can lie outside the image.
        weight: float32 [n], the product of their modulation through the layers; ones where no layer
            modulates. DCNv4's can be negative.
        rest_x, rest_y: float32 [n], where they would be without offsets.
        image: uint8 [H, W, 3], RGB.
        total: how many points there are, of which n at random where they are too many.
        rois: float32 [R, 4], (x1, y1, x2, y2) in pixels of the image from its corner, as boxes of
            detections are, each with n / R points, row by row; None of a convolution.
        stride: (x, y), pixels of the image from one output position to the next; None of RoIs.
    """

    layers: tuple[str, ...]
    at: tuple[float, float]
    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    rest_x: np.ndarray
    rest_y: np.ndarray
    image: np.ndarray
    total: int
    rois: np.ndarray | None = None
    stride: tuple[float, float] | None = None

    @property
    def outside(self) -> int:
        """How many of the points lie outside the image."""
        height, width = self.image.shape[:2]
        inside = (self.x >= -0.5) & (self.x <= width - 0.5)
        inside &= (self.y >= -0.5) & (self.y <= height - 0.5)
        return int((~inside).sum())


@torch.no_grad()
def sampling_points(
    detector: "Detector",
    image: "Picture",
    at: tuple[float, float] | None = None,
    layer: str | None = None,
    depth: int = 1,
) -> SamplingPoints:
    """Where the output position of a layer that is nearest to a point of the image samples.

    Through `depth` layers, these are the K points of the layer, the K points of the layer before it
    at each of them, and so on: for 3×3 kernels 9, 81, 729; with G groups (G·K)^depth, since every
    group of channels has points of its own. Between two positions of a layer's output, its points
    are interpolated bilinearly. A path ends where it leaves the map of a layer that is not the
    last, because nothing is read there. The layers before a layer are the deformable ones of the
    model that precede it; whatever lies between two of them is taken to leave positions where they
    are. A layer that runs on several maps, as those of heads do, counts on the first.

    Of a layer of RoI pooling, these are the centres of the bins of the RoIs that the best
    detections stem from: for each detection the RoI that overlaps it most.

    Args:
        detector: or a classifier, loaded as one.
        image: as `Detector` takes it.
        at: (x, y) in pixels of the image; by default the centre of the best detection, or of the
            image where nothing is found. Of RoI pooling, the detections under it are shown, and by
            default the three best above a score of 0.3.
        layer: its name; by default the last deformable convolution of the backbone.
        depth: how many layers.

    Returns:
        At most 20000 points. Of more, every layer on the way inwards keeps as many at random, the
        same every time.

    Raises:
        DataError, TypeError, ValueError: as `Detector` does of what is no picture.
        EngineError: no deformable layer samples the image, there is none called `layer` or it
            samples no image, `at` is outside the image, fewer than `depth` layers lie up to
            `layer`, or RoI pooling is to be shown where nothing was detected.
    """
    layers = deformable_layers(detector.model)
    layer = chosen_layer(detector.model, layers, layer)
    pools = layers[layer].sampled == "rois"
    stack = [layer] if pools else _stack(layers, layer, depth)
    if pools and depth != 1:
        raise EngineError(
            f"depth: {depth}, but bins of RoI pooling ({layer}) have no stack, only 1"
        )
    view = view_of(detector, image)
    if at is not None:
        view.check(at)
    watching = {name: layers[name] for name in stack}
    with watched(
        watching, lambda samples, args: (samples, args["rois"] if pools else None)
    ) as seen:
        boxes, scores = detections_of(detector.model(**view.data, mode="predict"))
    if missed := [name for name in stack if not seen[name]]:
        raise EngineError(f"layer: {missed[0]} is not run on this image")
    if pools:
        return _of_rois(view, layer, seen[layer], _shown(boxes, scores, at))
    if at is None:
        height, width = view.image.shape[:2]
        at = centre(boxes[0] if len(boxes) else (0, 0, width, height))
    return _of_position(view, {name: seen[name][0][0] for name in stack}, at)


def chosen_layer(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    name: str | None,
    sampled: Collection[str] = ("map", "rois"),
) -> str:
    """`name`, or that of the backbone's last deformable convolution.

    Args:
        model: for messages.
        layers: its deformable layers.
        sampled: what their samples may lie in, see `Deformable.sampled`.

    Raises:
        EngineError: there is no such layer, or its samples lie in something else.
    """
    if not layers:
        kind = type(getattr(model, "backbone", model)).__name__
        raise EngineError(f"the model has no deformable layers; its backbone is a {kind}")
    if name is not None and name not in layers:
        raise EngineError(f"layer: no deformable layer {name}; there are {', '.join(layers)}")
    fit = [n for n, module in layers.items() if module.sampled in sampled]
    if name in fit:
        return name
    if name is None and fit:
        convolutions = [n for n in fit if layers[n].sampled == "map"]
        own = [n for n in convolutions if n.startswith("backbone.")]
        return (own or convolutions or fit)[-1]
    wrong = name or [*layers][-1]
    where = {
        "map": "samples the map before it",
        "rois": "samples RoIs",
        "scope": "moves points in the scope of its kernels and has none on the image",
    }[layers[wrong].sampled]
    others = f"layers that can be shown: {', '.join(fit)}" if fit else "there is no other kind"
    raise EngineError(f"layer: {wrong} ({type(layers[wrong]).__name__}) {where}; {others}")


def _stack(layers: Mapping[str, nn.Module], last: str, depth: int) -> list[str]:
    """Names of `depth` layers, from `last` inwards."""
    names = stack_below(layers, last)
    if depth not in range(1, len(names) + 1):
        raise EngineError(
            f"depth: {depth}, but {len(names)} deformable layers are stacked up to {last}: from 1 "
            f"to {len(names)}"
        )
    return names[:depth]


def stack_below(layers: Mapping[str, nn.Module], last: str) -> list[str]:
    """Names of the layers that can be looked through, from `last` inwards."""
    names = [n for n, module in layers.items() if module.sampled == "map"]
    return names[names.index(last) :: -1]


def stacked(samples: Samples) -> Tensor:
    """x, y, mask, rest_x, rest_y: [5, n, groups, points, rows, columns], on the CPU."""
    mask = samples.y.new_ones(1) if samples.mask is None else samples.mask
    parts = (samples.x, samples.y, mask, samples.rest_x, samples.rest_y)
    return torch.stack(torch.broadcast_tensors(*(part.float().cpu() for part in parts)))


class _Field:
    """A layer's samples of one image, to be read between output positions."""

    def __init__(self, samples: Samples) -> None:
        maps = stacked(samples)[:, 0].flatten(1, 2)  # [5, G·K, rows, columns]
        self.moved, rest = maps[:3], maps[3:]
        self.size = tuple(maps.shape[2:])
        self.low, self.high = (torch.tensor(bound[::-1]) for bound in (samples.low, samples.high))
        self.input_size = samples.high  # (rows, columns)
        self.origin = rest[:, :, 0, 0].T  # [G·K, 2]
        rows, columns = self.size
        self.step = torch.stack(  # (x, y), from one output position to the next
            [
                rest[0, 0, 0, 1] - rest[0, 0, 0, 0] if columns > 1 else self.high[0],
                rest[1, 0, 1, 0] - rest[1, 0, 0, 0] if rows > 1 else self.high[1],
            ]
        )

    def read(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [n, G·K, 2] and modulation [n, G·K] of output positions [n, 2], (x, y)."""
        rows, columns = self.size
        corner = torch.tensor([max(columns - 1, 1), max(rows - 1, 1)])
        found = F.grid_sample(
            self.moved.flatten(0, 1)[None],
            (2 * at / corner - 1)[None, None],
            padding_mode="border",
            align_corners=True,
        )
        x, y, mask = found[0, :, 0].T.unflatten(1, (3, -1)).unbind(1)
        return torch.stack((x, y), 2), mask

    def at_rest(self, at: Tensor) -> Tensor:
        """As `read`, without offsets; also beyond the map."""
        return self.origin + self.step * at[:, None]


def _of_position(view: View, stack: dict[str, Samples], at: tuple[float, float]) -> SamplingPoints:
    generator = torch.Generator().manual_seed(0)
    fields = [_Field(samples) for samples in stack.values()]
    size = fields[0].size
    at = view.to_map(at, size)
    points = rest = torch.tensor([at], dtype=torch.float32)
    weight = torch.ones(1)
    for field in fields:
        # What lies between two layers may stride or pool: the same place, on the next output.
        points, rest = (view.between(xy, size, field.size) for xy in (points, rest))
        points, mask = field.read(points)
        points, rest = points.flatten(0, 1), field.at_rest(rest).flatten(0, 1)
        weight = (weight[:, None] * mask).flatten()
        if field is not fields[-1]:
            inside = ((field.low < points) & (points < field.high)).all(1)
            points, rest, weight = points[inside], rest[inside], weight[inside]
        if len(points) > MAX_POINTS:
            some = torch.randperm(len(points), generator=generator)[:MAX_POINTS].sort().values
            points, rest, weight = points[some], rest[some], weight[some]
        size = field.input_size
    x, y = view.to_image(points, size).T
    rest_x, rest_y = view.to_image(rest, size).T
    return SamplingPoints(
        tuple(stack),
        tuple(view.to_image(at, fields[0].size).tolist()),
        *(np.asarray(values, np.float32) for values in (x, y, weight, rest_x, rest_y)),
        view.image,
        math.prod(len(field.origin) for field in fields),
        stride=tuple(view.stride(fields[0].size).tolist()),
    )


def _shown(boxes: np.ndarray, scores: np.ndarray, at: tuple[float, float] | None) -> np.ndarray:
    """The boxes of the detections whose RoIs are shown: at most `MAX_ROIS`."""
    if at is None:
        good = scores >= MIN_SCORE
        good[:1] = True
        where = "in the image"
    else:
        x, y = at[0] + 0.5, at[1] + 0.5
        good = (boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])
        where = f"at ({at[0]:g}, {at[1]:g})"
    if not good.any():
        raise EngineError(f"nothing was detected {where}, so there is no RoI to show")
    return boxes[good][:MAX_ROIS]


def _of_rois(
    view: View, layer: str, calls: list[tuple[Samples, Tensor]], boxes: np.ndarray
) -> SamplingPoints:
    scale = torch.tensor(view.scale)
    rois = torch.cat([rois[:, 1:].float().cpu() for _, rois in calls]) / scale.repeat(2)
    overlap, best = box_iou(torch.from_numpy(boxes), rois).max(1)
    # One RoI may be detected as several classes.
    best = torch.tensor([*dict.fromkeys(best[overlap >= MIN_IOU].tolist())], dtype=torch.long)
    if not len(best):
        raise EngineError(
            f"layer: {layer} has pooled no RoI that one of these detections stems from"
        )
    bins = torch.cat([stacked(samples) for samples, _ in calls], 1)[:, best].flatten(1)
    x, y, weight, rest_x, rest_y = bins.numpy()
    x, rest_x = (t / view.scale[0] - 0.5 for t in (x, rest_x))
    y, rest_y = (t / view.scale[1] - 0.5 for t in (y, rest_y))
    shown = rois[best].numpy()
    return SamplingPoints(
        (layer,), centre(shown[0]), x, y, weight, rest_x, rest_y, view.image, len(x), shown
    )


def draw_points(points: SamplingPoints) -> np.ndarray:
    """The image with the points on it, as `add_points` draws them.

    What lies outside the image is not drawn, but counted in the title.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    count = f"{len(points.x)} points"
    if points.rois is not None:
        count = f"{len(points.x)} bins of {len(points.rois)} RoIs"
    elif len(points.x) < points.total:
        count = f"{len(points.x)} of {points.total} points"
    if outside := points.outside:
        count += f", {outside} outside"
    title = " ← ".join(short_name(name) for name in points.layers) + f"\n{count}"
    with style():
        figure, [axes] = panels(1, 1, points.image, lines=2)
        show(axes, points.image, title)
        drawn = add_points(axes, points)
        if len(points.weight) and np.ptp(points.weight) > 0:
            label = "Δm" if len(points.layers) == 1 else "product of Δm"
            figure.colorbar(drawn, ax=axes, label=label, shrink=0.8)
        return rendered(figure)


def add_points(axes: Axes, points: SamplingPoints) -> PathCollection:
    """Draw points on axes that count in pixels of the image.

    They are larger and brighter, the more they are modulated. The green cross is the output
    position; of RoI pooling, boxes are the RoIs and lines lead from where the centre of a bin would
    be. Small white points are where a layer without offsets samples.

    Returns:
        What a colour bar is of.
    """
    axes.scatter(
        points.rest_x, points.rest_y, 3, "white", edgecolors="black", linewidths=0.3, zorder=2
    )
    if points.rois is not None:
        for x1, y1, x2, y2 in points.rois - 0.5:
            axes.add_patch(
                Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="#7fff00", lw=1)
            )
        ends = [(points.rest_x, points.rest_y), (points.x, points.y)]
        lines = np.stack([np.stack(end, 1) for end in ends], 1)
        axes.add_collection(LineCollection(lines, colors="white", linewidths=0.5, zorder=2))
    strength = np.abs(points.weight)
    largest = strength.max(initial=0) or 1.0
    order = strength.argsort(kind="stable")  # the strongest on top
    area = 60 / len(points.layers) ** 2
    drawn = axes.scatter(
        points.x[order],
        points.y[order],
        area * np.maximum(strength[order] / largest, 0.05),
        points.weight[order],
        cmap="inferno",
        vmin=min(0, points.weight.min(initial=0)),
        edgecolors="black",
        linewidths=0.3,
        zorder=3,
    )
    if points.rois is None:
        axes.scatter(*points.at, 60, "#7fff00", marker="P", edgecolors="black", zorder=4)
    return drawn


def short_name(name: str) -> str:
    """Of a layer, for readers: without the part of the model that goes without saying."""
    return name.removeprefix("backbone.").removeprefix("roi_head.")
