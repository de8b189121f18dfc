"""Whole runs of a toy model."""

import json
import re
from pathlib import Path

import pytest
import torch
from dcndet.models.engine import (
    EngineError,
    NonFiniteError,
)
from mmengine.config import Config
from torch import nn

from dcn import DeformConv2d
from tests.engine.toy import WARM_UP, Images, Toy, build, checkpoints, train


def test_a_refused_run_writes_no_config(tmp_path):
    with pytest.raises(EngineError):
        train(tmp_path, load_from=str(tmp_path / "none.pth"))
    assert not list(tmp_path.glob("*.py"))
    train(tmp_path)
    assert len(list(tmp_path.glob("*.py"))) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_every_epoch_augments_differently(workers, tmp_path):
    _, runner = train(tmp_path, workers=workers)
    seen = [x for batch in runner.model.seen for x in batch]
    assert len(set(seen)) == 18
    noise = [{round(x % 1, 4) for x in seen[i : i + 6]} for i in (0, 6, 12)]
    assert noise[0] != noise[1] != noise[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "nothing to train: 0 iterations, and 3 batches"),
        ({"epochs": -1}, "nothing to train: -3 iterations"),
        ({"batch": 7}, "nothing to train: 0 iterations, and 0 batches .* 6 images"),
        ({"val_interval": 0}, "val_interval: expected at least 1, got 0"),
        ({"epochs": 2.5}, "train_cfg: .*2.5"),
    ],
)
def test_a_run_that_would_train_or_evaluate_nothing_is_refused(settings, message, tmp_path):
    with pytest.raises(EngineError, match=message):
        train(tmp_path, **settings)


def test_a_loss_that_turns_nan_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteError) as error:
        train(tmp_path, model=Toy(fault="loss"))
    assert "loss_cls = nan, loss_bbox = nan at epoch 2, iteration 2, images" in str(error.value)
    assert str(error.value).count(".jpg") == 2
    assert checkpoints(tmp_path) == ["epoch_1.pth"]


def test_weights_that_turn_nan_are_not_saved(tmp_path):
    with pytest.raises(NonFiniteError, match=r"head.weight, ...\) after epoch 2, iteration 3"):
        train(tmp_path, model=Toy(fault="gradient", fault_iter=5))
    assert checkpoints(tmp_path) == ["epoch_1.pth"]


def rates(runner):
    return runner.message_hub.get_scalar("train/lr").data[0].tolist()


COSINE = {"type": "CosineAnnealingLR", "end": 1.0, "convert_to_iter_based": True}
STEPS = {"type": "MultiStepLR", "end": 1.0, "milestones": [1 / 3, 2 / 3]}


def test_floats_of_a_schedule_are_shares_of_the_run(tmp_path):
    for epochs in (3, 6):
        _, runner = train(tmp_path / f"{epochs}", epochs=epochs, schedule=[STEPS])
        third = epochs  # iterations: three an epoch
        expected = [0.01] * third + [0.001] * third + [0.0001] * third
        assert rates(runner) == pytest.approx(expected)
    _, runner = train(tmp_path / "cosine", epochs=2, schedule=[COSINE])
    assert rates(runner)[3] == pytest.approx(0.005)  # half the way of six iterations


@pytest.mark.parametrize("schedule", [[WARM_UP, COSINE], [STEPS, WARM_UP]])
def test_a_longer_run_goes_on_as_one_of_that_length(schedule, tmp_path):
    _, whole = train(tmp_path / "whole", epochs=6, schedule=schedule)
    train(tmp_path / "a", epochs=3, schedule=schedule)
    _, longer = train(tmp_path / "a", epochs=6, schedule=schedule, resume=True)
    assert rates(longer)[9:] == rates(whole)[9:]
    assert rates(longer)[:9] != rates(whole)[:9]
    assert "another than the checkpoint's" in Path(longer.logger._log_file).read_text()


@pytest.mark.parametrize(("end", "word"), [(2, "before"), (5, "after"), (3, None)])
def test_whole_numbers_that_miss_the_end_are_warned_about(end, word, tmp_path, capfd):
    train(tmp_path, schedule=[{"type": "CosineAnnealingLR", "end": end, "T_max": end}, WARM_UP])
    printed = [line for line in capfd.readouterr().out.splitlines() if "the run:" in line]
    assert len(printed) == (word is not None)
    assert word is None or f"CosineAnnealingLR ends {word} the run: end={end}" in printed[0]


@pytest.mark.parametrize(("enable", "rate"), [(True, 0.0025), (False, 0.01)])
def test_the_rate_follows_the_batch(enable, rate, tmp_path, capfd):
    scale = {"enable": enable, "base_batch_size": 8}
    _, runner = train(tmp_path, auto_scale_lr=scale, schedule=None)
    assert set(rates(runner)) == {rate}
    printed = capfd.readouterr().out
    assert "batch: 2 images" in printed
    change = "" if rate == 0.01 else f" → {rate}"
    assert f"rate is for 8; learning rate 0.01{change} (" in printed


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_non_finite_iteration_can_be_skipped(fault, tmp_path, capfd):
    model = Toy(fault=fault, fault_iter=4)
    losses, runner = train(tmp_path, model=model, cfg=Config({"skip_non_finite": 1}))
    assert len(losses) == 9
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    assert f"{'loss_cls = nan' if fault == 'loss' else 'the gradient'}" in (
        printed := capfd.readouterr().out
    )
    assert "skipped, 1 of at most 1" in printed


class Normed(Toy):
    """Its fifth batch is not finite, and neither are then the statistics of its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, inputs, data_samples, mode):
        if self.calls == 4:
            inputs = [x * float("nan") for x in inputs]
        return super().forward(inputs, data_samples, mode)


def test_a_skipped_iteration_leaves_no_trace_in_buffers(tmp_path):
    _, runner = train(tmp_path, model=Normed(), cfg=Config({"skip_non_finite": 1}))
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    assert runner.model.backbone[1].num_batches_tracked == 8  # of nine iterations


def test_more_than_the_skips_that_were_asked_for_stop_the_run(tmp_path):
    class Twice(Toy):
        def forward(self, *args, **kwargs):
            self.fault_iter = max(self.fault_iter, self.calls)
            return super().forward(*args, **kwargs)

    with pytest.raises(NonFiniteError, match=r"iteration 3.*training stops, 1 were skipped"):
        train(tmp_path, model=Twice(fault="loss"), cfg=Config({"skip_non_finite": 1}))


def test_heads_of_another_number_of_classes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Images, "metainfo", {"classes": ("cat", "dog")}, raising=False)
    model = Toy()
    # For RPN it is object or not, whatever the classes are; semantic heads have others.
    for name, count in (("bbox_head", 2), ("rpn_head", 1), ("semantic_head", 183)):
        head = nn.Linear(1, 1).requires_grad_(False)
        head.num_classes = count
        setattr(model, name, head)
    train(tmp_path, model=model, epochs=1)
    model.bbox_head.num_classes = 3
    with pytest.raises(EngineError) as error:
        train(tmp_path, model=model)
    assert str(error.value) == (
        "model.bbox_head.num_classes is 3, but the training data has 2 classes (cat, dog): set it "
        "to 2"
    )


def test_channels_last_has_a_switch(tmp_path):
    for last in (True, False):
        model = Toy()
        model.conv = nn.Conv2d(4, 4, 3)
        runner = build(tmp_path, model=model, cfg=Config({"channels_last": last}))
        weight = runner.model.conv.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == last


class Deformable(Toy):
    def __init__(self):
        super().__init__()
        self.layer4 = nn.Sequential(DeformConv2d(4, 4, 3))


@pytest.mark.parametrize(
    ("keys", "offsets", "weight"),
    [
        (None, 0.001, 0.01),
        ({"layer4": {"lr_mult": 0.5}}, 0.0005, 0.005),
        ({"layer4.0.conv_offset": {"lr_mult": 1.0}}, 0.01, 0.01),
    ],
)
def test_offsets_learn_at_a_tenth_without_a_line_in_the_config(keys, offsets, weight, tmp_path):
    runner = build(tmp_path, model=Deformable())
    wrapper = {"optimizer": {"type": "SGD", "lr": 0.01}}
    if keys:
        wrapper["paramwise_cfg"] = {"custom_keys": keys}
    groups = runner.build_optim_wrapper(wrapper).optimizer.param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    layer = runner.model.layer4[0]
    assert rate[id(layer.conv_offset.bias)] == pytest.approx(offsets)
    assert rate[id(layer.weight)] == pytest.approx(weight)


def test_the_log_has_the_memory_without_a_gpu_too(tmp_path):
    _, runner = train(tmp_path)
    line = r"time: \S+  data_time: \S+  memory: (\d+)  loss"  # mmengine's, with a GPU
    printed = [int(mb) for mb in re.findall(line, Path(runner.logger._log_file).read_text())]
    logs = next(tmp_path.glob("*/vis_data/scalars.json")).read_text().splitlines()
    assert [json.loads(line)["memory"] for line in logs] == printed
    assert len(printed) == 3
    assert 50 < printed[0] <= printed[-1] < 50_000 or torch.cuda.is_available()


def test_the_first_screen_is_short_and_the_log_file_has_everything(tmp_path, capfd):
    _, runner = train(tmp_path)
    printed = capfd.readouterr().out
    before = printed[: printed.index("Epoch(train)")]
    assert len(before.splitlines()) <= 12
    assert "3 epochs of 3 iterations" in before
    assert "Hooks will be executed" not in printed
    log = Path(runner.logger._log_file).read_text()
    assert "Hooks will be executed" in log
    assert "3 epochs of 3 iterations" in log
