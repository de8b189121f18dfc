"""tools/train.py and tools/test.py from the command line, on a tiny detector."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from tests.command import run_tool

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(Path(__file__).with_name("tiny.py"))


def scalars(work_dir):
    """What the run logged for TensorBoard and into scalars.json, in the order of the runs."""
    lines = []
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        lines += [json.loads(line) for line in file.read_text().splitlines()]
    return lines


def losses(work_dir):
    return [line["loss"] for line in scalars(work_dir) if "loss" in line]


@pytest.fixture(autouse=True)
def _in_dataset(dataset, monkeypatch):
    monkeypatch.chdir(dataset)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """The work dir of a finished run."""
    work_dir = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(dataset)
        assert run_tool("train.py", CONFIG, "--work-dir", work_dir) is None
    (log,) = work_dir.glob("*/*.log")
    assert "eta: 0:00:0" in log.read_text()
    return work_dir


def test_train_writes_checkpoints_and_tensorboard_logs(trained):
    assert (trained / "epoch_2.pth").is_file()
    assert len(list(trained.glob("best_coco_bbox_mAP_epoch_*.pth"))) == 1
    assert list(trained.glob("*/vis_data/events.out.tfevents.*"))
    assert len(losses(trained)) == 6


def test_resume_gives_the_losses_of_an_uninterrupted_run(trained, tmp_path):
    run_tool("train.py", CONFIG, "--work-dir", tmp_path, "--cfg-options", "train_cfg.max_epochs=1")
    code = run_tool(
        "train.py", CONFIG, "--work-dir", tmp_path / "b", "--resume", tmp_path / "epoch_1.pth"
    )
    assert code is None
    assert losses(tmp_path) + losses(tmp_path / "b") == losses(trained)


def test_a_run_stopped_in_its_last_evaluation_makes_up_for_it(trained, tmp_path):
    checkpoint = torch.load(trained / "epoch_2.pth")
    del checkpoint["message_hub"]["runtime_info"]["evaluated"]
    torch.save(checkpoint, tmp_path / "stopped.pth")
    work_dir = tmp_path / "work"
    command = [CONFIG, "--work-dir", work_dir, "--resume", tmp_path / "stopped.pth"]
    assert run_tool("train.py", *command) is None
    [line] = scalars(work_dir)
    assert line["step"] == 2
    [expected] = [x for x in scalars(trained) if "coco/bbox_mAP" in x and x["step"] == 2]
    assert line["coco/bbox_mAP"] == expected["coco/bbox_mAP"]


def test_mask_rcnn_trains_and_is_tested(tmp_path, capfd):
    config = str(Path(CONFIG).with_name("tiny_mask.py"))
    assert run_tool("train.py", config, "--work-dir", tmp_path) is None
    lines = scalars(tmp_path)
    assert all(line["loss_mask"] > 0 and "loss_mimic" in line for line in lines if "loss" in line)
    assert [line["step"] for line in lines if "coco/segm_mAP" in line] == [1, 2]
    assert "offsets/roi_head.mask_roi_extractor.roi_layers.0/mean" in {k for x in lines for k in x}
    out = tmp_path / "found.json"
    assert run_tool("test.py", config, tmp_path / "epoch_2.pth", "--out", out) is None
    assert "Evaluating segm..." in capfd.readouterr().out
    assert "bbox" in json.loads(out.read_text())[0]
    masks = json.loads((tmp_path / "found.segm.json").read_text())
    assert masks[0]["segmentation"]["size"] == [64, 64]
    assert not list(tmp_path.glob("found.json.*"))


def test_test_prints_the_table_and_writes_json_and_pictures(trained, tmp_path, capfd):
    out, show = tmp_path / "new" / "results.bbox.json", tmp_path / "pictures"
    outputs = ["--out", out, "--show-dir", show, "--work-dir", tmp_path / "work"]
    options = ["--cfg-options", "model.test_cfg.rcnn.score_thr=0.0"]
    assert run_tool("test.py", CONFIG, trained / "epoch_2.pth", *outputs, *options) is None
    printed = capfd.readouterr().out
    assert "Average Precision  (AP) @[ IoU=0.50:0.95" in printed
    assert "| square   |" in printed
    detections = json.loads(out.read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= detections[0].keys()
    assert sorted(p.name for p in show.iterdir()) == [f"{i}.png" for i in range(6)]
    plain = cv2.imread(str(show / "0.png"))
    assert plain.shape[1] > 2 * 640
    none = tmp_path / "none"
    assert (
        run_tool(
            "test.py",
            CONFIG,
            trained / "epoch_2.pth",
            *outputs[4:],
            *["--show-dir", none],
            *["--show-score-thr", "1.1"],
        )
        is None
    )
    assert (cv2.imread(str(none / "0.png")) != plain).any()
    assert sorted(p.name for p in out.parent.iterdir()) == [out.name]


def test_amp_on_the_cpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    options = ["--cfg-options", "train_cfg.max_epochs=1"]
    assert run_tool("train.py", CONFIG, "--work-dir", tmp_path, "--amp", *options) is None
    assert all(0 < loss < 10 for loss in losses(tmp_path))


def test_test_on_other_data_in_mixed_precision_beside_the_checkpoint(
    trained, dataset, tmp_path, capfd
):
    folder = tmp_path / "mine"
    shutil.copytree(dataset, folder / "images")
    content = json.loads((folder / "images" / "annotations.json").read_text())
    content["images"], content["annotations"] = content["images"][:2], content["annotations"][:2]
    (folder / "annotations").mkdir()
    (folder / "annotations" / "val.json").write_text(json.dumps(content))
    checkpoint = tmp_path / "run" / "epoch_2.pth"
    checkpoint.parent.mkdir()
    shutil.copy(trained / "epoch_2.pth", checkpoint)
    options = ["--cfg-options", "model.test_cfg.rcnn.score_thr=0.0"]
    found = []
    for flags in (["--amp", "bf16"], []):
        out = tmp_path / f"{len(flags)}.json"
        command = ["test.py", CONFIG, checkpoint, "--data", folder, "--out", out, *flags, *options]
        assert run_tool(*command) is None
        assert "tests on 2 images" in capfd.readouterr().out
        found.append(json.loads(out.read_text()))
        assert {detection["image_id"] for detection in found[-1]} == {0, 1}
    half, exact = ([detection["score"] for detection in each] for each in found)
    assert half != exact
    assert max(half) == pytest.approx(max(exact), abs=0.02)
    assert len(list((checkpoint.parent / "test").glob("*/*.log"))) == 2


def test_ctrl_c_is_one_line_and_ends_by_the_signal(tmp_path):
    command = [sys.executable, ROOT / "tools" / "train.py", CONFIG, "--work-dir", tmp_path]
    options = ["--cfg-options", "train_cfg.max_epochs=1000"]
    with subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # whoever runs the tests in the background has SIGINT ignored, which children inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for line in process.stdout:
            if "Epoch(train)  [2]" in line.replace("    ", "  "):
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == (
        f"stopped; --resume goes on from the newest checkpoint in {tmp_path}"
    )


def test_auto_scale_lr(tmp_path):
    options = ["--cfg-options", "train_cfg.max_epochs=1", "param_scheduler=None"]
    assert run_tool("train.py", CONFIG, "--work-dir", tmp_path, "--auto-scale-lr", *options) is None
    assert scalars(tmp_path)[0]["lr"] == 0.01  # batch size 2 for a base of 4


MIMIC = [
    *("model.type=MimicTwoStageDetector", "model.mimic.crop_size=64", "model.mimic.num_rois=3"),
    "model.mimic.with_gt=True",  # so short a run teaches the RPN nothing
]


def test_mimicking_resumes_to_the_same_losses(tmp_path):
    options = ["--cfg-options", *MIMIC, "default_hooks.checkpoint.max_keep_ckpts=2"]
    assert run_tool("train.py", CONFIG, "--work-dir", tmp_path / "a", *options) is None
    resume = ["--resume", tmp_path / "a" / "epoch_1.pth"]
    assert run_tool("train.py", CONFIG, "--work-dir", tmp_path / "b", *resume, *options) is None
    first, again = scalars(tmp_path / "a"), scalars(tmp_path / "b")
    for key in ("loss", "loss_mimic", "loss_mimic_cls", "mimic_cos", "mimic_acc"):
        found = [line[key] for line in first if "loss" in line]
        assert len(found) == 6
        assert found[3:] == [line[key] for line in again if "loss" in line]
    assert all(line["loss_mimic"] > 0 for line in first if "loss" in line)
    # A picture an epoch, of crops beside their RoIs.
    pictures = sorted(tmp_path.glob("a/*/vis_data/vis_image/mimic_crops_*.png"))
    assert len(pictures) == 2
    assert cv2.imread(str(pictures[0])).std() > 10


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_compiled_run_mimics_to_the_losses_of_another(tmp_path):
    options = [*MIMIC, "train_cfg.max_epochs=1"]
    options += ["model.backbone.type=DeformResNet", "model.backbone.deform.layers=2"]
    for compiled in (False, True):
        work_dir = tmp_path / str(compiled)
        settings = [*options, f"compile={compiled}"]
        command = [CONFIG, "--work-dir", work_dir, "--cfg-options", *settings]
        assert run_tool("train.py", *command) is None
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-3)


def test_mimicking_with_amp_and_gradient_accumulation(tmp_path):
    options = ["--amp", "--cfg-options", *MIMIC, "optim_wrapper.accumulative_counts=2"]
    assert run_tool("train.py", CONFIG, "--work-dir", tmp_path, *options) is None
    lines = [line for line in scalars(tmp_path) if "loss" in line]
    assert all(0 < line["loss_mimic"] < 1 and 0 < line["loss_mimic_cls"] < 1 for line in lines)


def test_mimicking_in_two_processes_where_one_has_no_object(dataset, tmp_path, monkeypatch):
    """Its losses are zero there; DDP would hang or raise if a parameter had left the graph."""
    folder = tmp_path / "half"
    shutil.copytree(dataset, folder)
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"] = content["annotations"][:3]  # images 3 to 5 have none
    (folder / "annotations.json").write_text(json.dumps(content))
    monkeypatch.chdir(folder)
    options = ["train_dataloader.sampler.shuffle=False", "train_dataloader.batch_size=1"]
    options += ["log_processor.window_size=1"]  # no moving averages
    command = ["2", "--work-dir", tmp_path / "work", "--cfg-options", *MIMIC, *options]
    two_processes("dist_train.sh", CONFIG, *command)
    lines = [line for line in scalars(tmp_path / "work") if "loss" in line]
    assert len(lines) == 6
    # Of the first process: images 0, 2 and 4.
    assert [line["loss_mimic"] > 0 for line in lines] == [True, True, False] * 2
    assert [line["loss_mimic_cls"] > 0 for line in lines] == [True, True, False] * 2


def two_processes(script, *args):
    """Run a script of scripts/ for two processes on the CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "PORT": str(port),
    }
    command = [ROOT / "scripts" / script, *args]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_training_in_two_processes(tmp_path):
    two_processes("dist_train.sh", CONFIG, "2", "--work-dir", tmp_path)
    assert len(losses(tmp_path)) == 4  # two epochs of 6 images, batch size 2 x 2
    assert (tmp_path / "epoch_2.pth").is_file()


@pytest.mark.slow
def test_testing_in_two_processes(trained, tmp_path):
    out = tmp_path / "out.json"
    options = ["--work-dir", tmp_path, "--cfg-options", "model.test_cfg.rcnn.score_thr=0.0"]
    two_processes("dist_test.sh", CONFIG, trained / "epoch_2.pth", "2", "--out", out, *options)
    assert {detection["image_id"] for detection in json.loads(out.read_text())} == set(range(6))


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["check_data.py", "convert_voc.py", "detect.py"])
def test_a_tool_starts_in_any_folder(tool, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, ROOT / "tools" / tool, "--help"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert f"usage: {tool}" in result.stdout


def bad_input(tmp_path, trained):
    """Command lines that are refused, and the message of each."""
    weights = torch.load(trained / "epoch_2.pth", weights_only=False)["state_dict"]
    torch.save({"layer1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({k: v for k, v in weights.items() if "rpn" not in k}, tmp_path / "part.pth")
    (tmp_path / "cut.pth").write_bytes((trained / "epoch_2.pth").read_bytes()[:100_000])
    work_dir = ["--work-dir", tmp_path / "work"]
    return [
        (["train.py", "none.py"], "config not found: none.py"),
        (["train.py", ROOT / "configs/custom/faster-rcnn_lite0_fpn.py"], "set with --data ROOT"),
        (["test.py", "none.py", "none.pth"], "config not found: none.py"),
        (["test.py", CONFIG, "none.pth"], "checkpoint not found: none.pth"),
        (["train.py", CONFIG, "--resume", "none.pth"], "checkpoint not found: none.pth"),
        (["train.py", CONFIG, "--resume", *work_dir], f"nothing to resume: {tmp_path}/work"),
        (["test.py", CONFIG, tmp_path / "other.pth", *work_dir], f"{tmp_path}/other.pth does not"),
        (["test.py", CONFIG, tmp_path / "part.pth", *work_dir], "6 keys missing: rpn_head."),
        (["test.py", CONFIG, tmp_path / "cut.pth", *work_dir], f"cannot load {tmp_path}/cut.pth"),
    ]


def test_bad_input_is_named_in_one_line(trained, tmp_path):
    for command, message in bad_input(tmp_path, trained):
        error = run_tool(*command)
        assert error.startswith("error: "), command
        assert message in error
        assert "\n" not in error


def test_a_diverging_run_names_iteration_and_images(tmp_path):
    options = ["--cfg-options", "optim_wrapper.optimizer.lr=1e30"]
    error = run_tool("train.py", CONFIG, "--work-dir", tmp_path, *options)
    assert "loss_cls = nan" in error
    assert "at epoch 1, iteration 2, images" in error
    assert error.count(".png") == 2
    assert not list(tmp_path.glob("*.pth"))


def test_weights_too_large_to_compute_with_are_found_in_evaluation(tmp_path):
    options = ["optim_wrapper.optimizer.lr=1e6", "param_scheduler.0.start_factor=1.0"]
    options.append("train_dataloader.batch_size=6")  # one iteration: no second loss that is NaN
    error = run_tool("train.py", CONFIG, "--work-dir", tmp_path, "--cfg-options", *options)
    assert "in evaluation" in error
    assert "computes NaN, from the weights after epoch 1, iteration 1, images" in error


def test_an_evaluator_of_other_images_is_refused_before_training(dataset, tmp_path, trained):
    content = json.loads((dataset / "annotations.json").read_text())
    content["images"][2]["file_name"] = "7.png"
    (tmp_path / "other.json").write_text(json.dumps(content))
    options = ["--work-dir", tmp_path / "work", "--cfg-options"]
    other = f"val_evaluator.ann_file={tmp_path}/other.json"
    kinds = ["val_dataloader.dataset.type=DetectionDataset", "val_evaluator.type=DetectionMetric"]
    error = run_tool("train.py", CONFIG, *options, other, *kinds)
    assert "other.json is not of the images in" in error
    assert not list((tmp_path / "work").glob("*.pth"))
    options = [trained / "epoch_2.pth", *options]
    tested = [option.replace("val_", "test_") for option in (other, *kinds)]
    assert "other.json is not of the images in" in run_tool("test.py", CONFIG, *options, *tested)


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", "/proc/nothing", tmp_path / ("a" * 300)):
        error = run_tool("train.py", CONFIG, "--work-dir", folder)
        assert error.startswith("error: ")
        assert str(folder) in error
        assert "\n" not in error


def test_a_full_disk_without_a_name_names_the_folder(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mmengine.visualization.vis_backend.dump", full)
    error = run_tool("train.py", CONFIG, "--work-dir", tmp_path / "work")
    assert error == f"error: cannot write to {tmp_path}/work: No space left on device"


def test_an_option_without_a_value_is_a_usage_error(capsys):
    assert run_tool("train.py", CONFIG, "--cfg-options", "train_cfg.max_epochs") == 2
    expected = "argument --cfg-options: expected KEY=VALUE, got 'train_cfg.max_epochs'"
    assert expected in capsys.readouterr().err


def test_ctrl_c_while_the_config_is_written_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    ended = []
    monkeypatch.setattr("yapf.yapflib.yapf_api.FormatCode", interrupted)
    monkeypatch.setattr(os, "kill", lambda pid, sent: ended.append(sent))
    run_tool("train.py", CONFIG, "--work-dir", tmp_path)
    assert ended == [signal.SIGINT]
    assert capsys.readouterr().err == "\nstopped; no checkpoint was written yet\n"


def test_errors_of_data_workers_are_one_line(dataset, tmp_path, monkeypatch):
    shutil.copytree(dataset, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    (tmp_path / "copy" / "3.png").write_bytes(b"")
    options = ["train_dataloader.num_workers=1"]
    error = run_tool("train.py", CONFIG, "--work-dir", tmp_path / "work", "--cfg-options", *options)
    assert error.startswith("error: ")
    assert "3.png" in error
    assert "\n" not in error
