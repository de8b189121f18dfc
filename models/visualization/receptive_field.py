"""The effective receptive field (arXiv 1701.04128) of a position in a network's feature map."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.patches import Circle, Rectangle
from torch import Tensor, nn

from ..engine.errors import EngineError
from .figures import grey, panels, rendered, show, style
from .views import View, centre, detections_of, view_of

if TYPE_CHECKING:
    from ..inference.detector import Detector, Picture

SHARE = 0.9545
DRAWS = 16


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """What one position of a feature map sees.

    Positions are in pixels of the image, counted from the centre of the first one.

    Attributes:
        layer: the module whose output it is.
        at: (x, y) of the position.
        asked: (x, y) that it is the nearest one to.
        field: float32 [h, w], its sensitivity to every pixel of the resized image without padding;
            the sum is 1.
        area: how many pixels of the image it takes to hold 95.45 % of the field, at the least. Of a
            Gaussian, they are those above 4.55 % of the maximum, which is the paper's definition;
            this one does not depend on a single pixel where the field is no Gaussian.
        centre: (x, y), the mean position, weighted by the field.
        radius: root of the mean squared distance from that centre, weighted by the field, in pixels
            of the image. Of a Gaussian it is √2 of its standard
            deviation.
        box: (x1, y1, x2, y2) in pixels of the image from its corner, or None.
        inside: the share of the field in the box, or None.
        image: uint8 [H, W, 3], RGB.
    """

    layer: str
    at: tuple[float, float]
    asked: tuple[float, float]
    field: np.ndarray
    area: float
    centre: tuple[float, float]
    radius: float
    box: tuple[float, float, float, float] | None
    inside: float | None
    image: np.ndarray


def receptive_field(
    detector: "Detector",
    image: "Picture",
    at: tuple[float, float] | None = None,
    layer: str | None = None,
    box: tuple[float, float, float, float] | str | None = "detected",
    draws: int = DRAWS,
) -> ReceptiveField:
    """The effective receptive field of the output position that is nearest to a point.

    Of output y_c (channel c) at the position and input x_k(u) (colour k, pixel u, normalised) it is
    the root of Σ_c Σ_k (∂y_c / ∂x_k(u))², divided by its sum over all u in the image. The sum over
    channels is estimated as the mean of (∂(Σ_c ±y_c) / ∂x_k(u))² over `draws` vectors of random
    signs, the same every time. Gradients also flow through the layers' offsets and modulation.

    Args:
        detector: or a classifier, loaded as one; with deformable layers or without.
        image: as `Detector` takes it.
        at: (x, y) in pixels of the image; by default the centre of the best detection, or of the
            image where nothing is found.
        layer: any module of the backbone that returns a map; by default the backbone itself, whose
            last map counts.
        box: of the object (x1, y1, x2, y2); 'detected' is the best detection that `at` is in, None
            is none.
        draws: backward passes.

    Raises:
        DataError, TypeError, ValueError: as `Detector` does of what is no picture.
        EngineError: the backbone has no such module or it returns no map, `at` is outside the
            image, draws is below 1, or nothing in the image changes the output there.
    """
    if draws < 1:
        raise EngineError(f"draws: expected at least 1, got {draws}")
    backbone = detector.model.backbone
    layer = "backbone" if layer is None else layer
    module = _module(backbone, layer)
    view = view_of(detector, image)
    view.check(at, None if box == "detected" else box)
    if at is None or box == "detected":
        with torch.no_grad():
            boxes, _ = detections_of(detector.model(**view.data, mode="predict"))
        height, width = view.image.shape[:2]
        if at is None:
            at = centre(boxes[0] if len(boxes) else (0, 0, width, height))
        if box == "detected":
            box = next((tuple(map(float, b)) for b in boxes if _contains(b, at)), None)
    inputs = view.inputs.detach().requires_grad_()
    outputs: list[tuple[Tensor, tuple[float, float]]] = []
    handle = module.register_forward_hook(
        lambda module, args, output: outputs.append(
            _at(view, layer, output, at, getattr(backbone, "channels_last", False))
        )
    )
    try:
        backbone(inputs)
    finally:
        handle.remove()
    if not outputs:
        raise EngineError(f"layer: {layer} is not run on its own; name a module inside of it")
    asked, (values, at) = at, outputs[-1]
    generator = torch.Generator().manual_seed(0)
    squares = torch.zeros(inputs.shape[2:], dtype=torch.float64)
    for _ in range(draws):
        signs = torch.randint(2, (len(values),), generator=generator) * 2 - 1
        (gradient,) = torch.autograd.grad(
            values @ signs.to(values), inputs, retain_graph=True, allow_unused=True
        )
        squares += 0 if gradient is None else gradient[0].double().square().sum(0).cpu()
    height, width = view.image.shape[:2]
    rows, columns = round(height * view.scale[1]), round(width * view.scale[0])
    field = squares[:rows, :columns].sqrt().numpy()
    if not field.any():
        raise EngineError(f"nothing in the image changes {layer} at ({at[0]:g}, {at[1]:g})")
    field /= field.sum()
    area, middle, radius = figures_of(field, view.scale)
    inside = None if box is None else share_inside(field, view.scale, box)
    return ReceptiveField(
        layer, at, asked, field.astype(np.float32), area, middle, radius, box, inside, view.image
    )


def figures_of(
    field: np.ndarray, scale: tuple[float, float] = (1.0, 1.0)
) -> tuple[float, tuple[float, float], float]:
    """Area, centre and radius of a field [h, w], as `ReceptiveField` has them.

    Args:
        scale: (x, y), pixels of the field for one of the image.
    """
    held = np.cumsum(np.sort(field, axis=None)[::-1])
    area = (np.searchsorted(held, SHARE * held[-1]) + 1) / (scale[0] * scale[1])
    x, y = _positions(field, scale)
    total = field.sum()
    middle = ((field * x).sum() / total, (field * y).sum() / total)
    squared = (x - middle[0]) ** 2 + (y - middle[1]) ** 2
    radius = np.sqrt((field * squared).sum() / total)
    return float(area), (float(middle[0]), float(middle[1])), float(radius)


def share_inside(
    field: np.ndarray, scale: tuple[float, float], box: tuple[float, float, float, float]
) -> float:
    """Of a field [h, w], the share in a box that is in pixels of the image from its corner."""
    x, y = _positions(field, scale)
    x1, y1, x2, y2 = (edge - 0.5 for edge in box)
    inside = ((x1 <= x) & (x < x2)) & ((y1 <= y) & (y < y2))
    return float(field[inside].sum() / field.sum())


def _positions(field: np.ndarray, scale: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """x [1, w] and y [h, 1] of its pixels on the image."""
    rows, columns = field.shape
    x, y = ((np.arange(n) + 0.5) / per - 0.5 for n, per in zip((columns, rows), scale, strict=True))
    return x[None], y[:, None]


def _contains(box: np.ndarray, at: tuple[float, float]) -> bool:
    return box[0] <= at[0] + 0.5 <= box[2] and box[1] <= at[1] + 0.5 <= box[3]


def _module(backbone: nn.Module, layer: str) -> nn.Module:
    modules = {f"backbone.{name}".rstrip("."): m for name, m in backbone.named_modules()}
    if layer not in modules:
        outer = [name for name in modules if name.count(".") <= 2]
        raise EngineError(
            f"layer: no module {layer}; there are {', '.join(outer)}, and the modules inside these"
        )
    return modules[layer]


def _at(view: View, layer: str, output, at, channels_last: bool) -> tuple[Tensor, tuple]:
    """The values [C] of a map at the position that is nearest to `at`, and where that is."""
    while isinstance(output, list | tuple):
        output = output[-1]
    if output.dim() != 4:
        raise EngineError(f"layer: {layer} returns no map, but {[*output.shape]}")
    height, width = view.inputs.shape[2:]
    ratios = [
        abs(np.log(h * width / (w * height))) for h, w in (output.shape[2:], output.shape[1:3])
    ]
    if ratios[1] < ratios[0] or (channels_last and ratios[1] == ratios[0]):
        output = output.permute(0, 3, 1, 2)  # of [N, H, W, C], as shapes alone tell
    size = tuple(output.shape[2:])
    column, row = view.to_map(at, size)
    # A copy, because a ReLU that follows may work in place.
    return output[0, :, row, column].clone(), tuple(view.to_image((column, row), size).tolist())


def draw_receptive_fields(fields: Mapping[str, ReceptiveField]) -> np.ndarray:
    """Fields over their image, side by side: relative to the maximum, by their square root.

    The cross is the position, the dashed circle has the field's centre and radius, the rectangle is
    the object's box.

    Args:
        fields: by their titles; all of one image.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    with style():
        image = next(iter(fields.values())).image
        height, width = image.shape[:2]
        titles = [title.replace(": ", ":\n") for title in fields]
        lines = 2 + max(title.count("\n") for title in titles)
        figure, axes = panels(1, len(fields), image, bars=1, lines=lines)
        for axis, title, field in zip(axes, titles, fields.values(), strict=True):
            text = f"area {field.area:.0f} px², radius {field.radius:.1f} px"
            if field.inside is not None:
                text += f", {field.inside:.0%} in the box"
            show(axis, grey(field.image), f"{title}\n{text}")
            relative = field.field / field.field.max()
            drawn = axis.imshow(
                relative,
                "inferno",
                norm=PowerNorm(0.5, 0, 1),
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                alpha=np.minimum(1, 1.5 * np.sqrt(relative)),
                interpolation="nearest",
            )
            axis.add_patch(Circle(field.centre, field.radius, fill=False, ls="--", ec="white"))
            if field.box is not None:
                x1, y1, x2, y2 = (edge - 0.5 for edge in field.box)
                axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="#7fff00"))
            axis.scatter(*field.at, 50, "#7fff00", marker="P", edgecolors="black", zorder=4)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.8, label="share of the maximum")
        bar.solids.set_alpha(1)
        return rendered(figure)
