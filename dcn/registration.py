"""Registers operators and their gradients with PyTorch's dispatcher."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

AUTOCAST_KEYS = {
    "cpu": "AutocastCPU",
    "cuda": "AutocastCUDA",
    "xpu": "AutocastXPU",
    "mps": "AutocastMPS",
}

# By name, in the order of their definition.
OPERATORS: dict[str, "Operator"] = {}


@dataclass(frozen=True)
class Operator:
    """An operator `dcn::name`, differentiable once, and `dcn::name_backward`, which it calls then.

    Its package has a module per backend, `definition` (plain PyTorch, for every device), `cpu` and
    `gpu`, with two functions:

    - `forward(*arguments)` returns the output;
    - `backward(grad, *arguments, output_mask)` returns the gradients of `gradients`, each in the
      layout of `torch.empty_like`. `output_mask` says which of them are wanted; None stands for
      those that are not.

    Args:
        name: of the operator.
        package: where its modules are, such as `dcn.deform_conv`.
        arguments: of the schema, tensors first.
        gradients: names of the tensors that have a gradient.
        fake: gives an output of the right shape, dtype and layout, without its values.
        flops: operations of the forward pass, from the shapes of the arguments and `out`; the
            backward pass is taken to have twice as many.
        float32: names of the tensors that may be float32 whatever the others are; autocast, which
            casts all others, leaves them so.
    """

    name: str
    package: str
    arguments: str
    gradients: tuple[str, ...]
    fake: Callable[..., Tensor]
    flops: Callable[..., int]
    float32: tuple[str, ...] = ()

    def register(self) -> None:
        """With the definition; `add_kernels` gives a device its own."""
        OPERATORS[self.name] = self
        returned = ", ".join(["Tensor"] * len(self.gradients))
        backward = f"{self.name}_backward"
        schemas = {
            self.name: f"({self.arguments}) -> Tensor",
            backward: f"(Tensor grad, {self.arguments}, bool[{len(self.gradients)}] output_mask)"
            f" -> ({returned})",
        }
        for name, schema in schemas.items():
            # The strides of a fake are those of the kernels where those of the arguments are.
            torch.library.define(f"dcn::{name}", schema, tags=torch.Tag.needs_exact_strides)
        definition = self.implementation("definition")
        self.add_kernels("CompositeExplicitAutograd", definition.forward, definition.backward)
        torch.library.register_fake(f"dcn::{self.name}")(self.fake)
        torch.library.register_fake(f"dcn::{backward}")(_every_tensor(self._fake_backward))
        torch.library.register_autograd(
            f"dcn::{self.name}", self._backward, setup_context=self._setup_context
        )
        torch.library.register_autograd(f"dcn::{backward}", _no_double_backward)
        overloads = [getattr(torch.ops.dcn, name) for name in schemas]
        for key in AUTOCAST_KEYS.values():
            kernels = (
                _autocast(overloads[0].default, key, self.float32),
                # Takes what the forward pass saw, but what it calls must not be cast either.
                _without_autocast(overloads[1].default, key),
            )
            for name, kernel in zip(schemas, kernels, strict=True):
                torch.library.impl(f"dcn::{name}", key)(kernel)

    def has(self, backend: str) -> bool:
        return importlib.util.find_spec(f"{self.package}.{backend}") is not None

    def implementation(self, backend: str) -> ModuleType:
        return importlib.import_module(f"{self.package}.{backend}")

    def add_kernels(
        self,
        key: str,
        forward: Callable,
        backward: Callable,
        library: torch.library.Library | None = None,
    ) -> None:
        """For a device type, or a dispatch key; in a `library` in place of those that are there."""
        for name, kernel in (("", forward), ("_backward", _every_tensor(backward))):
            if library is None:
                torch.library.impl(f"dcn::{self.name}{name}", key)(kernel)
            else:
                library.impl(f"{self.name}{name}", kernel, key, allow_override=True)

    @property
    def argument_names(self) -> list[str]:
        return [argument.split()[-1] for argument in self.arguments.split(", ")]

    def _fake_backward(self, grad, *arguments):
        *arguments, output_mask = arguments
        given = dict(zip(self.argument_names, arguments, strict=True))
        return tuple(
            torch.empty_like(given[name]) if wanted else None
            for name, wanted in zip(self.gradients, output_mask, strict=True)
        )

    def _setup_context(self, ctx, inputs, output) -> None:
        tensors = self.arguments.count("Tensor")
        ctx.save_for_backward(*inputs[:tensors])
        ctx.rest = inputs[tensors:]

    def _backward(self, ctx, grad):
        names = self.argument_names
        wanted = dict(zip(names, ctx.needs_input_grad, strict=False))
        output_mask = [wanted[name] for name in self.gradients]
        operator = getattr(torch.ops.dcn, f"{self.name}_backward")
        found = dict(
            zip(
                self.gradients,
                operator(grad, *ctx.saved_tensors, *ctx.rest, output_mask),
                strict=True,
            )
        )
        return tuple(found[name] if name in found and wanted[name] else None for name in names)


def _every_tensor(backward: Callable) -> Callable:
    """A schema cannot return None: an empty tensor takes its place."""

    def kernel(grad, *arguments):
        return tuple(
            grad.new_empty(0) if gradient is None else gradient
            for gradient in backward(grad, *arguments)
        )

    return kernel


def _no_double_backward(ctx, *grads):
    raise NotImplementedError("dcn operators are differentiable once: no double backward")


def _autocast(overload: Callable, key: str, float32: tuple[str, ...]) -> Callable:
    kept = [argument.name in float32 for argument in overload._schema.arguments]
    run = _without_autocast(overload, key)

    def kernel(*args):
        return run(
            *(
                arg.to(autocast_dtype(arg))
                if isinstance(arg, Tensor) and not (keep and arg.dtype == torch.float32)
                else arg
                for arg, keep in zip(args, kept, strict=True)
            )
        )

    return kernel


def _without_autocast(overload: Callable, key: str) -> Callable:
    exclude = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args):
        with torch._C._ExcludeDispatchKeyGuard(exclude):
            return overload(*args)

    return kernel


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """What autocast makes of it where it is on; float64 is left alone, as PyTorch does."""
    device_type = tensor.device.type
    if (
        tensor.dtype == torch.float64
        or device_type not in AUTOCAST_KEYS
        or not torch.is_autocast_enabled(device_type)
    ):
        return tensor.dtype
    return torch.get_autocast_dtype(device_type)
