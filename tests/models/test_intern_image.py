import dcndet.models  # noqa: F401  (registers the backbones)
import pytest
import torch
from dcndet.models.engine.errors import CheckpointError
from mmcv.cnn.bricks import DropPath
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

TYPES = ("InternImage", "FlashInternImage")
SMALL = dict(channels=8, depths=(1, 1, 2, 1), groups=(1, 2, 4, 2), drop_path_rate=0.0)

pytestmark = pytest.mark.parametrize("type", TYPES)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")
    torch.manual_seed(0)


def build(type, **settings):
    """With random weights, as DCNv4's are zero at the start."""
    model = MODELS.build(dict(type=type, **SMALL | settings))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def both(*layers):
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


@pytest.mark.parametrize("arch", ["T", "S", "B", "L"])
def test_names_are_the_releases(type, arch):
    """Of intern_image.py and flash_intern_image.py in mmdet_custom/models/backbones."""
    dcn = both("dw_conv.0", "dw_conv.1.1", "offset", "mask", "input_proj", "output_proj")
    mlp = both("fc1", "fc2")
    if type == "FlashInternImage":
        dcn = both("offset_mask", "value_proj", "output_proj", *["offset_mask_dw"] * (arch != "T"))
        if arch != "L":
            dcn.remove("output_proj.bias")
            mlp.remove("fc2.bias")
    block = ["gamma1", "gamma2", *both("norm1.0", "norm2.0")]
    block += [f"dcn.{name}" for name in dcn] + [f"mlp.{name}" for name in mlp]
    names = both(*(f"patch_embed.{layer}" for layer in ("conv1", "norm1.1", "conv2", "norm2.1")))
    for i, depth in enumerate(SMALL["depths"]):
        names += [f"levels.{i}.blocks.{j}.{name}" for j in range(depth) for name in block]
        if arch == "T":
            names += both(f"levels.{i}.norm.0")
        if i < 3:
            names += [f"levels.{i}.downsample.conv.weight"]
            names += both(f"levels.{i}.downsample.norm.1")
    assert sorted(build(type, arch=arch).state_dict()) == sorted(names)


# Those of the releases' classes, built with the arguments of their detection configs. With a
# classifier's last layers they are the 30M, 50M, 97M and 223M of their READMEs.
PARAMETERS = {
    "InternImage": dict(T=28_769_520, S=48_502_560, B=94_909_920, L=218_952_370),
    "FlashInternImage": dict(T=28_666_624, S=48_490_176, B=94_897_048, L=218_914_640),
}


@pytest.mark.parametrize(("arch", "rate"), [("T", 0.2), ("S", 0.3), ("B", 0.4), ("L", 0.4)])
def test_parameters_and_drop_path(type, arch, rate):
    with torch.device("meta"):
        model = MODELS.build(dict(type=type, arch=arch))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[type][arch]
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    last = len(rates) - 1
    assert rates == pytest.approx([i * rate / last for i in range(len(rates))], abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(arch="S"),  # norms after the layers; FlashInternImage has depthwise convolutions
        dict(arch="L", center_feature_scale=True, dw_kernel_size=5),
        dict(layer_scale=None, mlp_ratio=2.0, offset_scale=0.5, center_feature_scale=True),
    ],
)
def test_maps_and_gradients(type, settings):
    model, again = (build(type, **settings, with_cp=with_cp) for with_cp in (False, True))
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 65, 100)
    for network in (model, again):
        maps = network(x)
        assert [(*x.shape[1:],) for x in maps] == [(8, 17, 25), (16, 9, 13), (32, 5, 7), (64, 3, 4)]
        sum(x.square().sum() for x in maps).backward()
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert p.grad.abs().sum() > 0, name
        torch.testing.assert_close(q.grad, p.grad)


@pytest.mark.parametrize("post_norm", [False, True])
def test_a_block_is_two_residual_steps(type, post_norm):
    block = build(type, post_norm=post_norm).levels[0].blocks[0]
    x = y = torch.randn(1, 5, 6, 8)
    for layer, norm, gamma in (
        (block.dcn, block.norm1, block.gamma1),
        (block.mlp, block.norm2, block.gamma2),
    ):
        y = y + gamma * (norm(layer(y)) if post_norm else layer(norm(y)))
    torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_the_releases_files_load(type, key, tmp_path):
    """A classifier's file, which has no layer scales, and a detector's."""
    source = build(type).state_dict()
    kept = {k: v for k, v in source.items() if key == "state_dict" or ".gamma" not in k}
    saved = {("" if key == "model" else "backbone.") + k: v for k, v in kept.items()}
    torch.save({key: saved | {"head.weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "weights.pth"))
    model = MODELS.build(dict(type=type, **SMALL, init_cfg=init_cfg))
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept.get(name, torch.ones_like(value))), name
    with pytest.raises(CheckpointError, match="does not fit"):
        build(type, arch="S", init_cfg=init_cfg).init_weights()


def test_frozen_stages(type):
    model = build(type, frozen_stages=1).train()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(("patch_embed.", "levels.0.")), name
    assert [level.training for level in model.levels] == [False, True, True, True]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("arch", "X"),
        ("channels", 9),
        ("depths", (1, 0, 1, 1)),
        ("groups", (1, 2, 4)),
        ("groups", (3, 1, 1, 1)),
        ("out_indices", (0, 4)),
        ("frozen_stages", 5),
        ("drop_path_rate", 1.0),
    ],
)
def test_errors_name_the_argument(type, name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        build(type, **{name: value})


def test_its_layers_tell_where_they_sample(type):
    """As the statistics ask them to, in a pass of the backbone."""
    model, x = build(type, arch="T"), torch.randn(1, 3, 64, 96)
    found = []

    def ask(module, args, kwargs, output):
        found.append(module.samples(*args, **kwargs))

    for level in model.levels:
        for block in level.blocks:
            block.dcn.register_forward_hook(ask, with_kwargs=True)
    maps = model(x)
    assert len(found) == sum(SMALL["depths"])
    assert found[0].y.shape == (1, 1, 9, *maps[0].shape[2:])
