"""Whether deformable layers learn: their offsets and masks, logged and watched during training."""

import logging
import math

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor

from dcn import DeformConv2d, DeformRoIPool

from ..roi_heads import DeformRoIExtractor

DEAD = 0.01  # pixels; bilinear samples moved by less are the regular ones to a hundredth
RUNAWAY = 0.5  # of the samples moved out
SAMPLES = 100_000  # a convolution's figures are taken from about this many at most


@HOOKS.register_module()
class OffsetStatisticsHook(Hook):
    """Logs the offsets and masks of every deformable layer, and warns about layers that fail.

    Every `interval` iterations, of the images of that iteration, a layer `NAME` has

    - `offsets/NAME/mean`, `offsets/NAME/p95`: mean and 95th percentile of the length of Δp, for a
      convolution in pixels of its input, for RoI pooling in pixels of the image;
    - `offsets/NAME/outside`: the share of samples outside of the image: of a convolution's kernel
      points those that read no pixel, of RoI bins those whose centre is outside;
    - `offsets/NAME/moved_out`: the share of those that are inside without an offset (padding puts
      some outside) and outside with it;
    - `offsets/NAME/mask_mean`, `offsets/NAME/mask_std`: mean and standard deviation of Δm.

    It warns once about each layer that is dead (after a tenth of the schedule the 95th percentile
    has never reached 0.01 pixels), and once about each that has run away (over half of its samples
    moved out).

    The Runner of this repository has it on; without deformable layers it does nothing.

    Args:
        interval: iterations between two measurements.
    """

    priority = "LOW"

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self.largest: dict[str, float] = {}
        self.warned: set[str] = set()
        self.handles: list = []
        self.samples: dict[str, list[Samples]] = {}
        self.measured: set[str] = set()

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, DeformConv2d | DeformRoIPool)
        }
        # The module whose first pass is over the images: it may call a layer for every level.
        self.passes = dict(self.layers)
        for name, module in model.named_modules():
            if isinstance(module, DeformRoIExtractor):
                self.passes |= {own: module for own in self.layers if own.startswith(f"{name}.")}

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.layers and self.every_n_train_iters(runner, self.interval):
            self.samples = {name: [] for name in self.layers}
            self.measured = set()
            for name, layer in self.layers.items():
                self._watch(name, layer)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.handles:
            return
        for handle in self.handles:
            handle.remove()
        self.handles = []
        found = {
            name: figures
            for name, samples in self.samples.items()
            if (figures := _figures(samples))  # none of a map that no RoI was pooled from
        }
        scalars = {
            f"offsets/{name}/{key}": value
            for name, figures in found.items()
            for key, value in figures.items()
        }
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        for name, figures in found.items():
            self.largest[name] = max(self.largest.get(name, 0.0), figures["p95"])
            self._warn(name, figures, (runner.iter + 1) / runner.max_iters)

    def _watch(self, name: str, layer: DeformConv2d | DeformRoIPool) -> None:
        """Measure what `layer` does in its next pass, the one over the images."""
        prediction: dict[str, Tensor] = {}
        samples = self.samples[name]
        conv = isinstance(layer, DeformConv2d)

        def keep(key: str):
            def hook(module, args, output) -> None:
                prediction[key] = output.detach()

            return hook

        def measure(module, args, output) -> None:
            if name in self.measured:
                return
            with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                found = _conv if conv else _pool
                samples.append(found(module, prediction, *args))

        def end(module, args, output) -> None:
            self.measured.add(name)

        predictors = dict(value=layer.conv_offset if conv else layer.offset_fc)
        if not conv and layer.mask_fc is not None:
            predictors["mask"] = layer.mask_fc
        self.handles += [m.register_forward_hook(keep(key)) for key, m in predictors.items()]
        self.handles.append(layer.register_forward_hook(measure))
        self.handles.append(self.passes[name].register_forward_hook(end))

    def _warn(self, name: str, figures: dict[str, float], progress: float) -> None:
        if name in self.warned:
            return
        if figures["moved_out"] > RUNAWAY:
            problem = (
                f"has run away: {figures['moved_out']:.0%} of its samples left the image. "
                "Try a lower learning rate for its offsets (optim_wrapper.paramwise_cfg."
                "custom_keys), clip_grad, or a longer warm-up"
            )
        elif progress > 0.1 and self.largest[name] < DEAD:
            problem = (
                f"is dead: after {progress:.0%} of the schedule its offsets have not moved by "
                f"{DEAD} pixels. Try a higher learning rate for its offsets (optim_wrapper."
                "paramwise_cfg.custom_keys), and see that it is not frozen (frozen_stages) and "
                "that pre-trained weights are loaded"
            )
        else:
            return
        self.warned.add(name)
        print_log(f"{name} {problem}", logger="current", level=logging.WARNING)


# Of n samples: offsets [n, 2] in pixels, masks [n] or None, and which are outside of the image [n],
# with their offsets and without.
Samples = tuple[Tensor, Tensor | None, Tensor, Tensor]


def _figures(samples: list[Samples]) -> dict[str, float]:
    if not sum(len(offset) for offset, *_ in samples):
        return {}
    offset, mask, outside, at_rest = (
        None if parts[0] is None else torch.cat(parts) for parts in zip(*samples, strict=True)
    )
    length = offset.norm(dim=1)
    moved_out = (outside & ~at_rest).sum() / (~at_rest).sum().clamp(min=1)
    figures = [length.mean(), length.quantile(0.95), outside.float().mean(), moved_out]
    names = ["mean", "p95", "outside", "moved_out"]
    if mask is not None:
        figures += [mask.mean(), mask.std(unbiased=False)]
        names += ["mask_mean", "mask_std"]
    return dict(zip(names, torch.stack(figures).tolist(), strict=True))  # one wait for the device


def _conv(layer: DeformConv2d, predicted: dict[str, Tensor], input: Tensor) -> Samples:
    """Of a convolution; its offsets are (dy, dx)."""
    prediction = predicted["value"]
    n, _, rows, columns = prediction.shape
    points = layer.kernel_size[0] * layer.kernel_size[1]
    device = prediction.device
    offset, logits = prediction.float().split_with_sizes(
        [layer.offset_channels, prediction.shape[1] - layer.offset_channels], 1
    )
    # [N, G, K, 2, H, W] -> samples in the order N, G, K, H, W
    offset = offset.reshape(n, layer.deform_groups, points, 2, rows, columns)
    offset = offset.movedim(3, -1).reshape(-1, 2)
    chosen = torch.arange(0, len(offset), _step(len(offset), rows * columns), device=device)
    offset = offset[chosen]
    column, row = chosen % columns, chosen // columns % rows
    point = chosen // (rows * columns) % points
    kernel = (point // layer.kernel_size[1], point % layer.kernel_size[1])
    outside = torch.zeros(len(chosen), dtype=torch.bool, device=device)
    at_rest = outside.clone()
    for axis, place in enumerate((row, column)):
        regular = (
            place * layer.stride[axis] - layer.padding[axis] + kernel[axis] * layer.dilation[axis]
        )
        for position, result in ((regular, at_rest), (regular + offset[:, axis], outside)):
            result |= ~((position > -1) & (position < input.shape[2 + axis]))
    mask = None
    if layer.modulated:
        mask = layer.mask_scale * logits.reshape(-1)[chosen].sigmoid()
    return offset, mask, outside, at_rest


def _step(count: int, pixels: int) -> int:
    """Takes about `SAMPLES` of `count` samples, and all columns and rows of the map alike."""
    step = math.ceil(max(count, 1) / SAMPLES)
    while math.gcd(step, pixels) > 1:
        step += 1
    return step


def _pool(
    layer: DeformRoIPool,
    predicted: dict[str, Tensor],
    input: Tensor,
    rois: Tensor,
    spatial_scale: float | None = None,
) -> Samples:
    """Of the bins of RoI pooling; their offsets are (dx, dy)."""
    ph, pw = layer.output_size
    bins = predicted["value"].float().unflatten(1, (-1, ph, pw))
    scale = layer.spatial_scale if spatial_scale is None else spatial_scale
    rois = rois.float()
    size = rois[:, 3:5] - rois[:, 1:3]  # width, height
    offset = layer.gamma * bins[:, :2] * size[:, :, None, None]
    x = (torch.arange(pw, device=rois.device) + 0.5) / pw
    y = (torch.arange(ph, device=rois.device) + 0.5) / ph
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"))  # [2, ph, pw]
    regular = rois[:, 1:3, None, None] + centres * size[:, :, None, None]
    image = input.new_tensor([input.shape[3], input.shape[2]]).float() / scale
    at_rest, outside = (
        ((place < 0) | (place > image[:, None, None])).any(1).flatten()
        for place in (regular, regular + offset)
    )
    mask = None
    if layer.modulated:
        logits = predicted["mask"].float() if "mask" in predicted else bins[:, 2]
        mask = logits.reshape(-1).sigmoid()
    return offset.movedim(1, -1).reshape(-1, 2), mask, outside, at_rest
