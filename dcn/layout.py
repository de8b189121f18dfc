"""In which memory layouts and dtypes operators compute, and give back their results."""

import torch
from torch import Tensor


def memory_format(input: Tensor) -> torch.memory_format:
    """Of the output: channels-last where `F.conv2d` would choose it, else contiguous.

    That goes by the order of the strides, so that half of the channels of a channels-last map are
    channels-last as well.
    """
    if not input.is_contiguous() and _strides_like_channels_last(input):
        return torch.channels_last
    return torch.contiguous_format


def _strides_like_channels_last(input: Tensor) -> bool:
    """PyTorch's rule (`is_channels_last_strides_2d`) for 4 dimensions."""
    shape, strides = input.shape, input.stride()
    if strides[1] == 0:
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        if shape[dim] == 0 or strides[dim] < least:
            return False
        if dim == 0 and least == strides[1]:  # N × 1 × 1 × 1 could be either
            return False
        least = strides[dim] * max(shape[dim], 1)
    return True


def compute_dtype(input: Tensor) -> torch.dtype:
    """16-bit types are sampled and summed in float32."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def like(values: Tensor, tensor: Tensor) -> Tensor:
    """The values in the dtype and layout of `torch.empty_like(tensor)`."""
    values = values.to(tensor.dtype)
    result = torch.empty_like(tensor)
    return values if values.stride() == result.stride() else result.copy_(values)
