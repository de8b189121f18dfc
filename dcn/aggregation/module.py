"""The layers `DCNv3` and `DCNv4`, with the arguments and parameter names of their releases."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from ..checks import check_map, integer, number
from ..deformable import Deformable, Samples, ZeroLinear, samples_of
from ..in_place import geometry_of
from .definition import deltas_of, grid_of, packed_channels
from .function import dcnv3, dcnv4

_ACTIVATIONS = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU}


class DCNv3(nn.Module, Deformable):
    """DCNv3 (InternImage, arXiv 2211.05778, section 3.1).

    A depthwise convolution with a norm and an activation predicts offsets and masks, and the masks
    are normalised by a softmax over the points of a group. `dcnv3` samples projected channels and
    sums them up, which are projected once more. Offsets start at zero, masks at 1/K.

    Parameters are named as in the release, whose weights load unchanged. Its stride works here: the
    depthwise convolution then has it, too.

    Args:
        channels: C.
        kernel_size, stride, pad, dilation, group, offset_scale, remove_center: as in `dcnv3`. pad
            is half of what the kernel covers, so that the map keeps its size at a stride of 1.
        dw_kernel_size: of the depthwise convolution, odd; `kernel_size` if not given.
        act_layer: 'GELU', 'ReLU' or 'SiLU'.
        norm_layer: 'LN' or 'BN'.
        center_feature_scale: mix the result with the projected input, by a weight that is predicted
            for every position and group. Only at a stride of 1.

    Shapes: [N, H, W, C] -> [N, H_out, W_out, C].

    Raises:
        TypeError: no int.
        ValueError: group does not divide channels, or a setting that is not among those above.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        super().__init__()
        _check(
            channels, kernel_size, stride, pad, dilation, group, offset_scale, center_feature_scale
        )
        if act_layer not in _ACTIVATIONS:
            raise ValueError(f"act_layer: expected one of {[*_ACTIVATIONS]}, got {act_layer!r}")
        if norm_layer not in ("LN", "BN"):
            raise ValueError(f"norm_layer: expected 'LN' or 'BN', got {norm_layer!r}")
        self.settings = (kernel_size, stride, pad, dilation, group, offset_scale, remove_center)
        self.group = group
        if dw_kernel_size is None:
            dw_kernel_size = kernel_size
        points = group * (kernel_size**2 - remove_center)
        norm = (_ChannelsLast(), nn.LayerNorm(channels, eps=1e-6))
        if norm_layer == "BN":
            norm = (nn.BatchNorm2d(channels), _ChannelsLast())
        self.dw_conv = nn.Sequential(
            _depthwise(channels, dw_kernel_size, stride),
            nn.Sequential(*norm),
            _ACTIVATIONS[act_layer](),
        )
        self.offset = ZeroLinear(channels, points * 2)
        self.mask = ZeroLinear(channels, points)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.center_feature_scale = center_feature_scale
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.empty(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.empty(group))
        self.init_weights()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **settings) -> "InPlaceOfConv2d":
        """In place of a square convolution, whose weight is not used; 16 channels a group."""
        return InPlaceOfConv2d(cls(**_geometry(conv), **(_groups(conv) | settings)), conv)

    def init_weights(self) -> None:
        """mmengine calls this after it has initialised all layers."""
        self.offset.reset_parameters()
        self.mask.reset_parameters()
        _xavier(self.input_proj, self.output_proj)
        _zero_centre(self)

    def _of_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets and masks, as `dcnv3` takes them."""
        mask = self.mask(features).unflatten(3, (self.group, -1)).softmax(-1).flatten(3)
        return self.offset(features), mask

    def samples(self, input: Tensor) -> Samples:
        # A BatchNorm that is trained must not see the input twice: it updates copies.
        buffers = {name: buffer.clone() for name, buffer in self.dw_conv.named_buffers()}
        features = torch.func.functional_call(self.dw_conv, buffers, input.permute(0, 3, 1, 2))
        return _samples(input, *self._of_features(features), self.settings)

    def forward(self, input: Tensor) -> Tensor:
        x = self.input_proj(input)
        features = self.dw_conv(input.permute(0, 3, 1, 2))
        out = dcnv3(x, *self._of_features(features), *self.settings)
        if self.center_feature_scale:
            out = _mixed(
                out,
                x,
                F.linear(
                    features,
                    self.center_feature_scale_proj_weight,
                    self.center_feature_scale_proj_bias,
                ),
            )
        return self.output_proj(out)


class DCNv4(nn.Module, Deformable):
    """DCNv4 (arXiv 2401.06197, section 3.1).

    A linear layer predicts offsets and weights, which are not normalised, in one tensor. Offsets
    start at zero. So do weights, as in the release: a fresh layer puts out its last bias, and
    `value_proj` has no gradient in the first step. That suits a residual branch; before a ReLU such
    a layer would never learn, so `from_conv` lets weights start at 1/K.

    Parameters are named as in the release, whose weights load unchanged. Its stride works here:
    offsets are predicted at every stride-th pixel.

    Args:
        channels: C.
        kernel_size, stride, pad, dilation, group, offset_scale, remove_center: as in `dcnv4`. pad
            is half of what the kernel covers, so that the map keeps its size at a stride of 1.
        dw_kernel_size: of a depthwise convolution before the linear layer, odd; None for none.
        center_feature_scale: mix the result with the projected input, by a weight that is predicted
            of the result for every position and group. Only at a stride of 1.
        output_bias: whether `output_proj` has a bias.
        without_pointwise: leave out both projections.
        mask_start: where the weights of all points start.

    Shapes: [N, L, C] -> [N, L_out, C], L = H·W pixels row by row, as in the release; or
    [N, H, W, C] -> [N, H_out, W_out, C].

    Raises:
        TypeError: no int.
        ValueError: group does not divide channels, or a setting that is not among those above.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        mask_start: float = 0.0,
    ) -> None:
        super().__init__()
        _check(
            channels, kernel_size, stride, pad, dilation, group, offset_scale, center_feature_scale
        )
        self.settings = (kernel_size, stride, pad, dilation, group, offset_scale, remove_center)
        self.stride = stride
        self.offset_mask_dw = None
        if dw_kernel_size is not None:
            self.offset_mask_dw = _depthwise(channels, dw_kernel_size, stride)
        points = kernel_size**2 - remove_center
        self.offset_mask = _OffsetMask(channels, group, points, number("mask_start", mask_start))
        self.value_proj = self.output_proj = None
        if not without_pointwise:
            self.value_proj = nn.Linear(channels, channels)
            self.output_proj = nn.Linear(channels, channels, bias=output_bias)
        self.center_feature_scale = center_feature_scale
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.empty(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.empty(group))
        self.init_weights()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **settings) -> "InPlaceOfConv2d":
        """In place of a square convolution, whose weight is not used; 16 channels a group.

        Weights start at the mean of the points.
        """
        geometry = _geometry(conv)
        points = geometry["kernel_size"] ** 2 - settings.get("remove_center", False)
        settings = _groups(conv) | dict(mask_start=1 / max(points, 1)) | settings
        return InPlaceOfConv2d(cls(**geometry, **settings), conv)

    def init_weights(self) -> None:
        """mmengine calls this after it has initialised all layers."""
        self.offset_mask.reset_parameters()
        if self.value_proj is not None:
            _xavier(self.value_proj, self.output_proj)
        _zero_centre(self)

    def _predict(self, image: Tensor) -> Tensor:
        """Offsets and weights, as `dcnv4` takes them."""
        if self.offset_mask_dw is not None:
            features = self.offset_mask_dw(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        else:
            features = image[:, :: self.stride, :: self.stride]
        return self.offset_mask(features)

    def samples(self, input: Tensor, shape: tuple[int, int] | None = None) -> Samples:
        image = _as_map(input, shape)
        return _samples(image, self._predict(image), None, self.settings)

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """`shape` is (H, W) of [N, L, C]; without it the map is a square."""
        image = _as_map(input, shape)
        x = image if self.value_proj is None else self.value_proj(image)
        out = dcnv4(x, self._predict(image), *self.settings)
        if self.center_feature_scale:
            out = _mixed(
                out,
                x,
                F.linear(
                    out,
                    self.center_feature_scale_proj_weight,
                    self.center_feature_scale_proj_bias,
                ),
            )
        if self.output_proj is not None:
            out = self.output_proj(out)
        return _like_input(out, input)


class _OffsetMask(nn.Linear):
    """Predicts offsets, which start at zero, and weights, which start at `mask_start`."""

    def __init__(self, channels: int, group: int, points: int, mask_start: float) -> None:
        self.group, self.points, self.mask_start = group, points, mask_start
        super().__init__(channels, packed_channels(group, points))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        per_group = self.bias.detach()[: 3 * self.group * self.points].unflatten(
            0, (self.group, -1)
        )
        per_group[:, 2 * self.points :] = self.mask_start


class InPlaceOfConv2d(nn.Module, Deformable):
    """A DCNv3 or DCNv4 that takes and gives what a convolution does.

    Shapes: [N, C_in, H, W] -> [N, C_out, H_out, W_out]; `output_proj` gives C_out channels.
    """

    def __init__(self, layer: DCNv3 | DCNv4, conv: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.in_channels = conv.in_channels
        # Read where a map's pixels are placed on the image.
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation = conv.padding, conv.dilation
        if conv.out_channels != conv.in_channels:
            if layer.output_proj is None:
                raise ValueError(
                    f"without_pointwise: {conv.in_channels} channels stay as many, and the "
                    f"convolution has {conv.out_channels}"
                )
            bias = layer.output_proj.bias is not None
            layer.output_proj = nn.Linear(conv.in_channels, conv.out_channels, bias=bias)
            _xavier(layer.output_proj)
        self.to(conv.weight).train(conv.training)

    def init_weights(self) -> None:
        """mmengine calls this after it has initialised all layers."""
        self.layer.init_weights()

    def samples(self, input: Tensor) -> Samples:
        return self.layer.samples(input.permute(0, 2, 3, 1))

    def forward(self, input: Tensor) -> Tensor:
        input = check_map(input, self.in_channels)
        return self.layer(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _geometry(conv: nn.Conv2d) -> dict[str, int]:
    """As the layers' arguments, which are the same along both axes."""
    channels, _, kernel_size, stride, padding, dilation, _ = geometry_of(conv)
    pairs = dict(kernel_size=kernel_size, stride=stride, pad=padding, dilation=dilation)
    for name, value in pairs.items():
        if len(set(value)) > 1:
            raise ValueError(f"conv: expected the same {name} along both axes, got {value}")
    return dict(channels=channels, **{name: value[0] for name, value in pairs.items()})


def _groups(conv: nn.Conv2d) -> dict[str, int]:
    """The most groups of at least 16 channels each, as in InternImage."""
    most = max(conv.in_channels // 16, 1)
    return dict(group=next(g for g in range(most, 0, -1) if conv.in_channels % g == 0))


@wrap_torch_function(lambda input, shape: (input,))
def _as_map(input: Tensor, shape: tuple[int, int] | None) -> Tensor:
    """[N, L, C] as [N, H, W, C]."""
    if input.dim() == 4 and shape is None:
        return input
    if input.dim() != 3:
        raise ValueError(f"input: expected [N, L, C] or [N, H, W, C], got {tuple(input.shape)}")
    length = input.shape[1]
    if shape is None:
        side = round(length**0.5)
        shape = (side, side)
    if len(shape) != 2 or min(shape) < 0 or shape[0] * shape[1] != length:
        raise ValueError(f"shape: {tuple(shape)} is not that of {length} pixels")
    return input.unflatten(1, tuple(shape))


@wrap_torch_function(lambda out, input: (out, input))
def _like_input(out: Tensor, input: Tensor) -> Tensor:
    return out if input.dim() == 4 else out.flatten(1, 2)


def _samples(input: Tensor, offset: Tensor, mask: Tensor | None, settings: tuple) -> Samples:
    kernel_size, stride, pad, dilation, group, *rest = settings
    grid = grid_of(*([size] * 2 for size in (kernel_size, stride, pad, dilation)), *rest)
    return samples_of(deltas_of(offset, mask, group, grid), grid, input.shape[1:3])


class _ChannelsLast(nn.Module):
    """[N, C, H, W] -> [N, H, W, C]."""

    def forward(self, input: Tensor) -> Tensor:
        return input.permute(0, 2, 3, 1)


def _check(
    channels: int,
    kernel_size: int,
    stride: int,
    pad: int,
    dilation: int,
    group: int,
    offset_scale: float,
    center_feature_scale: bool,
) -> None:
    integer("channels", channels, 1, 2**31)
    integer("kernel_size", kernel_size, 1, 2**15)
    integer("stride", stride, 1, 2**31)
    integer("dilation", dilation, 1, 2**31)
    integer("pad", pad, 0, 2**31)
    integer("group", group, 1, channels)
    number("offset_scale", offset_scale)
    if channels % group:
        raise ValueError(f"group: expected a divisor of {channels}, got {group}")
    if 2 * pad != dilation * (kernel_size - 1):
        raise ValueError(
            f"pad: expected half of what the kernel covers, {dilation * (kernel_size - 1) / 2:g}, "
            f"got {pad}"
        )
    if center_feature_scale and stride != 1:
        raise ValueError(f"center_feature_scale: needs a stride of 1, got {stride}")


def _depthwise(channels: int, kernel_size: int, stride: int) -> nn.Conv2d:
    if integer("dw_kernel_size", kernel_size, 1, 2**15) % 2 == 0:
        raise ValueError(f"dw_kernel_size: expected an odd number, got {kernel_size}")
    return nn.Conv2d(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels)


def _mixed(out: Tensor, x: Tensor, logits: Tensor) -> Tensor:
    """Of [N, H, W, C] each, by sigmoid(logits) [N, H, W, G]."""
    weight = logits.sigmoid().repeat_interleave(out.shape[3] // logits.shape[3], 3)
    return out * (1 - weight) + x * weight


def _zero_centre(layer: DCNv3 | DCNv4) -> None:
    if layer.center_feature_scale:
        nn.init.zeros_(layer.center_feature_scale_proj_weight)
        nn.init.zeros_(layer.center_feature_scale_proj_bias)


def _xavier(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
