"""dcn.onnx: what runtimes compute from its translations is what the operators compute."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import dcn
from tests.dcn import strategies
from tests.dcn.definition import OPERATOR_CASES

onnx = pytest.importorskip("onnx", reason="requirements-export.txt is not installed")
pytest.importorskip("onnxscript", reason="requirements-export.txt is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="requirements-export.txt is not installed")
openvino = pytest.importorskip("openvino", reason="requirements-export.txt is not installed")

from dcn.onnx import translations  # noqa: E402

few = settings(  # an export takes a second
    max_examples=5,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Call(nn.Module):
    """An operator with the tensors that are there."""

    def __init__(self, name, given, settings):
        super().__init__()
        self.operator = getattr(torch.ops.dcn, name).default
        self.given, self.settings = given, settings

    def forward(self, *tensors):
        tensors = iter(tensors)
        return self.operator(*(next(tensors) if g else None for g in self.given), *self.settings)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    file = str(tmp_path_factory.mktemp("onnx") / "model.onnx")

    def export(module, tensors, opset=20, deform_conv=True, **more):
        torch.onnx.export(
            module.eval(),
            tensors,
            file,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            custom_translation_table=translations(opset, deform_conv),
            **more,
        )
        return file

    return export


def run(runtime, file, tensors):
    if runtime == "onnxruntime":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(file, options)
        names = [given.name for given in session.get_inputs()]
        return session.run(None, dict(zip(names, (t.numpy() for t in tensors), strict=True)))[0]
    # On a CPU it may compute in bfloat16 where it is not told otherwise.
    compiled = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([t.numpy() for t in tensors])[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("runtime", "deform_conv"),
    [("onnxruntime", True), ("onnxruntime", False), ("openvino", False)],
)
@pytest.mark.parametrize("name", OPERATOR_CASES)
@few
@given(data=st.data())
def test_runtimes_compute_what_the_operator_does(name, runtime, deform_conv, export, data):
    case = data.draw(getattr(strategies, OPERATOR_CASES[name].strategy)())
    assume(case["n"] > 0)
    tensors, _ = OPERATOR_CASES[name].tensors(case | {"dtype": torch.float32})
    assume(all(t is None or t.numel() for t in tensors.values()))
    # What is not finite is left to the runtime.
    tensors = {
        k: None if t is None else t.nan_to_num(0, 3, -3).clamp(-40, 40) for k, t in tensors.items()
    }
    if name == "deform_roi_pool":  # RoIs that are inverted differ
        first, second = tensors["rois"][:, 1:].unflatten(1, (2, 2)).unbind(1)
        first, second = first.minimum(second), first.maximum(second)
        if case["sampling_ratio"] == 0:  # and those of no area, or far larger than the map
            first = first.clamp(-2, 0)
            second = second.clamp(0.5, 2 * min(case["size"]))
        tensors["rois"] = torch.cat((tensors["rois"][:, :1], first, second), 1)
    call = Call(
        name, [t is not None for t in tensors.values()], OPERATOR_CASES[name].settings(case)
    )
    tensors = tuple(t.contiguous() for t in tensors.values() if t is not None)
    found = run(runtime, export(call, tensors, deform_conv=deform_conv), tensors)
    expected = call(*tensors)
    tolerance = 1e-5 * max(1, expected.abs().max().item())
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=tolerance)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", dcn.LAYERS)
def test_every_layer_is_exported(name, export):
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16 if name.startswith("dk") else 1)
    layer = dcn.LAYERS[name].from_conv(conv)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    image = torch.randn(2, 16, 9, 12)
    found = run("onnxruntime", export(layer, (image,)), (image,))
    torch.testing.assert_close(torch.from_numpy(found), layer(image), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_batch_and_rois_may_be_dynamic(export):
    torch.manual_seed(0)
    conv, pool = dcn.DeformConv2d(8, 8, 3, padding=1), dcn.DeformRoIPool(3, 8, 0.5, 2)
    for parameter in (*conv.parameters(), *pool.parameters()):
        nn.init.normal_(parameter, std=0.2)

    class Both(nn.Module):
        def forward(self, images, rois):
            return pool(conv(images), rois)

    images, rois = torch.randn(2, 8, 9, 12), torch.tensor([[0, 1.0, 2, 9, 8], [1, 3, 3, 20, 15]])
    dynamic = ({0: torch.export.Dim.DYNAMIC},) * 2
    file = export(Both(), (images, rois), dynamic_shapes=dynamic)
    images, rois = torch.randn(3, 8, 9, 12), torch.cat((rois, rois + 1, rois[:1]))
    found = run("onnxruntime", file, (images, rois))
    expected = Both()(images, rois)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    none = run("onnxruntime", file, (images, rois[:0]))
    assert none.shape == (0, 8, 3, 3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_convolution_without_bias_is_given_one(export):
    layer = dcn.DeformConv2d(4, 4, 3, bias=False)
    graph = onnx.load(export(layer, (torch.randn(1, 4, 8, 8),))).graph
    (node,) = (node for node in graph.node if node.op_type == "DeformConv")
    assert len(node.input) == 5
    assert all(node.input)
    found = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    assert not np.any(found[node.input[3]])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("deform_conv", [True, False])
def test_bfloat16_from_opset_22(deform_conv, export):
    layer, image = dcn.DeformConv2d(4, 4, 3).bfloat16(), torch.randn(1, 4, 8, 8).bfloat16()
    with pytest.raises(
        Exception, match=r"dcn.deform_conv2d: bfloat16 needs opset 22, got opset 21"
    ):
        export(layer, (image,), opset=21, deform_conv=deform_conv)
    onnx.checker.check_model(export(layer, (image,), opset=22, deform_conv=deform_conv), True)


def test_an_opset_without_deform_conv_is_refused():
    with pytest.raises(ValueError, match="opset_version: 18 has no DeformConv, which came with 19"):
        translations(18)
