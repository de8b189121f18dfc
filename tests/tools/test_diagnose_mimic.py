"""tools/diagnose_mimic.py from the command line."""

import pandas as pd
import pytest

from tests.command import run_tool
from tests.inference.conftest import TINY, save_random_weights

MIMIC = """
_base_ = {tiny!r}
model = dict(
    type="MimicTwoStageDetector",
    mimic=dict(num_rois=2, crop_size=64, with_gt=True),
)
"""


@pytest.fixture
def diagnose(dataset, tmp_path, monkeypatch, capfd):
    """Runs the tool on a config with mimicking; what it exits with, and stdout."""
    monkeypatch.chdir(dataset)
    config = tmp_path / "mimic.py"
    config.write_text(MIMIC.format(tiny=str(TINY)))
    save_random_weights(config, tmp_path / "mimic.pth", ("square",))
    save_random_weights(TINY, tmp_path / "off.pth", ("square",))

    def run(*args, config=config):
        return run_tool("diagnose_mimic.py", config, *args), capfd.readouterr().out

    return run


def test_every_checkpoint_is_written_and_their_mean_shown(diagnose, tmp_path):
    trained, off, out = tmp_path / "mimic.pth", tmp_path / "off.pth", tmp_path / "out"
    status, shown = diagnose(trained, off, trained, "--images", "3", "--out", out)
    assert status is None
    classes = pd.read_csv(out / "classes.csv")
    lines = classes[classes["class"] == "all"]
    assert lines["checkpoint"].tolist() == [str(trained), str(off), str(trained)]
    assert lines["crop"].isna().tolist() == [False, True, False]  # off has no such classifier
    first, _, again = lines.drop(columns="checkpoint").to_dict("records")
    assert first == again  # the same RoIs
    assert first["objects"] == 3
    losses = pd.read_csv(out / "losses.csv", index_col=["checkpoint", "loss"])
    assert losses["norm"].isna().sum() == 1  # of off's loss_mimic_cls
    norms = losses.groupby("loss")["norm"].agg(["mean", "std"])
    for name, (mean, deviation) in norms.iterrows():
        means, deviations = (t for t in shown.splitlines() if t.startswith(f"| {name} "))
        assert f"{mean:.3f}" in means
        assert f"{deviation:.3f}" in deviations


def test_refusals(diagnose, tmp_path):
    missing = tmp_path / "none.pth"
    status, _ = diagnose(tmp_path / "mimic.pth", missing)
    assert status == f"error: checkpoint not found: {missing}"
    status, _ = diagnose(tmp_path / "off.pth", config=TINY)
    assert status == "error: model.type: expected MimicTwoStageDetector, got FasterRCNN"
