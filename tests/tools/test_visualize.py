"""tools/visualize.py from the command line."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.command import run_tool
from tests.inference.conftest import ROOT, TINY, save_random_weights

MASK = ROOT / "tests" / "tools" / "tiny_mask.py"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of tiny_mask.py with two deformable layers, and of tiny.py."""
    folder = tmp_path_factory.mktemp("weights")
    config = folder / "deformed.py"
    config.write_text(
        f"_base_ = {str(MASK)!r}\n"
        "model = dict(backbone=dict(type='DeformResNet', deform=dict(layers=2)))\n"
    )
    return (
        config,
        save_random_weights(config, folder / "deformed.pth", ("square",)),
        save_random_weights(TINY, folder / "regular.pth", ("square",)),
    )


@pytest.fixture
def visualize(weights, dataset, tmp_path, monkeypatch, capfd):
    """Runs the tool beside the dataset; what it exits with, and stdout."""
    monkeypatch.chdir(dataset)

    def run(what, *args, config=weights[0], checkpoint=weights[1]):
        where = ("--out-dir", tmp_path / "out", "--device", "cpu")
        status = run_tool("visualize.py", what, config, checkpoint, *args, *where)
        return status, capfd.readouterr().out

    return run


def test_pictures_of_images(visualize, weights, tmp_path):
    out = tmp_path / "out"
    status, printed = visualize("points", "0.png", "1.png", "--at", 30, 20, "--depth", 2)
    assert status is None
    assert printed.split()[-2:] == [str(out / f"{i}_points.png") for i in (0, 1)]
    numbers = np.load(out / "1_points.npz")
    assert [*numbers["layers"]] == ["backbone.layer3.1.conv2", "backbone.layer3.1.conv1"]
    assert numbers["at"].tolist() == [32, 16]  # stride 16
    assert Image.open(out / "1_points.png").width > 600

    assert visualize("offsets", "0.png", "--layers", "backbone.layer3.1.conv2")[0] is None
    assert np.load(out / "0_offsets.npz")["backbone.layer3.1.conv2/mask"] == pytest.approx(0.5)

    compare = ["--compare", TINY, weights[2], "--compare", *weights[:2]]
    assert visualize("field", "2.png", "--layer", "backbone.layer2", *compare)[0] is None
    numbers = np.load(out / "2_field.npz")
    titles = {name.rsplit("/", 1)[0] for name in numbers}
    assert titles == {"deformed", "tiny", f"deformed: {weights[1].parent.name}/deformed"}
    assert numbers["deformed/at"].tolist() == numbers["tiny/at"].tolist()
    assert numbers["tiny/field"].shape == (64, 64)


def test_of_the_validation_set(visualize, tmp_path):
    out = tmp_path / "out"
    assert visualize("embedding")[0] is None
    assert np.load(out / "embedding.npz")["features"].shape == (6, 16)

    status, printed = visualize("on-object", "--images", 4)
    assert status is None
    assert (out / "on_object.md").read_text().strip() in printed
    assert "All 4 intervals hold together at 95%" in printed
    assert "+0.0 (+0.0 to +0.0)" in printed
    figures = json.loads((out / "on_object.json").read_text())
    shares = pd.read_csv(out / "on_object_images.csv")
    assert len(shares) == 2 * 4
    for layer, line in figures.items():  # untrained
        own = shares[shares["layer"] == layer]
        assert line["regular"] == pytest.approx(own["regular"].mean(), abs=1e-5)
        assert line["offsets_gain"] == line["offsets_low"] == line["offsets_high"] == 0


def test_refusals(visualize, weights, tmp_path, dataset):
    (tmp_path / "text.png").write_text("words")
    (tmp_path / "0.png").write_bytes((dataset / "0.png").read_bytes())
    regular = dict(config=TINY, checkpoint=weights[2])
    for arguments, files, message in (
        (["points", tmp_path / "text.png"], {}, "text.png is not an image"),
        (["points", "0.png", tmp_path / "0.png"], {}, "both would be written as 0"),
        (["points", "0.png", "--at", 64, 0], {}, "at: (64, 0) is outside the image of 64×64"),
        (["points", "0.png", "--depth", 3], {}, "depth: 3, but 2 deformable layers"),
        (["points", "0.png"], regular, "no deformable layers"),
        (["points", "0.png"], dict(checkpoint=weights[2]), "does not fit the model"),
        (["points", "0.png"], dict(checkpoint="none.pth"), "checkpoint not found: none.pth"),
        (["offsets", "0.png"], regular, "no deformable layers"),
        (["field", "0.png", "--layer", "neck"], regular, "there are backbone, backbone.conv1"),
        (["embedding"], regular, "expected a MimicTwoStageDetector"),
        (["on-object", "--images", 1], {}, "at least two"),
    ):
        status, _ = visualize(*arguments, **files)
        assert str(status).startswith("error: ")
        assert message in status
        assert "\n" not in status
