"""What is measured: a function with its tensors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Function:
    """One implementation: `forward()`, and `both()`, which returns output and gradients.

    `backward` takes the output's gradient and the tensors; without it, autograd does that. `exact`
    is the definition in float64 on the same tensors. An element of the output is a sum of
    `products`; if not given, as many as the weight has for it.
    """

    op: Callable
    tensors: dict[str, Tensor]
    grad: Tensor
    backward: Callable | None = None
    exact: "Function | None" = None
    products: int | None = None

    @cached_property
    def leaves(self) -> dict[str, Tensor]:
        return {n: t.detach().requires_grad_(n != "rois") for n, t in self.tensors.items()}

    def to(self, dtype: torch.dtype) -> "Function":
        tensors = {name: t.to(dtype) for name, t in self.tensors.items()}
        return replace(self, tensors=tensors, grad=self.grad.to(dtype))

    def forward(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (self.op(**self.tensors),)

    def both(self) -> tuple[Tensor, ...]:
        if self.backward is not None:
            grads = self.backward(self.grad, **self.tensors)
            return (*self.forward(), *(grad for grad in grads if grad is not None))
        out = self.op(**self.leaves)
        wanted = [leaf for leaf in self.leaves.values() if leaf.requires_grad]
        return (out.detach(), *torch.autograd.grad(out, wanted, self.grad))

    def least_work(self) -> dict[str, int]:
        """Bytes that have to be moved, each tensor once, and operations of the matrix product.

        Backward reads the gradient of the output, the RoIs and, where gradients depend on them, the
        inputs; it writes the gradients of the inputs.
        """
        sizes = {name: t.nbytes for name, t in self.tensors.items()}
        fixed = self.grad.nbytes + sizes.pop("rois", 0)
        inputs = sum(sizes.values())
        backward = fixed + inputs * (1 if list(sizes) == ["input"] else 2)
        products = self.products
        if products is None:
            products = self.tensors["weight"][0].numel() if "weight" in sizes else 0
        operations = 2 * self.grad.numel() * products
        return {
            "forward_bytes": fixed + inputs,
            "both_bytes": fixed + inputs + backward,
            "forward_operations": operations,
            "both_operations": 3 * operations,
        }


def channels_last(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    last = torch.channels_last
    return {n: t.contiguous(memory_format=last) if t.dim() == 4 else t for n, t in tensors.items()}


def between_pixels(offset: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Moved to where `dtype` holds an offset and a position exactly, and never on a pixel.

    There the derivative jumps, and a position that is rounded to the other side would be counted
    as an error. In float32 that is at most 1/128 away. Of 16 bits, odd eighths below 4 need five,
    and with a position below 256, which torchvision adds in float16, the eleven that there are.
    """
    if dtype.itemsize > 2:
        return (offset * 64).round() / 64 + 1 / 128
    return ((offset * 4).floor() / 4 + 1 / 8).clamp(-3.875, 3.875)
