"""One image as a model sees it: what goes in, how maps lie on it, and what layers sample."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from dcn.deformable import Samples

from ..engine.errors import EngineError

if TYPE_CHECKING:
    from ..inference.detector import Detector, Picture

Seen = TypeVar("Seen")


@dataclass(frozen=True, eq=False)
class View:
    """One image, prepared for a model.

    Positions of points, here and in all pictures, are (x, y) in pixels of the image, counted from
    the centre of the first one: the upper left corner of the image is at (-0.5, -0.5). A pixel of a
    map lies where the kernels that lead to it are centred. Of stride s, pixel p of a ResNet is at
    p · s of the input, and one of a network without padding at (p + 0.5) · s - 0.5. Maps are told
    by their size: where branches that disagree lead to one size, the one that is run first counts.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        data: what the model is called with: `inputs` [1, 3, h, w], normalised and padded, and
            `data_samples`.
        scale: (x, y), pixels of the input for one of the image.
        grids: by the size of a map of the backbone (rows, columns), pixels of the input from one of
            its pixels to the next, and where the first one lies in the input, both (x, y).
    """

    image: np.ndarray
    data: dict[str, Any]
    scale: tuple[float, float]
    grids: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]

    @property
    def inputs(self) -> Tensor:
        return self.data["inputs"]

    def stride(self, size: tuple[float, float]) -> np.ndarray:
        """(x, y): pixels of the image for one of a map of `size` (rows, columns)."""
        return self._grid(size)[0] / self.scale

    def between(self, xy: Tensor, size: tuple[float, float], other: tuple[float, float]) -> Tensor:
        """Positions [..., 2] on a map of `size`, on one of the size `other`."""
        (step, first), (other_step, other_first) = self._grid(size), self._grid(other)
        return xy * xy.new_tensor(step / other_step) + xy.new_tensor(
            (first - other_first) / other_step
        )

    def to_image(self, xy: ArrayLike, size: tuple[float, float]) -> np.ndarray:
        """Of positions [..., 2] on a map of `size` (rows, columns)."""
        step, first = self._grid(size)
        return (np.asarray(xy) * step + first + 0.5) / self.scale - 0.5

    def to_map(self, xy: ArrayLike, size: tuple[float, float]) -> tuple[int, int]:
        """The (column, row) of the map's pixel that is nearest to a point of the image."""
        step, first = self._grid(size)
        there = (np.asarray(xy) + 0.5) * self.scale - 0.5
        nearest = np.round((there - first) / step).astype(int)
        column, row = np.clip(nearest, 0, (size[1] - 1, size[0] - 1)).tolist()
        return column, row

    def _grid(self, size: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        known = self.grids.get((int(size[0]), int(size[1])))
        if known is not None:
            return known
        # A map that no convolution or pooling of the backbone returns: it covers the input.
        height, width = self.inputs.shape[2:]
        step = np.array([width / size[1], height / size[0]])
        return step, (step - 1) / 2

    def check(
        self,
        at: tuple[float, float] | None = None,
        box: tuple[float, float, float, float] | None = None,
    ) -> None:
        """Refuse a point outside the image, or a box without area in it, by an EngineError."""
        height, width = self.image.shape[:2]
        of = f"the image of {width}×{height} pixels"
        if at is not None and not (0 <= at[0] < width and 0 <= at[1] < height):
            raise EngineError(f"at: ({at[0]:g}, {at[1]:g}) is outside {of}")
        if box is None:
            return
        x1, y1, x2, y2 = box
        if not (max(x1, 0) < min(x2, width) and max(y1, 0) < min(y2, height)):
            shown = ", ".join(f"{side:g}" for side in box)
            raise EngineError(f"box: ({shown}) is no x1 < x2, y1 < y2 that overlaps {of}")


def view_of(detector: "Detector", image: "Picture") -> View:
    """`image` as the detector's test pipeline prepares it.

    Raises:
        DataError, TypeError, ValueError: as `Detector` does of what is no picture.
    """
    [array], batch = detector.prepare([image])
    resized = batch["inputs"][0].shape
    data = detector.model.data_preprocessor(batch, False)
    # Without it, nothing in the pipeline resizes, or it says so by the size alone.
    scale = data["data_samples"][0].metainfo.get(
        "scale_factor", (resized[2] / array.shape[1], resized[1] / array.shape[0])
    )
    backbone = getattr(detector.model, "backbone", detector.model)
    return View(
        np.ascontiguousarray(array[..., ::-1]),
        data,
        tuple(map(float, scale)),
        _grids(backbone, data["inputs"]),
    )


@torch.no_grad()
def _grids(
    backbone: nn.Module, inputs: Tensor
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """As `View` has them: what leads to a map's size first says where it lies."""
    grids = {tuple(inputs.shape[2:]): (np.ones(2), np.zeros(2))}
    given: dict[nn.Module, tuple[int, ...]] = {}

    def before(module, args) -> None:
        given[module] = tuple(args[0].shape[2:])

    def after(module, args, output) -> None:
        size, out = given[module], tuple(output.shape[2:])
        if size not in grids or out in grids:
            return
        kernel, stride, padding, dilation = (
            np.broadcast_to(getattr(module, name, 1), 2)[::-1]
            for name in ("kernel_size", "stride", "padding", "dilation")
        )
        extent = (kernel - 1) * dilation
        # TensorFlow's padding depends on the size, and its smaller half goes to the top and left.
        missing = (np.array(out[::-1]) - 1) * stride + extent + 1 - np.array(size[::-1])
        before_first = np.where(padding > 0, padding, np.maximum(missing, 0) // 2)
        step, first = grids[size]
        grids[out] = (step * stride, first + step * (extent / 2 - before_first))

    handles = [
        handle
        for module in backbone.modules()
        if hasattr(module, "kernel_size") and hasattr(module, "stride")
        for handle in (
            module.register_forward_pre_hook(before, prepend=True),
            module.register_forward_hook(after),
        )
    ]
    try:
        backbone(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return grids


def detections_of(results: list) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] and scores [N] in what the model predicts, best first; none of a classifier's.

    Boxes are (x1, y1, x2, y2) as detectors have them, where (0, 0) is the image's corner.
    """
    if "pred_instances" not in results[0]:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    found = results[0].pred_instances.cpu()
    order = found.scores.argsort(descending=True, stable=True)
    return found.bboxes[order].float().numpy(), found.scores[order].float().numpy()


def centre(box: ArrayLike) -> tuple[float, float]:
    """Of a box as detectors have it, where a `View` has it."""
    x1, y1, x2, y2 = map(float, box)
    return (x1 + x2) / 2 - 0.5, (y1 + y2) / 2 - 0.5


@contextmanager
def watched(
    layers: Mapping[str, nn.Module], look: Callable[[Samples, dict[str, Any]], Seen]
) -> Iterator[dict[str, list[Seen]]]:
    """What `look` makes of the samples and the arguments of each call of `layers` in the block.

    Arguments are by the names that the layer's `samples` gives them. What `look` returns is kept,
    so it should be small; samples take about as much memory as the layer's input.
    """
    seen: dict[str, list[Seen]] = {name: [] for name in layers}
    given: dict[str, torch.Size] = {}
    handles = []
    for name, layer in layers.items():

        def before(module, args, name=name) -> None:
            given[name] = args[0].shape

        def after(module, args, kwargs, output, name=name) -> None:
            with torch.no_grad():
                named = signature(module.samples).bind(*args, **kwargs).arguments
                samples = _unpadded(module.samples(*args, **kwargs), args[0].shape, given[name])
                seen[name].append(look(samples, named))

        handles += [
            layer.register_forward_pre_hook(before, prepend=True),
            layer.register_forward_hook(after, with_kwargs=True),
        ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _unpadded(samples: Samples, padded: torch.Size, given: torch.Size) -> Samples:
    """In pixels of the map that the layer was given, where a hook of its own pads it first.

    So do TensorFlow's convolutions in `TimmBackbone`; the smaller half goes to the top and left.
    """
    if padded == given:
        return samples
    rows, columns = given[2:]
    top, left = (padded[2] - rows) // 2, (padded[3] - columns) // 2
    y, x, mask, rest_y, rest_x, low, _ = samples
    moved = (y - top, x - left, mask, rest_y - top, rest_x - left)
    return Samples(*moved, low, (float(rows), float(columns)))
