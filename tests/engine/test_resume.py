"""Runs that are killed, resumed, or resumed from files that cannot serve."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dcndet.models.engine import (
    CheckpointError,
    EngineError,
    find_resumable,
)
from dcndet.models.engine.hooks import PlainValuesHook
from dcndet.models.engine.locking import only_training
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook

from tests.engine import toy
from tests.engine.toy import (
    Falling,
    Score,
    Start,
    Stop,
    Toy,
    build,
    checkpoints,
    disk_full,
    fail_write,
    train,
)

ROOT = Path(__file__).resolve().parents[2]


def test_a_killed_run_resumes_to_the_same_losses(tmp_path):
    expected, runner = train(tmp_path / "whole", workers=1)
    assert len(set(expected)) == 9
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, toy.__file__, str(tmp_path / "killed")]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    # killed while it wrote the checkpoint of the second epoch
    assert checkpoints(tmp_path / "killed") == ["epoch_1.pth", "epoch_2.pth.tmp"]
    # the seed of the checkpoint counts, not the one given now
    losses, resumed = train(tmp_path / "killed", workers=1, seed=77, resume=True)
    assert losses == expected
    for name, weight in runner.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
    assert checkpoints(tmp_path / "killed") == ["epoch_3.pth"]


def test_resuming_elsewhere_removes_nothing_there(tmp_path):
    train(tmp_path / "old", validate=True, epochs=1)
    before = checkpoints(tmp_path / "old")
    assert "best_score_epoch_1.pth" in before
    last = str(tmp_path / "old" / "epoch_1.pth")
    train(tmp_path / "new", validate=True, epochs=2, resume=True, load_from=last)
    assert checkpoints(tmp_path / "old") == before
    assert checkpoints(tmp_path / "new") == ["best_score_epoch_2.pth", "epoch_2.pth"]


@pytest.mark.parametrize("name", ["epoch_2.pth", "best_score_epoch_2.pth"])
def test_a_full_disk_leaves_the_earlier_checkpoint(name, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalBackend, "put", fail_write(name, disk_full))
    with pytest.raises(CheckpointError, match=rf"cannot write.*{name}: No space left on device"):
        train(tmp_path, validate=True)
    left = checkpoints(tmp_path)
    assert "best_score_epoch_1.pth" in left
    assert ("epoch_1.pth" if name == "epoch_2.pth" else "epoch_2.pth") in left
    assert name not in left
    assert not any(file.endswith(".tmp") for file in left)
    monkeypatch.undo()
    train(tmp_path, validate=True, resume=True)
    assert checkpoints(tmp_path) == ["best_score_epoch_3.pth", "epoch_3.pth"]


def test_resume_needs_a_complete_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=f"nothing to resume: {tmp_path}"):
        train(tmp_path, resume=True)
    (tmp_path / "epoch_1.pth").write_bytes(b"")
    torch.save(Toy().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"nothing to resume: {tmp_path}"):
        train(tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"weights\.pth: it lacks meta, state_dict, message"):
        train(tmp_path, resume=True, load_from=str(tmp_path / "weights.pth"))


def test_the_newest_complete_checkpoint_is_found(tmp_path):
    for epochs in (1, 2):
        train(tmp_path / f"{epochs}", epochs=epochs)
    first, second = (tmp_path / f"{n}" / f"epoch_{n}.pth" for n in (1, 2))
    second.rename(tmp_path / "1" / "epoch_2.pth")
    (tmp_path / "1" / "epoch_3.pth").write_bytes(first.read_bytes()[:1000])
    os.utime(first)
    pointer = tmp_path / "1" / "last_checkpoint"
    for content in (str(first), "", str(first)[:-6]):
        pointer.write_text(content)
        assert find_resumable(tmp_path / "1") == str(tmp_path / "1" / "epoch_2.pth")
    # checkpoints may lie elsewhere (CheckpointHook's out_dir)
    pointer.write_text(str(tmp_path / "1" / "epoch_2.pth"))
    pointer.rename(tmp_path / "last_checkpoint")
    assert find_resumable(tmp_path) == str(tmp_path / "1" / "epoch_2.pth")


def change(path, edit):
    """Apply ``edit`` to the content of a checkpoint and write it back."""
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)


def test_the_newest_is_the_one_furthest_in_the_latest_run(tmp_path):
    def keep(name):
        shutil.copy(tmp_path / f"epoch_{name[-1]}.pth", tmp_path / f"{name}.pth")

    train(tmp_path, epochs=3)
    keep("first_3")
    for clock in ("20990101_000000", 5, None):  # the clock is of no account
        change(
            tmp_path / "first_3.pth",
            lambda content, clock=clock: content["meta"].update(time=clock),
        )
        assert find_resumable(tmp_path).endswith("_3.pth")
    train(tmp_path, epochs=2)  # a run anew, in the same folder
    keep("second_2")
    assert find_resumable(tmp_path).endswith("_2.pth")
    train(tmp_path, epochs=4, resume=True)
    assert torch.load(tmp_path / "epoch_4.pth")["meta"]["run"] == 2
    # Taking up an older checkpoint is a run anew too.
    train(tmp_path, epochs=4, resume=True, load_from=str(tmp_path / "first_3.pth"))
    assert torch.load(tmp_path / "epoch_4.pth")["meta"]["run"] == 3


def odd(**changes):
    return lambda content: content.update(changes)


ODD = [
    odd(meta=None),
    odd(meta={"epoch": 1}),
    odd(meta={"epoch": "1", "iter": 3}),
    odd(meta={"epoch": -1, "iter": 3}),
    odd(message_hub=[]),
    odd(message_hub={}),
    odd(state_dict=[]),
    odd(state_dict={1: torch.zeros(1)}),
    odd(optimizer={}),
    odd(optimizer=None),
    odd(param_schedulers=3),
]


@pytest.mark.parametrize("edit", ODD)
def test_odd_contents_are_refused_by_name_and_stepped_over(edit, tmp_path):
    train(tmp_path, epochs=1)
    good, bad = tmp_path / "epoch_1.pth", tmp_path / "epoch_7.pth"
    shutil.copy(good, bad)
    change(bad, edit)
    with pytest.raises(CheckpointError, match=r"epoch_7\.pth: its \w+ is not what a training run"):
        train(tmp_path, resume=True, load_from=str(bad))
    assert find_resumable(tmp_path) == str(good)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a" * 5000, b"\0", b"/"])
def test_a_pointer_that_names_nothing_is_stepped_over(content, tmp_path):
    train(tmp_path, epochs=1)
    (tmp_path / "last_checkpoint").write_bytes(content)
    assert find_resumable(tmp_path) == str(tmp_path / "epoch_1.pth")


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["state_dict"].update({"head.bias": torch.full((4,), torch.nan)}),
        lambda content: content["state_dict"].pop("head.bias"),
    ],
)
def test_weights_that_cannot_serve_are_stepped_over(edit, tmp_path):
    expected, _ = train(tmp_path / "whole")
    train(tmp_path / "a", epochs=1)
    shutil.copy(tmp_path / "a" / "epoch_1.pth", tmp_path / "keep.pth")
    train(tmp_path / "a", epochs=2, resume=True)
    shutil.copy(tmp_path / "keep.pth", tmp_path / "a" / "keep.pth")
    change(tmp_path / "a" / "epoch_2.pth", edit)
    losses, runner = train(tmp_path / "a", resume=True)
    assert losses == expected
    assert "Not resuming from epoch_2.pth" in Path(runner.logger._log_file).read_text()


def test_checkpoints_that_lie_elsewhere_are_found(tmp_path):
    hook = {"type": "CheckpointHook", "out_dir": str(tmp_path / "out")}
    expected, _ = train(tmp_path / "whole")
    train(tmp_path / "run", epochs=2, checkpoint=hook)
    (tmp_path / "run" / "last_checkpoint").write_text("")
    losses, _ = train(tmp_path / "run", resume=True, checkpoint=hook)
    assert losses == expected


@pytest.mark.parametrize("numbers", [{"total_steps": 9}, {"total_steps": 9, "three_phase": True}])
def test_schedulers_that_hold_methods_are_saved_without(numbers, tmp_path):
    schedule = {"type": "OneCycleLR", "eta_max": 0.1, "by_epoch": False, **numbers}
    expected, _ = train(tmp_path / "whole", schedule=schedule)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", schedule=schedule, hook=Stop())
    losses, _ = train(tmp_path / "a", schedule=schedule, resume=True)
    assert losses == expected


@pytest.mark.parametrize("value", [Path("a"), np.datetime64("2020-01-01"), print])
def test_what_no_checkpoint_can_hold_is_refused(value, tmp_path):
    class Adds(Hook):
        def before_save_checkpoint(self, runner, checkpoint):
            checkpoint["mine"] = {"a": value}

    with pytest.raises(CheckpointError, match=rf"mine\.a is a {type(value).__name__}, which no"):
        train(tmp_path, hook=Adds())
    assert checkpoints(tmp_path) == []


def test_the_lock_goes_with_the_process_and_not_with_its_data_workers(tmp_path):
    forked, tell = os.pipe()
    with only_training(tmp_path):
        worker = os.fork()
        if worker == 0:
            os.write(tell, b"forked")
            time.sleep(60)
            os._exit(0)
        os.read(forked, 1)
    try:
        with only_training(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_a_damaged_checkpoint_is_stepped_over(tmp_path):
    train(tmp_path, epochs=2)
    shutil.copy(tmp_path / "epoch_2.pth", tmp_path / "keep.pth")
    train(tmp_path, epochs=3, resume=True)
    content = bytearray((tmp_path / "epoch_3.pth").read_bytes())
    content[content.index(b"FB") + 64] ^= 1  # torch pads its tensors with these letters
    (tmp_path / "epoch_3.pth").write_bytes(content)
    assert find_resumable(tmp_path) == str(tmp_path / "keep.pth")


@pytest.mark.parametrize(
    "edit",
    [
        odd(optimizer={"state": {}, "param_groups": []}),
        odd(optimizer={"state": 1}),
        odd(param_schedulers=[1]),
    ],
)
def test_contents_that_the_training_cannot_take_are_refused_by_name(edit, tmp_path):
    train(tmp_path, epochs=1)
    change(tmp_path / "epoch_1.pth", edit)
    path = str(tmp_path / "epoch_1.pth")
    with pytest.raises(CheckpointError, match=r"cannot resume from .*epoch_1\.pth: "):
        train(tmp_path, resume=True, load_from=path)


@pytest.mark.parametrize("edit", [lambda c: c.pop("param_schedulers"), odd(param_schedulers=[])])
def test_a_checkpoint_without_schedulers_goes_on_at_the_rate_of_the_schedule(edit, tmp_path):
    expected, _ = train(tmp_path / "whole", epochs=3)
    train(tmp_path / "a", epochs=2)
    change(tmp_path / "a" / "epoch_2.pth", edit)
    losses, runner = train(tmp_path / "a", epochs=3, resume=True)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert "the checkpoint holds no param_schedulers" in Path(runner.logger._log_file).read_text()


def test_without_a_schedule(tmp_path):
    """It resumes, and from a run with a schedule it goes on at the config's own rate."""
    expected, runner = train(tmp_path / "whole", epochs=3, schedule=None)
    train(tmp_path / "a", epochs=2, schedule=None)
    losses, _ = train(tmp_path / "a", epochs=3, schedule=None, resume=True)
    assert losses == expected
    train(tmp_path / "b", epochs=2)
    _, other = train(tmp_path / "b", epochs=3, schedule=None, resume=True)
    assert other.optim_wrapper.get_lr() == runner.optim_wrapper.get_lr()
    assert "the config has no param_scheduler" in Path(other.logger._log_file).read_text()


def test_a_checkpoint_holds_plain_values_only(tmp_path):
    train(tmp_path, epochs=1, validate=True)
    for path in tmp_path.glob("*.pth"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("numpy", [b"numpy._core", b"numpy.core"])
def test_a_checkpoint_of_mmengine_resumes_to_the_same_losses(numpy, tmp_path, monkeypatch):
    expected, _ = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(PlainValuesHook, "before_save_checkpoint", lambda *args, **kwargs: None)
        train(tmp_path / "old", epochs=1)
    path = tmp_path / "old" / "epoch_1.pth"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core", numpy))
    losses, _ = train(tmp_path / "old", resume=True, load_from=str(path))
    assert losses == expected


# Where a run is killed in the second of three epochs: as it evaluates; when the new best checkpoint
# is on the disk; when the epoch's is as well, and only the old ones have to go.
MOMENTS = ["evaluating", "best saved", "saved again"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("rising", [True, False])
def test_killed_in_an_evaluation_the_run_makes_up_for_it(moment, rising, tmp_path):
    score = Score if rising else Falling
    expected, _ = train(tmp_path / "whole", score=score, validate=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, toy.__file__, str(tmp_path / "killed"), moment, score.__name__]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    losses, runner = train(tmp_path / "killed", score=score, validate=True, resume=True)
    assert losses == expected
    assert checkpoints(tmp_path / "killed") == checkpoints(tmp_path / "whole")
    scores = runner.message_hub.get_scalar("val/score").data[0].tolist()
    assert scores == ([0, 1, 2] if rising else [0, -1, -2])
    hubs = [
        torch.load(tmp_path / folder / "epoch_3.pth")["message_hub"]["runtime_info"]
        for folder in ("whole", "killed")
    ]
    assert hubs[0]["best_score"] == hubs[1]["best_score"]


def test_a_work_directory_takes_one_training(tmp_path):
    runner = build(tmp_path)

    class Second(Hook):
        def before_train(self, runner):
            with pytest.raises(
                EngineError, match=rf"{tmp_path}: another .*process {os.getpid()} on"
            ):
                train(tmp_path)
            self.came = True

    second = Second()
    runner.register_hook(second)
    runner.train()
    assert second.came
    train(tmp_path)


def test_a_half_written_checkpoint_is_removed(tmp_path):
    (tmp_path / "best_score_epoch_4.pth.tmp").touch()
    train(tmp_path, epochs=1)
    assert checkpoints(tmp_path) == ["epoch_1.pth"]


def test_resuming_on_other_threads_or_processes_is_said(tmp_path):
    train(tmp_path, epochs=1)
    change(tmp_path / "epoch_1.pth", lambda c: c["meta"].update(threads=64, processes=8, iter=1))
    _, runner = train(tmp_path, epochs=2, resume=True)
    log = Path(runner.logger._log_file).read_text()
    assert "a run with 8 processes, this one has 1: its batches and their learning" in log
    assert "a run with 64 threads, this one has" in log
    assert "1 iterations in 1 epochs, where an epoch has 3 here: counting goes on from 3" in log
    assert runner.iter == 6


def test_weights_of_another_model(tmp_path):
    train(tmp_path, epochs=1)
    path = str(tmp_path / "epoch_1.pth")
    with pytest.raises(CheckpointError, match=r"epoch_1.pth does not fit.*head.weight \(4, 4\)"):
        train(tmp_path / "resumed", model=Toy(width=2), load_from=path, resume=True)
    runner = build(tmp_path / "tested", model=Toy(width=2), validate=True, load_from=path)
    with pytest.raises(CheckpointError, match=r"epoch_1.pth does not fit.*head.bias \(4,\)"):
        runner.val()
    # fine-tuning may bring another head
    runner = build(tmp_path / "tuned", model=Toy(width=2), load_from=path)
    runner.register_hook(Start())
    runner.train()
    trained = torch.load(path, weights_only=True)["state_dict"]["backbone.weight"]
    assert torch.equal(runner.model.start, trained)
