import pytest
import torch
from dcndet.models.backbones import SmallCNN
from dcndet.models.classifiers import ImageClassifier
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.nn import functional as F

from dcn import LAYERS


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


def test_orders_and_pooling():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 12, 12)
    net = SmallCNN([4, 6], [2, 1], pool_after=[1], norm_first=False)
    y = F.max_pool2d(net.norms[0](net.convs[0](x).relu()), 2)
    [out] = net(x)
    torch.testing.assert_close(out, net.norms[1](net.convs[1](y).relu()))
    assert out.shape == (2, 6, 3, 3)
    net = SmallCNN([4, 6], pool_after=[2])
    assert net.convs[0].bias is None
    y = net.norms[0](net.convs[0](x)).relu()
    torch.testing.assert_close(net(x)[0], F.max_pool2d(net.norms[1](net.convs[1](y)).relu(), 2))


@pytest.mark.parametrize("conv", [*LAYERS])
def test_every_layer_learns_in_a_channels_last_network(conv):
    torch.manual_seed(0)
    net = SmallCNN([16, 16, 32], [1, 2, 1], deform=dict(layers=2, conv=conv))
    net.to(memory_format=torch.channels_last)
    step = torch.optim.SGD(net.parameters(), 0.1)
    x, wanted = torch.randn(2, 1, 14, 14), torch.randn(2, 32, 7, 7)
    losses = []
    for _ in range(3):  # behind a predictor that starts at zero, gradients come with the second
        step.zero_grad()
        [out] = net(x)
        losses.append(F.mse_loss(out, wanted))
        losses[-1].backward()
        step.step()
    assert not [name for name, p in net.named_parameters() if not p.grad.any()]
    assert losses[-1] < losses[0]
    plain = SmallCNN([16, 16, 32], [1, 2, 1])
    assert type(net.convs[0]) is type(plain.convs[0])
    if conv not in ("dcnv3", "dcnv4"):  # which have no such weight
        found = net.load_state_dict(plain.state_dict(), strict=False)
        assert not found.unexpected_keys


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(strides=[1]), "strides: 1 of them, but 2 channels"),
        (dict(pool_after=[3]), "pool_after: .*3.* but there are 2 convolutions"),
        (dict(deform=dict(layers=3)), "layers=3, but this backbone has 2"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SmallCNN([4, 6], **settings)


def test_frozen():
    config = Config.fromfile("configs/mnist/cnn-conv-offset_20e_mnist-zoomed_frozen.py")
    model = MODELS.build(config.model)
    learnt = {name for name, p in model.named_parameters() if p.requires_grad}
    norms = {f"backbone.norms.{i}.{name}" for i in range(4) for name in ("weight", "bias")}
    assert learnt == norms | {f"backbone.convs.{i}.offset.weight" for i in (1, 2, 3)}
    backbone = dict(type="SmallCNN", channels=[4])
    with pytest.raises(ValueError, match="frozen: no parameter has a name with 'conv1'"):
        ImageClassifier(backbone, 4, 10, frozen="conv1")
    with pytest.raises(ValueError, match=r"frozen: '\[' is no regular expression"):
        ImageClassifier(backbone, 4, 10, frozen="[")


@pytest.mark.parametrize(
    ("file", "count"),
    # As the article counts them: with BatchNorm's running mean and variance.
    [("cnn_10e_mnist", 242_954), ("cnn-conv-offset_20e_mnist-both", 630_026)],
)
def test_parameters_of_the_article(file, count):
    model = MODELS.build(Config.fromfile(f"configs/mnist/{file}.py").model)
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    assert sum(value.numel() for value in state.values()) == count
