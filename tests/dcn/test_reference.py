"""The definition runs on devices that are not here to run it on."""

from importlib import resources

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcn.deform_conv import definition as deform_conv
from dcn.roi_pool import definition as deform_roi_pool
from tests.dcn.definition import conv_tensors, pool_tensors

COMPOSITE = {
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "CompositeImplicitAutograd",
}


@pytest.fixture(scope="module")
def on_mps():
    """Names of PyTorch's operators that have a kernel for Apple's GPUs, or need none."""
    yaml = pytest.importorskip("yaml")
    file = resources.files("torchgen") / "packaged/ATen/native/native_functions.yaml"
    functions = {f["func"].partition("(")[0]: f for f in yaml.safe_load(file.read_text())}

    def keys(name: str) -> set[str]:
        dispatch = functions[name].get("dispatch", {})
        own = {key.strip() for names in dispatch for key in names.split(",")}
        delegate = functions[name].get("structured_delegate")
        return own | keys(delegate) if delegate else own or COMPOSITE

    return {name for name in functions if keys(name) & {"MPS", *COMPOSITE}}


class LikeMPS(TorchDispatchMode):
    """Raises for what Apple's GPUs have no kernel or no type for."""

    def __init__(self, supported: set[str]):
        super().__init__()
        self.supported = supported

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name().removeprefix("aten::")
        if name not in self.supported:
            raise NotImplementedError(f"{name} has no kernel for MPS")
        result = operator(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            assert not isinstance(leaf, torch.Tensor) or leaf.dtype != torch.float64, name
        return result


def test_what_mps_has(on_mps):
    assert {"embedding_bag.padding_idx", "sort.stable", "index_add_", "add.Tensor"} <= on_mps
    with LikeMPS(on_mps), pytest.raises(NotImplementedError, match="segment_reduce"):
        torch.segment_reduce(torch.ones(3), "sum", lengths=torch.tensor([1, 2]), unsafe=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modulated", [False, True])
def test_deform_conv2d_on_mps(modulated, dtype, on_mps):
    geometry = dict(stride=(2, 1), padding=(1, 1), dilation=(1, 1))
    shape = dict(n=2, c_in=4, c_out=6, size=(5, 6), kernel=(3, 3), groups=2, deform_groups=2)
    rest = dict(modulated=modulated, bias=True, layout=("channels_last", "sliced"), dtype=dtype)
    tensors, grad = conv_tensors(geometry | shape | rest | dict(seed=0))
    x, offset, weight, bias, mask = tensors.values()
    pairs = [list(pair) for pair in geometry.values()]
    with LikeMPS(on_mps):
        deform_conv.forward(x, offset, weight, bias, mask, *pairs)
        deform_conv.backward(grad, x, offset, weight, bias, mask, *pairs, [True] * 4 + [modulated])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("deformed", [False, True])
def test_deform_roi_pool_on_mps(deformed, sampling_ratio, dtype, on_mps):
    case = dict(n=2, channels=5, size=(7, 9), rois=6, output_size=(2, 3), dtype=dtype, seed=1)
    case |= dict(offset=deformed, mask=deformed, layout=("contiguous", "contiguous"))
    tensors, grad = pool_tensors(case)
    arguments = (*tensors.values(), [2, 3], 0.5, sampling_ratio, 0.25)
    with LikeMPS(on_mps):
        deform_roi_pool.forward(*arguments)
        deform_roi_pool.backward(grad, *arguments, [True, deformed, deformed])
