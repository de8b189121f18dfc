"""The layers `LocalDeformKernel2d`, `DeformKernelConv2d` and `GlobalDeformKernel2d`."""

import torch
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from ..checks import check_map, integer, pair
from ..deform_conv.definition import deltas_of, grid_of_kernel
from ..deformable import Deformable, Samples, ZeroConv2d, ZeroLinear, samples_of
from ..in_place import geometry_of, take_over
from ..layout import compute_dtype
from .cond_conv import conv_per_image
from .definition import read_scope, scope_grid
from .function import local_deform_kernel


class _ScopeConv2d(nn.Conv2d, Deformable):
    """A convolution whose weight is the scope that its kernels are read from."""

    sampled = "scope"
    clamp = False

    def __init__(
        self,
        scope_size: int | tuple[int, int],
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        scope_size, stride, padding, dilation = (
            pair("scope_size", scope_size, 1),
            pair("stride", stride, 1),
            pair("padding", padding, 0),
            pair("dilation", dilation, 1),
        )
        super().__init__(
            in_channels, out_channels, scope_size, stride, padding, dilation, groups, bias
        )
        self.scope_size = scope_size
        self.kernel_size = pair("kernel_size", kernel_size, 1)

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, scope_size: int | tuple[int, int] | None = None, **settings
    ) -> "_ScopeConv2d":
        """In the place of a convolution, with its geometry and its weight.

        Args:
            scope_size: one more than the convolution's kernel, if not given.
            settings: all others of the layer.

        Raises:
            ValueError: the convolution's padding is not zeros, a number of pixels.
        """
        geometry = geometry_of(conv)
        if scope_size is None:
            scope_size = tuple(size + 1 for size in conv.kernel_size)
        bias = conv.bias is not None
        layer = cls(scope_size, *geometry, bias=bias, **settings).to(conv.weight)
        return take_over(layer, conv)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Also of a convolution.

        Of all scopes from which that kernel is read at zero offsets, this is the one of least
        norm. Where the scope is larger by an even number, it is the kernel amid zeros; by an odd
        number, what averages to the kernel, as points lie between cells. A scope that is smaller
        than the kernel is fitted to it by least squares.
        """
        name = f"{prefix}weight"
        if name in state_dict and state_dict[name].shape[2:] == self.kernel_size:
            kernel = state_dict[name].double()
            rows, columns = map(torch.linalg.pinv, self._factors_at_rest(kernel))
            state_dict[name] = (rows @ kernel @ columns.mT).to(self.weight.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_weights(self) -> None:
        """Zero what predicts offsets. mmengine calls this after it has initialised all layers."""
        for predictor in self.children():
            predictor.reset_parameters()

    def _scope_samples(self, offset: Tensor) -> Samples:
        """Of kernel offsets [N, R·K·2, H, W]."""
        grid = scope_grid(self.kernel_size, self.scope_size)
        samples = samples_of(deltas_of(offset, None, grid.num_points), grid, self.scope_size)
        if not self.clamp:
            return samples
        y, x, mask, rest_y, rest_x, *bounds = samples
        (y, rest_y), (x, rest_x) = (
            (where.clamp(0, size - 1) for where in pair)
            for pair, size in zip(((y, rest_y), (x, rest_x)), self.scope_size, strict=True)
        )
        return Samples(y, x, mask, rest_y, rest_x, *bounds)

    def _predictor(self, channels: int) -> nn.Conv2d:
        return ZeroConv2d(
            self.in_channels, channels, self.kernel_size, self.stride, self.padding, self.dilation
        )

    def _factors_at_rest(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Of the scope's rows [kh, S_h] and columns [kw, S_w], at zero offsets."""
        y, x = scope_grid(self.kernel_size, self.scope_size).positions((1, 1), like)
        y, x = y[0, :: self.kernel_size[1]], x[0, : self.kernel_size[1]]
        return tuple(
            read_scope(position, size, self.clamp)[0]
            for position, size in zip((y, x), self.scope_size, strict=True)
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scope_size={self.scope_size}"


class LocalDeformKernel2d(_ScopeConv2d):
    """Deformable kernels, one for every output position (arXiv 1910.02940, section 3).

    A convolution on the same input, `rotation_conv`, with the same kernel size, stride, padding and
    dilation, predicts where `local_deform_kernel` reads a kernel from its scope. It starts at zero,
    so that all kernels are the middle of the scope.

    The release's state dicts load; its `inner_conv.weight` is `weight` here, as in the convolution
    that this layer replaces.

    Args:
        scope_size: (S_h, S_w) or an int, of the kernel that is stored; 4 in the release.
        in_channels, out_channels, stride, padding, dilation, groups, bias: as in
            `torch.nn.Conv2d`, except that padding is in pixels and there is no bias by default.
        kernel_size: of the kernels that are applied.
        rotation_groups: R; input channel c is of group c % R, with offsets of its own.
        clamp: hold points within the scope, instead of reading zero outside.

    Shapes: [N, C_in, H, W] -> [N, C_out, H_out, W_out].

    Raises:
        TypeError: a size that is no int (or pair of ints).
        ValueError: a size out of range, or a number of groups that does not divide the channels.
    """

    def __init__(
        self,
        scope_size: int | tuple[int, int],
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        rotation_groups: int = 1,
        clamp: bool = False,
    ) -> None:
        super().__init__(
            scope_size,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
        )
        _check_groups("rotation_groups", rotation_groups, in_channels)
        self.rotation_groups = rotation_groups
        self.clamp = clamp
        self.rotation_conv = self._predictor(2 * rotation_groups * _points(self))
        self.init_weights()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Also of the release, whose DeformKernelConv2d does not move kernels."""
        released = f"{prefix}inner_conv.weight"
        if released in state_dict:
            state_dict[f"{prefix}weight"] = state_dict.pop(released)
            for key, own in self.rotation_conv.state_dict(prefix=f"{prefix}rotation_conv.").items():
                state_dict.setdefault(key, torch.zeros_like(own))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def samples(self, input: Tensor) -> Samples:
        """Of the kernels, in cells of the scope."""
        return self._scope_samples(self.rotation_conv(input))

    def forward(self, input: Tensor) -> Tensor:
        return self._convolve(input, None)

    def _convolve(self, input: Tensor, input_offset: Tensor | None) -> Tensor:
        return local_deform_kernel(
            input,
            self.rotation_conv(input),
            self.weight,
            self.kernel_size,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            input_offset=input_offset,
            clamp=self.clamp,
        )

    def extra_repr(self) -> str:
        groups = f"rotation_groups={self.rotation_groups}, clamp={self.clamp}"
        return f"{super().extra_repr()}, {groups}"


class DeformKernelConv2d(LocalDeformKernel2d):
    """Deformable kernels on a deformable convolution's samples (arXiv 1910.02940, section 3).

    As `LocalDeformKernel2d`, where another convolution, `offset_conv`, predicts where the input is
    sampled (DCNv1, arXiv 1703.06211). Both kinds of offsets start at zero and are learnt; the
    release leaves those of the kernel at zero.

    Args:
        scope_size, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            rotation_groups, clamp: as in `LocalDeformKernel2d`.
        deform_groups: G; groups of input channels that follow each other and share input offsets.

    Shapes: [N, C_in, H, W] -> [N, C_out, H_out, W_out].

    Raises:
        TypeError: a size that is no int (or pair of ints).
        ValueError: a size out of range, or a number of groups that does not divide the channels.
    """

    sampled = "map"

    def __init__(self, *args, deform_groups: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        _check_groups("deform_groups", deform_groups, self.in_channels)
        self.deform_groups = deform_groups
        self.offset_conv = self._predictor(2 * deform_groups * _points(self))
        self.init_weights()

    def samples(self, input: Tensor) -> Samples:
        """Of the input, in its pixels."""
        grid = grid_of_kernel(self.kernel_size, self.stride, self.padding, self.dilation)
        deltas = deltas_of(self.offset_conv(input), None, grid.num_points)
        return samples_of(deltas, grid, input.shape[2:])

    def forward(self, input: Tensor) -> Tensor:
        return self._convolve(input, self.offset_conv(input))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, deform_groups={self.deform_groups}"


class GlobalDeformKernel2d(_ScopeConv2d):
    """Deformable kernels, one for every image (arXiv 1910.02940, section 3).

    A linear layer on the input's global average, `fc`, predicts where a kernel is read from its
    scope, within the scope. It starts at zero.

    Parameters are named as in the release: `weight`, the scope, and `fc`.

    Args:
        scope_size: (S_h, S_w) or an int, of the kernel that is stored; 2 in the release.
        in_channels, out_channels, stride, padding, dilation, groups, bias: as in
            `torch.nn.Conv2d`, except that padding is in pixels and there is no bias by default.
        kernel_size: of the kernels that are applied.

    Shapes: [N, C_in, H, W] -> [N, C_out, H_out, W_out].

    Raises:
        TypeError: a size that is no int (or pair of ints).
        ValueError: a size out of range, or groups that do not divide the channels.
    """

    clamp = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.fc = ZeroLinear(self.in_channels, 2 * _points(self))
        self.init_weights()

    def samples(self, input: Tensor) -> Samples:
        """Of the kernels, in cells of the scope."""
        return self._scope_samples(self.fc(input.mean((2, 3)))[..., None, None])

    def forward(self, input: Tensor) -> Tensor:
        input = check_map(input, self.in_channels)
        kernels = _read_kernels(self.fc(input.mean((2, 3))), self.weight, self.kernel_size)
        return conv_per_image(
            input, kernels, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


@wrap_torch_function(lambda offset, weight, _: (offset, weight))
def _read_kernels(offset: Tensor, weight: Tensor, kernel: tuple[int, int]) -> Tensor:
    """By offsets [N, 2·K] from a scope, within it: [N, C_out, C_in / groups, kh, kw]."""
    # A half's eleven bits are few for a place in a large scope.
    offset = offset.to(compute_dtype(offset)).unflatten(1, (-1, 2))
    scope = tuple(weight.shape[2:])
    rows, columns = (
        read_scope(rest + offset[..., axis], scope[axis], clamp=True)[0]
        for axis, rest in enumerate(scope_grid(kernel, scope).positions((1, 1), offset))
    )
    factors = torch.einsum("nkh,nkw->nkhw", rows, columns).to(weight.dtype)
    return torch.einsum("nkhw,oihw->noik", factors, weight).unflatten(3, kernel)


def _points(layer: nn.Conv2d) -> int:
    return layer.kernel_size[0] * layer.kernel_size[1]


def _check_groups(name: str, groups: int, channels: int) -> None:
    integer(name, groups, 1, channels)
    if channels % groups:
        raise ValueError(f"{name}: expected a divisor of {channels}, got {groups}")
