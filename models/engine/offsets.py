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
        self.found: dict[str, dict[str, float]] = {}

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, DeformConv2d | DeformRoIPool)
        }

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.layers and self.every_n_train_iters(runner, self.interval):
            self.found = {}
            for name, layer in self.layers.items():
                self._watch(name, layer)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.handles:
            return
        for handle in self.handles:
            handle.remove()
        self.handles = []
        scalars = {
            f"offsets/{name}/{key}": value
            for name in self.layers  # in the network's order
            for key, value in self.found.get(name, {}).items()
        }
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        for name, figures in self.found.items():
            if not figures:  # a map of the pyramid that no RoI was pooled from
                continue
            self.largest[name] = max(self.largest.get(name, 0.0), figures["p95"])
            self._warn(name, figures, (runner.iter + 1) / runner.max_iters)

    def _watch(self, name: str, layer: DeformConv2d | DeformRoIPool) -> None:
        """Measure what `layer` does in its next pass, the one over the images."""
        prediction: dict[str, Tensor] = {}

        def keep(module, args, output) -> None:
            prediction["value"] = output.detach()

        def measure(module, args, output) -> None:
            if name in self.found:
                return
            self.found[name] = {}
            with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                if isinstance(module, DeformConv2d):
                    samples = _conv(module, args[0], prediction["value"])
                else:
                    samples = _pool(module, *args, prediction)
                if len(samples[0]):
                    self.found[name] = _figures(*samples)

        conv = isinstance(layer, DeformConv2d)
        source = layer.conv_offset if conv else layer.offset_fc
        self.handles += [source.register_forward_hook(keep), layer.register_forward_hook(measure)]
        if not conv and layer.mask_fc is not None:

            def keep_mask(module, args, output) -> None:
                prediction["mask"] = output.detach()

            self.handles.append(layer.mask_fc.register_forward_hook(keep_mask))

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


def _figures(
    offset: Tensor, mask: Tensor | None, outside: Tensor, at_rest: Tensor
) -> dict[str, float]:
    length = offset.norm(dim=1)
    moved_out = (outside & ~at_rest).sum() / (~at_rest).sum().clamp(min=1)
    figures = [length.mean(), length.quantile(0.95), outside.float().mean(), moved_out]
    names = ["mean", "p95", "outside", "moved_out"]
    if mask is not None:
        figures += [mask.mean(), mask.std(unbiased=False)]
        names += ["mask_mean", "mask_std"]
    return dict(zip(names, torch.stack(figures).tolist(), strict=True))  # one wait for the device


def _conv(layer: DeformConv2d, input: Tensor, prediction: Tensor) -> Samples:
    """Of a convolution; its offsets are (dy, dx)."""
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
    mask = logits.reshape(-1)[chosen].sigmoid() if layer.modulated else None
    return offset, mask, outside, at_rest


def _step(count: int, pixels: int) -> int:
    """Takes about `SAMPLES` of `count` samples, and all columns and rows of the map alike."""
    step = math.ceil(max(count, 1) / SAMPLES)
    while math.gcd(step, pixels) > 1:
        step += 1
    return step


def _pool(
    layer: DeformRoIPool, input: Tensor, rois: Tensor, prediction: dict[str, Tensor]
) -> Samples:
    """Of the bins of RoI pooling; their offsets are (dx, dy)."""
    ph, pw = layer.output_size
    bins = prediction["value"].float().unflatten(1, (-1, ph, pw))
    rois = rois.float()
    size = rois[:, 3:5] - rois[:, 1:3]  # width, height
    offset = layer.gamma * bins[:, :2] * size[:, :, None, None]
    x = (torch.arange(pw, device=rois.device) + 0.5) / pw
    y = (torch.arange(ph, device=rois.device) + 0.5) / ph
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"))  # [2, ph, pw]
    regular = rois[:, 1:3, None, None] + centres * size[:, :, None, None]
    image = input.new_tensor([input.shape[3], input.shape[2]]).float() / layer.spatial_scale
    at_rest, outside = (
        ((place < 0) | (place > image[:, None, None])).any(1).flatten()
        for place in (regular, regular + offset)
    )
    mask = None
    if layer.modulated:
        logits = prediction["mask"].float() if "mask" in prediction else bins[:, 2]
        mask = logits.reshape(-1).sigmoid()
    return offset.movedim(1, -1).reshape(-1, 2), mask, outside, at_rest
