import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from dcndet.data.errors import DataError
from dcndet.models import Detector
from dcndet.models.engine import EngineError
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from tests.configs.test_configs import CONFIGS, FILES
from tests.inference.conftest import QUICKSTART, ROOT, TINY, save_random_weights


@pytest.fixture(scope="module")
def detector(checkpoint):
    return Detector(TINY, checkpoint, device="cpu")


def same(result, other):
    torch.testing.assert_close(result.boxes, other.boxes)
    torch.testing.assert_close(result.scores, other.scores)
    assert result.labels.tolist() == other.labels.tolist()


def test_finds_what_mmdet_finds(detector, checkpoint, photo):
    result = detector(str(photo), score_thr=0)
    expected = inference_detector(init_detector(str(TINY), str(checkpoint), device="cpu"), photo)
    assert len(result) > 1
    torch.testing.assert_close(result.boxes, expected.pred_instances.bboxes)
    torch.testing.assert_close(result.scores, expected.pred_instances.scores)
    assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)
    assert result.boxes.dtype == torch.float32
    assert result.boxes[:, 2].max() <= 64
    assert result.names == ["thing"] * len(result)


def test_a_path_an_array_and_a_pil_image_are_the_same(detector, photo):
    expected = detector(photo, score_thr=0)
    for picture in (cv2.imread(str(photo)), Image.open(photo)):
        same(detector(picture, score_thr=0), expected)


def test_a_list_is_detected_in_batches_and_in_order(detector, photo):
    image = cv2.imread(str(photo))
    pictures = [image, photo, image[:, ::-1].copy()]
    for batch_size in (1, 2, 8):
        results = detector(pictures, score_thr=0, batch_size=batch_size)
        assert len(results) == 3
        for picture, result in zip(pictures, results, strict=True):
            same(result, detector(picture, score_thr=0))
    assert detector([]) == []


def test_filters(detector, photo):
    every = detector(photo, score_thr=0)
    threshold = every.scores[1].item()
    assert detector(photo, score_thr=threshold).scores.tolist() == every.scores[:2].tolist()
    assert len(detector(photo, score_thr=0, classes=["thing"])) == len(every)
    assert len(detector(photo, score_thr=0, classes=[])) == 0
    with pytest.raises(EngineError, match="unknown class cat; the detector knows thing"):
        detector(photo, classes=["thing", "cat"])


def test_filters_by_class(quickstart_checkpoint, photo):
    detector = Detector(QUICKSTART, quickstart_checkpoint, device="cpu")
    every = detector(photo, score_thr=0)
    some = detector(photo, score_thr=0, classes=["3", every.names[0]])
    assert set(some.names) <= {"3", every.names[0]}
    assert len(some) == sum(name in ("3", every.names[0]) for name in every.names) > 0
    assert len(some) < len(every)


def test_draws_and_saves(detector, photo, tmp_path):
    result = detector(photo, score_thr=0)
    picture = np.asarray(result.draw())
    assert picture.shape == (480, 640, 3)
    enlarged = np.asarray(Image.open(photo).resize((640, 480), Image.Resampling.BICUBIC))
    unchanged = (picture == enlarged).all(-1).mean()  # red and blue are where they were
    assert 0.3 < unchanged < 1
    result.save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (np.zeros((4, 4), np.uint8), ValueError, r"uint8 \[4, 4\]"),
        (np.zeros((4, 4, 3)), ValueError, r"float64 \[4, 4, 3\]"),
        (7, TypeError, "got int"),
        ("none.jpg", ValueError, r"none\.jpg"),
    ],
)
def test_refuses_what_is_no_picture(checkpoint, picture, error, message):
    config = Config.fromfile(TINY)
    with pytest.raises(error, match=message):
        Detector(config, checkpoint, device="cpu")(picture)


def test_a_picture_that_is_too_thin(quickstart_checkpoint):
    detector = Detector(QUICKSTART, quickstart_checkpoint)
    with pytest.raises(DataError, match=r"a picture cannot be resized \(4000×3 pixels\)"):
        detector(np.zeros((3, 4000, 3), np.uint8))


def test_what_cannot_be_loaded_is_named(checkpoint, quickstart_checkpoint):
    for arguments, message in (
        (["none.py", checkpoint], "config not found: none.py"),
        ([TINY, "none.pth"], "checkpoint not found: none.pth"),
        ([TINY, quickstart_checkpoint], f"{quickstart_checkpoint} does not fit the model"),
        ([TINY, checkpoint, "cuda:99"], "device cuda:99: "),
        ([TINY, checkpoint, "toaster"], "device toaster: "),
    ):
        with pytest.raises(EngineError, match=re.escape(message)) as error:
            Detector(*arguments)
        assert "\n" not in str(error.value)


def test_mixed_precision(detector, checkpoint, photo):
    """Near to the exact result, but not it; what it returns is float32."""
    result = Detector(TINY, checkpoint, device="cpu", amp="bf16")(photo, score_thr=0)
    exact = detector(photo, score_thr=0)
    assert result.boxes.dtype == result.scores.dtype == torch.float32
    torch.testing.assert_close(result.scores[:1], exact.scores[:1], atol=0.01, rtol=0)
    assert not torch.equal(result.scores[:1], exact.scores[:1])


def test_class_names_of_the_config_if_the_checkpoint_has_none(tmp_path):
    path = save_random_weights(TINY, tmp_path / "a.pth", None)
    assert Detector(TINY, path, device="cpu").classes == ("square",)
    config = Config.fromfile(TINY)
    del config.test_dataloader.dataset.metainfo
    assert Detector(config, path, device="cpu").classes[:2] == ("person", "bicycle")  # COCO's
    config.test_dataloader.dataset.type = "BaseDetDataset"
    with pytest.raises(EngineError, match="class names"):
        Detector(config, path, device="cpu")


def test_works_from_a_folder_with_packages_of_the_same_names(quickstart_checkpoint, photo):
    for name in ("models", "data", "tools", "configs"):
        (photo.parent / name).mkdir()
        (photo.parent / name / "__init__.py").write_text("raise ImportError('the user\\'s own')")
    code = (
        "from dcndet.models import Detector\n"
        f"result = Detector({str(QUICKSTART)!r}, {str(quickstart_checkpoint)!r})('photo.png', 0)\n"
        "print(len(result), result.names[0])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=photo.parent,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    assert re.search(r"^[1-9]\d* \d$", printed.strip().splitlines()[-1])


def test_the_example_of_the_readme(quickstart_checkpoint, tmp_path, monkeypatch, photo):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    examples = [block for block in blocks if "import Detector" in block]
    if not examples:
        pytest.skip("the README has no example of Detector")
    [example] = examples
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "work_dirs" / "quickstart").mkdir(parents=True)
    (tmp_path / "work_dirs" / "quickstart" / "epoch_4.pth").symlink_to(quickstart_checkpoint)
    Image.open(photo).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    exec(example, {})
    assert set(tmp_path.iterdir()) - before  # the picture that it saves


@pytest.mark.parametrize("file", {file.split("/")[0]: file for file in FILES}.values())
def test_mmdets_inferencer_accepts_every_pipeline(file):
    """What failed was its search for a transform called LoadImageFromFile."""
    config = Config.fromfile(CONFIGS / file)
    inferencer = DetInferencer.__new__(DetInferencer)
    with DefaultScope.overwrite_default_scope("mmdet"):
        pipeline = inferencer._init_pipeline(config)
    image = pipeline(np.zeros((30, 40, 3), np.uint8))["inputs"]
    assert image.shape[0] == 3


def test_mmdets_inferencers_run(quickstart_checkpoint, photo, tmp_path):
    """On paths, arrays and lists, and with pictures."""
    image = cv2.imread(str(photo))
    inferencer = DetInferencer(
        str(QUICKSTART), str(quickstart_checkpoint), device="cpu", show_progress=False
    )
    out = inferencer([str(photo), image], return_vis=True, out_dir=str(tmp_path / "out"))
    first, second = out["predictions"]
    assert first["scores"] == pytest.approx(second["scores"])
    assert [picture.shape[1] for picture in out["visualization"]] == [640, 640]
    assert (tmp_path / "out" / "vis" / "photo.png").is_file()
    assert inferencer(str(photo))["predictions"][0]["scores"] == pytest.approx(first["scores"])
    assert len(inferencer(image)["predictions"]) == 1

    model = init_detector(str(QUICKSTART), str(quickstart_checkpoint), device="cpu")
    found = inference_detector(model, str(photo)).pred_instances.scores.tolist()
    assert found == pytest.approx(first["scores"])
    assert inference_detector(model, [image])[0].pred_instances.scores.tolist() == (
        pytest.approx(found)
    )
