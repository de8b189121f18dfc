"""How far every deformable convolution moves its samples over an image, and how it weights them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dcn.deformable import Samples, deformable_layers

from .figures import grey, panels, rendered, show, style
from .sampling import chosen_layer, short_name
from .views import view_of, watched

if TYPE_CHECKING:
    from ..inference.detector import Detector, Picture


@dataclass(frozen=True, eq=False)
class OffsetField:
    """Of one layer, for every position of its output; means over groups and kernel points.

    Attributes:
        length: float32 [rows, columns], |Δp| in pixels of the image.
        mask: float32 [rows, columns], Δm, or None where the layer does not modulate.
        extent: (left, right, bottom, top) of the map on the image, in pixels counted from the
            centre of the first one; padding lies outside the image.
    """

    length: np.ndarray
    mask: np.ndarray | None
    extent: tuple[float, float, float, float]


@torch.no_grad()
def offset_fields(
    detector: "Detector", image: "Picture", layers: Sequence[str] | None = None
) -> tuple[np.ndarray, dict[str, OffsetField]]:
    """The fields of |Δp| and Δm.

    Args:
        detector: or a classifier, loaded as one.
        image: as `Detector` takes it.
        layers: names of deformable convolutions; by default all. One that runs on several maps
            counts on the first.

    Returns:
        The image, uint8 [H, W, 3] RGB, and the field of each layer by its name.

    Raises:
        DataError, TypeError, ValueError: as `Detector` does of what is no picture.
        EngineError: no deformable layer samples a map of the image, or there is none of that name
            that does.
    """
    found = deformable_layers(detector.model)
    for name in layers or [None]:
        chosen_layer(detector.model, found, name, {"map"})
    view = view_of(detector, image)
    watching = {
        name: layer
        for name, layer in found.items()
        if layer.sampled == "map" and (layers is None or name in layers)
    }

    def field(samples: Samples, _) -> OffsetField:
        x, y = view.stride(samples.high)
        length = torch.hypot((samples.x - samples.rest_x) * x, (samples.y - samples.rest_y) * y)
        rows, columns = length.shape[3:]
        left, top = view.to_image((-0.5, -0.5), (rows, columns)).tolist()
        right, bottom = view.to_image((columns - 0.5, rows - 0.5), (rows, columns)).tolist()
        mask = None if samples.mask is None else _mean(samples.mask)
        return OffsetField(_mean(length), mask, (left, right, bottom, top))

    with watched(watching, field) as seen:
        detector.model(**view.data, mode="predict")
    return view.image, {name: calls[0] for name, calls in seen.items() if calls}


def _mean(values: Tensor) -> np.ndarray:
    return values[0].float().mean((0, 1)).cpu().numpy()


def draw_offset_fields(image: np.ndarray, fields: Mapping[str, OffsetField]) -> np.ndarray:
    """The fields over the image, a pair for each layer.

    Args:
        image: uint8 [H, W, 3], RGB.
        fields: by the names of their layers.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    parts = []
    for name, field in fields.items():
        short = short_name(name)
        parts.append((f"{short}: |Δp| [pixels]", field.length, field.extent))
        if field.mask is not None:
            parts.append((f"{short}: Δm", field.mask, field.extent))
    columns = min(4, len(parts))
    with style():
        figure, axes = panels(-(-len(parts) // columns), columns, image, width=2.0)
        for axis, (title, values, extent) in zip(axes, parts, strict=False):
            show(axis, grey(image), title)
            bounds = axis.get_xlim(), axis.get_ylim()
            drawn = axis.imshow(
                values, "viridis", extent=extent, alpha=0.6, interpolation="nearest"
            )
            axis.set(xlim=bounds[0], ylim=bounds[1])
            bar = figure.colorbar(drawn, ax=axis, shrink=0.8)
            bar.solids.set_alpha(1)
        for axis in axes[len(parts) :]:
            axis.remove()
        return rendered(figure)
