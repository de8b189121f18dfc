"""COCO AP of exported files, where there are trained checkpoints.

`scripts/quickstart.sh` trains one, and tools/train.py with configs/bccd the other.
"""

import os

import pytest
from dcndet.models.deploy import export
from dcndet.models.engine.evaluation import evaluate
from dcndet.models.inference import Detector
from mmengine.config import Config

from tests.deploy.conftest import ROOT

for package in ("onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package, reason="requirements-export.txt is not installed")

TRAINED = {
    "quickstart": (
        "configs/quickstart/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_digits.py",
        "work_dirs/quickstart/epoch_*.pth",
    ),
    "bccd": (
        "configs/bccd/faster-rcnn_r18-mdconv-c3-c5_fpn_6e_bccd.py",
        "work_dirs/bccd/faster-rcnn_r18-mdconv-c3-c5_fpn_6e_bccd/epoch_*.pth",
    ),
}


pytestmark = pytest.mark.slow


@pytest.fixture(params=TRAINED)
def trained(request):
    """A config and a checkpoint."""
    config, pattern = TRAINED[request.param]
    found = sorted(ROOT.glob(pattern))
    if not found:
        assert request.param != os.environ.get("DCN_REQUIRE_TRAINED"), f"no {pattern}"
        pytest.skip(f"no {pattern}: not trained here")
    return ROOT / config, found[-1]


def average_precision(config, work_dir, checkpoint=None, exported=None):
    config = Config.fromfile(config)
    config.work_dir, config.load_from = str(work_dir), checkpoint and str(checkpoint)
    if exported:
        config.model = dict(type="ExportedModel", file=str(exported))
    metrics = evaluate(config)
    return {name: value for name, value in metrics.items() if name.startswith("coco/bbox_mAP")}


def test_average_precision_is_that_of_the_detector(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # configs name their data from here
    config, checkpoint = trained
    expected = average_precision(config, tmp_path, checkpoint)
    assert expected["coco/bbox_mAP"] > 0.2
    detector = Detector(config, checkpoint, device="cpu")
    dataset = detector.config.test_dataloader.dataset
    images = sorted((ROOT / dataset.data_root / dataset.data_prefix.img).iterdir())
    size = tuple(detector.prepare([images[0]])[1]["inputs"][0].shape[1:])
    for to, suffix in (("onnx", ".onnx"), ("openvino", ".xml")):
        export(detector, tmp_path / f"detector{suffix}", size, to=to)
        found = average_precision(config, tmp_path, exported=tmp_path / f"detector{suffix}")
        assert found == pytest.approx(expected, abs=1e-3), to
