"""The stand-in for mmcv's compiled operators: the same NMS, and none where they are compiled."""

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from dcndet.models import mmcv_ext

import dcn

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def test_nms_equals_mmcv(from_mmcv):
    def theirs():
        from mmcv.ops import nms

        torch.manual_seed(0)
        corners = 100 * torch.rand(300, 2)
        boxes = torch.cat([corners, corners + 60 * torch.rand(300, 2)], 1)
        scores = torch.rand(300)
        return boxes, scores, [nms(boxes, scores, threshold)[1] for threshold in THRESHOLDS]

    boxes, scores, kept = from_mmcv(theirs)
    assert len(kept[0]) < len(kept[-1]) < 300
    for threshold, expected in zip(THRESHOLDS, kept, strict=True):
        actual = mmcv_ext.nms(boxes, scores, iou_threshold=threshold, offset=0)
        assert torch.equal(actual, expected)


def test_nms_with_another_offset_is_refused():
    with pytest.raises(ValueError, match=r"^nms: offset: expected 0, got 1"):
        mmcv_ext.nms(torch.zeros(1, 4), torch.ones(1), 0.5, 1)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_is_that_of_mmcv(monkeypatch, sampling_ratio):
    """Whose values dcn's pooling is compared with in tests/dcn."""
    roi_align = importlib.import_module("mmcv.ops.roi_align")
    monkeypatch.setattr(roi_align, "ext_module", mmcv_ext)
    torch.manual_seed(0)
    corners = 20 * torch.rand(40, 2)
    index = torch.randint(0, 2, (40, 1))
    rois = torch.cat([index, corners, corners + 1 + 20 * torch.rand(40, 2)], 1)
    input = torch.rand(2, 3, 20, 30)
    actual = roi_align.roi_align(input, rois, (7, 5), 0.5, sampling_ratio, "avg", True)
    expected = dcn.deform_roi_pool(
        input, rois, (7, 5), spatial_scale=0.5, sampling_ratio=sampling_ratio
    )
    torch.testing.assert_close(actual, expected)


def test_roi_align_of_maxima_is_refused():
    empty = torch.zeros(0)
    with pytest.raises(ValueError, match=r"^roi_align: pool_mode: expected 'avg'"):
        mmcv_ext.roi_align_forward(
            *(empty,) * 5,
            aligned_height=1,
            aligned_width=1,
            spatial_scale=1.0,
            sampling_ratio=0,
            pool_mode=0,
            aligned=True,
        )


def test_other_operators_say_what_they_are_and_how_to_compile_them():
    with pytest.raises(RuntimeError, match=r"'roi_pool_forward' is not compiled.*--mmcv-ops"):
        mmcv_ext.roi_pool_forward(torch.ones(1))


def test_it_looks_like_a_module_to_python():
    assert not hasattr(mmcv_ext, "__path__")
    assert not hasattr(mmcv_ext, "__wrapped__")


def registered(monkeypatch, ext):
    """What ``mmcv._ext`` is after `register`, where importing it gives ``ext``."""
    monkeypatch.setitem(sys.modules, "mmcv._ext", ext)  # importing None raises ImportError
    mmcv_ext.register()
    return sys.modules["mmcv._ext"]


def test_compiled_operators_take_precedence(monkeypatch):
    compiled = types.ModuleType("mmcv._ext")
    assert registered(monkeypatch, compiled) is compiled


def test_it_stands_in_where_none_load(monkeypatch):
    assert registered(monkeypatch, None) is mmcv_ext


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "of_another_torch"])
def test_mmdet_imports_in_a_fresh_interpreter(tmp_path, broken):
    """With an mmcv that has no stand-in of its own, and perhaps operators that do not load."""
    import mmcv

    (tmp_path / "mmcv").mkdir()
    for file in Path(mmcv.__path__[0]).iterdir():
        if not file.name.startswith("_ext"):
            (tmp_path / "mmcv" / file.name).symlink_to(file)
    if broken:
        (tmp_path / "mmcv" / "_ext.abi3.so").write_bytes(b"not a library")
    code = "import dcndet.models, mmcv, mmdet.apis; print(mmcv.__file__, mmcv.ops.nms.__name__)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{mmcv_ext.__file__.rsplit('/', 2)[0]}"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert str(tmp_path) in run.stdout
