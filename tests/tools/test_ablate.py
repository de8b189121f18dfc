"""tools/ablate.py: studies, their runs and results. Most with a training that takes no time."""

import csv
import fcntl
import json
import re
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import submitit  # importing it closes absl's stream: within a test, that is pytest's capture
import torch
from mmengine.config import Config

from tests.command import run_tool
from tools.ablation import running
from tools.ablation.intervals import compare
from tools.ablation.report import as_text
from tools.ablation.results import (
    Record,
    curve,
    make_results,
    read_log,
    read_record,
    write_text,
)
from tools.ablation.study import COCO, Study, StudyError
from tools.ablation.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
MNIST = ROOT / "configs/mnist/cnn_10e_mnist.py"
DIGITS = ROOT / "configs/quickstart/faster-rcnn_r18_fpn_digits.py"

# In place of tools/train.py. What a run does stands in the file `script` of its study's folder:
# a line a call, 'ok' where there is none.
TRAINING = """
import json, os, signal, sys
from pathlib import Path
config, folder = Path(sys.argv[1]), Path(sys.argv[3])
study = config.parent.parent
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
with open(study / "calls", "a") as calls:
    calls.write(f"{config.stem} {' '.join(sys.argv[4:5])}\\n")
number = len((study / "calls").read_text().splitlines()) - 1
script = (study / "script").read_text().split() if (study / "script").exists() else []
what = script[number] if number < len(script) else "ok"
seed = int(config.stem[-1])
logs = folder / str(number).zfill(4) / "vis_data"
logs.mkdir(parents=True)
def log(**line):
    with open(logs / "scalars.json", "a") as file:
        file.write(json.dumps(line) + "\\n")
if what == "error":
    print("something to look at")
    sys.exit("error: the disk is full")
(folder / "epoch_1.pth").write_bytes(b"")
for epoch in (1, 2):
    log(loss=3.0 / epoch, time=0.25, memory=90 - epoch, epoch=epoch, step=10 * epoch)
    if what in ("killed", "stopped") and epoch == 2:
        open(logs / "scalars.json", "a").write('{"coco/bbox_mAP": 0.')
        os.kill(os.getpid(), signal.SIGKILL if what == "killed" else signal.SIGINT)
    ap = len(config.stem) / 100 + seed / 10 + epoch / 1000
    log(**{"coco/bbox_mAP": ap, "coco/bbox_mAP_50": ap, "coco/bbox_mAP_75": ap, "step": epoch})
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder for a study whose trainings are those of TRAINING."""
    (tmp_path / "train.py").write_text(TRAINING)
    monkeypatch.setattr(running, "TRAIN", tmp_path / "train.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "work"


def write(tmp_path, name="study.py", **content):
    content = {"base": str(DIGITS), "seeds": [0, 1], "axes": {"layers": [0, 3]}} | content
    content = {key: value for key, value in content.items() if value is not None}
    content.setdefault("options", {"train_cfg.max_epochs": 2, "train_cfg.val_interval": 1})
    path = tmp_path / name
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in content.items()))
    return path


def ablate(*args):
    return run_tool("ablate.py", *args)


def execute(study, folder):
    workspace = Workspace(Study.read(study), folder)
    workspace.claim()
    todo = [run for run, record in workspace.records() if not record.finished]
    return list(running.execute_all(todo, jobs=1)), workspace


def calls(folder):
    return (folder / "calls").read_text().splitlines()


# Studies


def test_axes_make_a_grid(tmp_path):
    axes = {"layers": [0, 3, 12], "conv": ["dconv", "mdconv"]}
    study = Study.read(write(tmp_path, axes=axes, seeds=[3, 5]))
    assert [cell.name for cell in study.cells] == [
        "0 layers",  # once: there is nothing to modulate
        "3 layers, dconv",
        "3 layers, mdconv",
        "12 layers, dconv",
        "12 layers, mdconv",
    ]
    runs = study.runs(tmp_path / "work")
    assert [run.seed for run in runs] == [3] * 5 + [5] * 5
    config = runs[6].content
    assert config.model.backbone.deform.layers == 3
    assert config.model.backbone.deform.conv == "dconv"
    assert config.randomness.seed == 5
    assert config.train_cfg.max_epochs == 2


def test_rows_and_keys(tmp_path):
    rows = [
        dict(name="regular", layers=0, pool="align", mimic="off"),
        dict(name="all", layers=12, conv="mdconv", pool="mdpool", mimic="both"),
    ]
    axes = {"optim_wrapper.optimizer.lr": [0.1, 0.2]}
    study = Study.read(write(tmp_path, rows=rows, axes=axes, baseline={"name": "all, lr=0.1"}))
    assert [cell.name for cell in study.cells] == [
        *("regular, lr=0.1", "regular, lr=0.2", "all, lr=0.1", "all, lr=0.2")
    ]
    assert study.baseline is study.cells[2]
    config = study.runs(tmp_path)[3].content
    assert config.model.mimic.on == "both"
    assert config.model.roi_head.bbox_roi_extractor.pool == "mdpool"
    assert config.optim_wrapper.optimizer.lr == 0.2


@pytest.mark.parametrize("study", sorted((ROOT / "configs" / "studies").glob("*.py")))
def test_the_studies_of_this_repository(study):
    # Of these, one says of itself that it is one run of each, and one that it is a single row.
    least = {"digits_mimic_settings": (1, 2), "mnist_regular": (3, 1)}.get(study.stem, (3, 2))
    study = Study.read(study)
    assert len(study.seeds) >= least[0]
    assert len(study.cells) >= least[1]
    assert len({cell.folder for cell in study.cells}) == len(study.cells)
    for run in study.runs(Path("work")):
        assert run.content.train_cfg.max_epochs > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (dict(axes={}), "no cell: give axes, rows or both"),
        (dict(axes=None), "no cell"),
        (dict(axes={"layers": []}), "no cell"),
        (dict(rows=[]), "no cell"),
        (dict(axes={"layer": [1]}), "py: axes: the config has no key layer; did you mean layers"),
        (
            dict(axes={"model.backbone.dept": [18]}),
            "no key model.backbone.dept; did you mean model.backbone.depth",
        ),
        (dict(options={"train_cfg.max_epoch": 1}), "options: .* no key train_cfg.max_epoch; "),
        (dict(axes={"layers": 3}), "axes: layers: expected a list of values, got 3"),
        (dict(axes={"layers": ["many"]}), "layers: expected a number of layers, got 'many'"),
        (
            dict(axes={"conv": ["modulated"]}),
            "conv: expected one of dconv, mdconv, .*conv_offset, got 'modul",
        ),
        (
            dict(axes={"pool": ["max"]}),
            "pool: expected one of roipool, align, dpool, mdpool, got 'max'",
        ),
        (dict(axes={"mimic": [True]}), "mimic: expected one of off, .*both, got True"),
        (dict(seeds=[]), "seeds is missing or empty"),
        (dict(seeds=[0, 0]), r"seeds: \[0, 0\] has one of them twice"),
        (dict(seeds=[0.5]), r"seeds: expected whole numbers from 0, got \[0.5\]"),
        (dict(base="none.py"), r"base: config not found: .*none.py"),
        (dict(baseline={"layers": 4}), "baseline: 0 cells are {'layers': 4}, expected one"),
        (dict(seed=[1]), "seed: unknown, expected some of .*seeds"),
        (dict(rows=dict(layers=3)), "rows: expected a list, got {"),
        (dict(pictures={"cells": ["x"]}), "pictures: no cell is named 'x'"),
        (dict(pictures={"cell": ["x"]}), "pictures: cell: unknown"),
        (dict(pairs=[("0 layers", "x")]), "pairs: no cell is named 'x'"),
        (dict(pairs=[("0 layers",) * 2]), "pairs: expected two names of cells, got"),
        (dict(pairs=["ab"]), "pairs: expected two names of cells, got 'ab'"),
        (dict(axes={"randomness.seed": [1]}), "randomness.seed is set for every run"),
        (dict(axes={"conv": ["dconv"]}), "conv: the base has no deformable layer"),
        (dict(axes={"stages": [3]}), "stages: expected a bool per stage, got 3"),
        (dict(pictures={"images": "2"}), "pictures: images: expected a number, got '2'"),
        (
            dict(rows=[dict(name=n, layers=0, conv=n) for n in ("dconv", "mdconv")], axes=None),
            "the cells 'dconv' and 'mdconv' are the same",
        ),
        (dict(metrics={}), "metrics: expected what is logged by name, got {}"),
        (dict(metrics={"AP": 1}), "metrics: expected what is logged by name"),
        (dict(metrics={"seed": "a/b"}), "metrics: the table has another column 'seed'"),
        (dict(base=str(MNIST), axes={"pool": ["align"]}), "pool: the base is no two-stage"),
        (dict(rows=[dict(name="..", layers=3)], axes=None), "'..' cannot name a folder"),
        (dict(rows=[dict(name="x" * 200, layers=3)], axes=None), "cannot name a folder"),
    ],
)
def test_bad_studies_are_refused_by_name(tmp_path, content, message):
    path = write(tmp_path, **content)
    with pytest.raises(StudyError, match=message) as error:
        Study.read(path)
    assert str(path) in str(error.value)


def test_a_study_of_classifiers_compares_what_it_names(tmp_path, capsys):
    settings = dict(base=str(MNIST), seeds=[0], axes={"layers": [0, 3]})
    assert Study.read(write(tmp_path, **settings)).metrics.keys == {"top-1": "accuracy/top1"}
    metrics = {"zoomed": "accuracy/zoomed/top1", "all": "accuracy/top1"}
    runs = Study.read(write(tmp_path, **settings, metrics=metrics)).runs(tmp_path / "runs")
    logs = runs[0].folder / "1" / "vis_data" / "scalars.json"
    lines = [dict(loss=1.0, time=0.1, step=5)]
    lines += [
        {"accuracy/zoomed/top1": 70.5 + e, "accuracy/top1": 80 + e, "step": e} for e in (1, 2)
    ]
    write_text(logs, "".join(json.dumps(line) + "\n" for line in lines))
    write_text(runs[0].config, f"# {' '.join(runs[0].identity)}\n")
    assert read_record(runs[0]).metrics == {"zoomed": 72.5, "all": 82}
    results = make_results(Study.read(tmp_path / "study.py"), [(runs[0], read_record(runs[0]))], {})
    table = as_text(results)
    assert [*table.columns[:3]] == ["seeds", "zoomed", "difference"]
    assert table.loc["0 layers", ["zoomed", "all"]].tolist() == ["72.50", "82.00"]

    # The same column of something else: the record that is there is of no use.
    [run, _] = Study.read(write(tmp_path, **settings, metrics={"zoomed": "accuracy/top1"})).runs(
        tmp_path / "runs"
    )
    assert read_record(run).metrics == {"zoomed": 82}
    assert "it has other metrics" in capsys.readouterr().out
    [run, _] = Study.read(write(tmp_path, **settings, metrics={"x": "accuracy/zomed"})).runs(
        tmp_path / "runs"
    )
    with pytest.raises(
        StudyError, match="no accuracy/zomed, but accuracy/zoomed/top1, accuracy/top1"
    ):
        running.collect(run)


def test_files_that_are_no_study(tmp_path):
    with pytest.raises(StudyError, match=r"study not found: .*none\.py"):
        Study.read(tmp_path / "none.py")
    for name, content in {
        "half.py": "axes = dict(layers=[0,",
        "no.txt": "",
        "x.py": "1 / 0",
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(StudyError, match=f"{name} is not a study"):
            Study.read(tmp_path / name)


def test_keys_that_the_base_leaves_out_and_their_names(tmp_path):
    base = str(DIGITS.with_name("faster-rcnn_r18-mdconv_fpn_mdpool_mimic_digits.py"))
    axes = {
        "stages": [[False, False, True, True]],
        "model.mimic.loss_mimic.loss_weight": [0.1],
        "model.mimic.loss_cls.loss_weight": [0.2],
        "model.roi_head.bbox_roi_extractor.deform.shared_fc": [False],
    }
    study = Study.read(write(tmp_path, base=base, axes=axes))
    name = "stages=[False, False, True, True], loss_mimic.loss_weight=0.1, "
    assert study.cells[0].name == name + "loss_cls.loss_weight=0.2, shared_fc=False"
    model = study.runs(tmp_path)[0].content.model
    assert model.backbone.deform == dict(layers=None, stages=[False, False, True, True])
    assert model.mimic.loss_cls.loss_weight == 0.2
    assert model.roi_head.bbox_roi_extractor.deform.shared_fc is False


@pytest.fixture
def weights(fake):
    """A study of two cells that start from weights, in a file each."""
    for name in ("a.pth", 'é "b".pth'):
        (fake.parent / name).write_bytes(b"weights of " + name.encode())
    pretrained = dict(type="Pretrained", checkpoint='é "b".pth')
    rows = [
        dict(name="tuned", load_from="a.pth"),
        {"name": "backbone", "model.backbone.init_cfg": pretrained},
    ]
    return write(fake.parent, rows=rows, axes=None, seeds=[0])


def test_weights_are_settings(weights, fake):
    tuned, backbone = Study.read(weights).runs(fake)
    assert tuned.content.load_from == "a.pth"
    assert backbone.content.model.backbone.init_cfg.checkpoint == 'é "b".pth'
    assert [run.weights for run in (tuned, backbone)] == [[Path("a.pth")], [Path('é "b".pth')]]
    axes = {"model.backbone.init_cfg": [None, dict(type="Pretrained", checkpoint="x://y")]}
    options = {"load_from": "https://a/b.pth"}
    study = Study.read(write(fake.parent, "other.py", axes=axes, options=options))
    for run in study.runs(fake)[:2]:
        assert run.content.load_from == "https://a/b.pth"
        assert run.weights == []
        assert len(run.identity) == 1
    of_each_seed = write(fake.parent, "seeds.py", axes=axes, options={"load_from": "{seed}/a.pth"})
    weights = [run.weights[0] for run in Study.read(of_each_seed).runs(fake)]
    assert weights == [Path("0/a.pth")] * 2 + [Path("1/a.pth")] * 2


def test_runs_are_of_the_weights_that_they_started_from(weights, fake):
    ended, _ = execute(weights, fake)
    assert all(record.finished for _, record in ended)
    assert Config.fromfile(ended[0][0].config).load_from == "a.pth"  # from the current folder
    content = Path("a.pth").read_bytes()
    Path("a.pth").write_bytes(content)  # again
    assert execute(weights, fake)[0] == []
    Path("a.pth").write_bytes(b"others")
    with pytest.raises(StudyError, match="of another config or other weights than tuned, seed 0"):
        execute(weights, fake)
    Path("a.pth").unlink()
    assert Workspace(Study.read(weights), fake).records()[0][1].finished  # there is a report
    with pytest.raises(StudyError, match=r"weights not found: a\.pth"):
        execute(weights, fake)
    assert len(calls(fake)) == 2


# Runs


def test_a_study_runs_once(fake):
    study = write(fake.parent)
    ended, workspace = execute(study, fake)
    assert [record.finished for _, record in ended] == [True] * 4
    record = ended[0][1]
    assert record.metrics["AP"] == pytest.approx(len("0_layers_seed-0") / 100 + 0.002)
    assert record.iteration == 0.25
    assert 0 < record.seconds < 60
    assert record.memory == 89
    assert len(calls(fake)) == 4
    assert execute(study, fake)[0] == []
    assert len(calls(fake)) == 4
    # One seed more, and nothing of the old ones is touched.
    before = {path: path.read_text() for path in fake.rglob("run.json")}
    ended, _ = execute(write(fake.parent, seeds=[0, 1, 7]), fake)
    assert [run.seed for run, _ in ended] == [7, 7]
    assert all(path.read_text() == text for path, text in before.items())
    run = workspace.runs[0]
    assert Config.fromfile(run.config).to_dict() == run.content.to_dict()


def test_a_failed_run_stops_nothing_and_is_tried_again(fake):
    study = write(fake.parent)
    fake.mkdir()
    (fake / "script").write_text("ok error killed ok")
    ended, workspace = execute(study, fake)
    assert [record.finished for _, record in ended] == [True, False, False, True]
    assert ended[1][1].error == "error: the disk is full"
    assert ended[2][1].error.startswith("killed by signal 9")
    results = make_results(workspace.study, workspace.records(), {})
    assert results.cells[["finished", "failed"]].to_numpy().tolist() == [[1, 1], [1, 1]]
    assert as_text(results)["seeds"].tolist() == ["1 (1 failed)"] * 2
    ended, workspace = execute(study, fake)
    assert [record.finished for _, record in ended] == [True, True]
    assert len(calls(fake)) == 6


def test_two_threads_may_write_the_same_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write_text(tmp_path / "run.json", f"{i}" * 9), range(200)))
    assert len({*(tmp_path / "run.json").read_text()}) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_killed_run_goes_on_from_its_checkpoint(fake, capsys):
    study = write(fake.parent, seeds=[0], axes={"layers": [0]})
    fake.mkdir()
    (fake / "script").write_text("killed killed")
    run = execute(study, fake)[0][0][0]
    # Of a damaged checkpoint nothing can be resumed, and the run starts anew.
    execute(study, fake)
    assert calls(fake)[1] == "0_layers_seed-0 "
    said = capsys.readouterr().out
    assert "0 layers, seed 0: trained anew" in said
    assert "holds no complete checkpoint (not epoch_1.pth)" in said
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    checkpoint = dict(meta=dict(epoch=1, iter=10), state_dict={}, message_hub=hub)
    checkpoint["optimizer"] = dict(state={}, param_groups=[])
    torch.save(checkpoint, run.folder / "epoch_1.pth")
    [(run, record)] = execute(study, fake)[0]
    assert calls(fake)[2] == "0_layers_seed-0 --resume"
    assert record.finished
    assert record.seconds is None  # of a part of the training only
    log = read_log(run.folder)  # of three attempts
    assert curve(log, "loss").to_dict() == {10: 3.0, 20: 1.5}
    assert curve(log, COCO.keys["AP"]).index.tolist() == [1, 2]


def test_damaged_results_are_made_again(fake, capsys):
    study = write(fake.parent)
    _, workspace = execute(study, fake)
    workspace.write_results()
    whole = (fake / "results.csv").read_text()
    (fake / "results.csv").write_text(whole[:100])
    workspace.write_results()
    assert (fake / "results.csv").read_text() == whole
    record = workspace.runs[1].folder / "run.json"
    record.write_text('{"finished": true}')
    assert read_record(workspace.runs[1]).metrics
    assert f"{record} is damaged (a metric is missing)" in capsys.readouterr().out
    whole = record.read_text()
    record.unlink()
    config = workspace.runs[1].config.read_text()
    workspace.runs[1].config.unlink()  # the logs could be of any config
    assert read_record(workspace.runs[1]).state == "waiting"
    workspace.runs[1].config.write_text(config)
    record.write_text(whole[:40])
    for path in fake.rglob("*.pth"):
        path.unlink()  # the logs are enough
    ended, _ = execute(study, fake)
    assert f"{record} is damaged" in capsys.readouterr().out
    assert not ended
    assert read_record(workspace.runs[1]).memory == 89
    assert len(calls(fake)) == 4  # nothing was trained again


def test_ctrl_c_leaves_an_interrupted_run(fake):
    fake.mkdir()
    (fake / "script").write_text("stopped ok")
    ended, workspace = execute(write(fake.parent, seeds=[0]), fake)
    assert [record.finished for _, record in ended] == [False, True]
    assert "0 layers, seed 0: interrupted" in workspace.plan(1)


def test_csv_has_a_line_a_run(fake):
    fake.mkdir()
    (fake / "script").write_text("ok error ok")
    _, workspace = execute(write(fake.parent), fake)
    workspace.write_results()
    lines = list(csv.DictReader((fake / "results.csv").open()))
    assert [(x["cell"], x["layers"], x["seed"], x["state"]) for x in lines] == [
        ("0 layers", "0", "0", "finished"),
        ("0 layers", "0", "1", "finished"),
        ("3 layers", "3", "0", "failed"),
        ("3 layers", "3", "1", "finished"),
    ]
    assert lines[2]["error"] == "error: the disk is full"
    assert float(lines[0]["AP"]) == pytest.approx(0.152)


def test_two_studies_in_one_folder(fake):
    execute(write(fake.parent), fake)
    before = sorted(path.read_text() for path in fake.rglob("run.json"))
    other = write(fake.parent, "other.py")
    with pytest.raises(StudyError, match=r"work holds another study \(study\.py, .*--work-dir"):
        execute(other, fake)
    for damaged in ("[]", "{}", "{"):
        fake.with_name("damaged").mkdir(exist_ok=True)
        (fake.with_name("damaged") / "study.json").write_text(damaged)
        with pytest.raises(StudyError, match=r"study\.json is damaged: remove it"):
            execute(other, fake.with_name("damaged"))
    # The same study, of which the base has changed.
    changed = write(fake.parent, options={"train_cfg.max_epochs": 3})
    with pytest.raises(
        StudyError, match="holds a run of another config or other weights than 0 layers"
    ):
        execute(changed, fake)
    assert sorted(path.read_text() for path in fake.rglob("run.json")) == before


def test_nobody_trains_beside_an_orphan(fake):
    study = write(fake.parent)
    run = Study.read(study).runs(fake)[1]
    run.folder.mkdir(parents=True)
    with (run.folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = {each.name: record for each, record in execute(study, fake)[0]}
    assert ended[run.name].error == f"another process is training in {run.folder}"
    assert not (run.folder / "run.json").exists()
    assert sum(record.finished for record in ended.values()) == len(calls(fake)) == 3


def test_jobs_share_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert running._environment(0, 1, 1) == {}
    assert running._environment(1, 4, 1) == running._environment(0, 2, 2)
    assert running._environment(0, 2, 2) == {"OMP_NUM_THREADS": "2"}
    assert running.local_jobs(None, 2) == 1
    assert running.local_jobs(3, 2) == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,1,3,2")
    shares = [running._environment(i, 2, 2)["CUDA_VISIBLE_DEVICES"] for i in range(2)]
    assert shares == ["4,6", "1,3"]
    assert [running.local_jobs(None, gpus) for gpus in (1, 2, 3)] == [5, 2, 1]
    with pytest.raises(StudyError, match="--jobs 3 with --gpus-per-run 2 takes 6 GPUs, and 5 are"):
        running.local_jobs(3, 2)
    with pytest.raises(StudyError, match="takes 8 GPUs"):
        running.local_jobs(None, 8)


def test_a_run_of_several_gpus(fake, monkeypatch):
    stub = fake.parent / "python"
    stub.write_text('#!/bin/sh\necho "error: $*"\necho "torchrun says more"\nexit 1\n')
    stub.chmod(0o755)
    run = Study.read(write(fake.parent)).runs(fake)[0]
    monkeypatch.setattr(sys, "executable", str(stub))
    error = running.execute(run, gpus=2).error
    assert error.startswith("error: -m torch.distributed.run --standalone --nproc-per-node=2 ")
    assert error.endswith(f"train.py {run.config} --work-dir {run.folder} --launcher pytorch")
    workspace = Workspace(Study.read(fake.parent / "study.py"), fake)
    workspace.claim(2)
    Workspace(workspace.study, fake).claim(2)
    with pytest.raises(StudyError, match="holds runs with --gpus-per-run 2, which 1 cannot be"):
        Workspace(workspace.study, fake).claim()


@pytest.mark.slow
def test_two_processes_without_a_gpu(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(dataset)
    base = str(ROOT / "tests/tools/tiny.py")
    study = write(tmp_path, base=base, seeds=[0], axes={"model.backbone.type": ["ResNet"]})
    assert ablate(study, "--work-dir", tmp_path / "work", "--gpus-per-run", "2") is None
    lines = list(csv.DictReader((tmp_path / "work" / "results.csv").open()))
    assert [line["state"] for line in lines] == ["finished"]
    assert float(lines[0]["memory_mb"]) > 100


def test_a_job_of_an_earlier_call_is_waited_for(fake, monkeypatch):
    done, submitted = [], []

    class Job:
        def __init__(self, folder, job_id):
            self.job_id = job_id

        def done(self, force_check=False):
            return bool(done) and not force_check

        def result(self):
            return Record(finished=True)

    class Executor(submitit.AutoExecutor):
        def submit(self, function, run, gpus):
            submitted.append(run)
            return Job(None, "7")

    monkeypatch.setattr(submitit, "SlurmJob", Job)
    monkeypatch.setattr(submitit, "AutoExecutor", lambda folder, cluster: Executor(folder, "local"))
    monkeypatch.setenv("PYTHONPATH", "")
    run = Study.read(write(fake.parent)).runs(fake)[0]
    stopped = Event()
    stopped.set()  # by Ctrl-C
    train = running.cluster("slurm", fake / "jobs", {}, stopped)
    with pytest.raises(StudyError, match="seed 0 goes on as job 7"):
        train(run, {}, 1)
    done.append(True)
    assert train(run, {}, 1).finished
    assert submitted == [run]


# Results


def test_means_differences_and_intervals(fake):
    ended, workspace = execute(write(fake.parent, seeds=[0, 1, 3]), fake)
    cells = make_results(workspace.study, workspace.records(), {}).cells
    base, row = cells.loc["0 layers"], cells.loc["3 layers"]
    values = {
        name: [r.metrics["AP"] for run, r in ended if run.cell.name == name] for name in cells.index
    }
    assert base["AP"] == pytest.approx(statistics.mean(values["0 layers"]))
    assert row["AP std"] == pytest.approx(statistics.stdev(values["3 layers"]))
    assert base[["difference", "low", "high", "seeds needed"]].isna().all()
    assert row["difference"] == pytest.approx(row["AP"] - base["AP"])
    expected = compare(values, "0 layers").loc["3 layers"]
    assert row[["low", "high", "seeds needed"]].tolist() == expected.tolist()


def test_pairs_that_a_study_names(fake, capsys):
    study = write(fake.parent, seeds=[0, 1, 3], pairs=[("3 layers", "0 layers")])
    _, workspace = execute(study, fake)
    results = make_results(workspace.study, workspace.records(), {})
    cell = results.cells.loc["3 layers"]
    pair = results.pairs.loc["3 layers − 0 layers"]
    # One comparison of two cells, as in the table: but for the random points of Dunnett's.
    assert pair.tolist() == pytest.approx(cell[["difference", "low", "high"]].tolist(), abs=1e-3)
    assert ablate(study, "--work-dir", fake, "--report") is None
    for text in (capsys.readouterr().out, (fake / "report.md").read_text()):
        assert re.search(r"^\| 3 layers − 0 layers \| [+-]0.\d{3} +\| -\S+ to \S+ +\|$", text, re.M)
    assert ">3 layers − 0 layers</th>" in (fake / "report.html").read_text()


def test_the_plan(fake):
    study = write(fake.parent)
    workspace = Workspace(Study.read(study), fake)
    assert "4 runs, 4 to do; how long they take can be told when" in workspace.plan(1)
    execute(study, fake)
    for file in [*fake.rglob("seed-1/run.json"), *fake.rglob("seed-1/**/scalars.json")]:
        file.unlink()
    for i, file in enumerate(sorted(fake.rglob("seed-0/run.json"))):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": 600 * (1 + i)}))
    plan = workspace.plan(2).splitlines()
    assert plan[0] == "0 layers, seed 0: finished, AP 0.152"
    assert plan[2] == "0 layers, seed 1: interrupted, about 10 min"
    assert plan[3] == "3 layers, seed 1: interrupted, about 20 min"
    assert (
        plan[4] == "4 runs, 2 to do: about 20 min with 2 at a time, judged by those that are done"
    )
    assert "about 30 min with 1 at a time" in workspace.plan(1)


# The tool


def test_dry_run_writes_nothing(fake, capsys):
    assert ablate(write(fake.parent), "--work-dir", fake, "--dry-run") is None
    assert "3 layers, seed 1: waiting" in capsys.readouterr().out
    assert not fake.exists()


def test_a_report_of_nothing(fake):
    code = ablate(write(fake.parent), "--work-dir", fake, "--report")
    assert (
        code
        == f"error: {fake.parent}/study.py: no run has finished yet, there is nothing to report"
    )
    assert not fake.exists()


def test_the_table_of_a_csv(fake, capsys):
    study = write(fake.parent)
    _, workspace = execute(study, fake)
    workspace.write_results()
    assert ablate(study, "--work-dir", fake, "--report") is None
    report = capsys.readouterr().out
    csv = fake.parent / "kept.csv"
    (fake / "results.csv").rename(csv)
    before = sorted(fake.rglob("*"))
    assert ablate(study, "--work-dir", fake, "--from-csv", csv) is None
    table = capsys.readouterr().out
    assert table.startswith("Highest mean AP: 0.202, 0 layers, the baseline. Intervals without")
    assert table in report
    assert sorted(fake.rglob("*")) == before
    head, *lines = csv.read_text().splitlines(keepends=True)
    for content in (
        *("", "a,b\n1,2\n", table, head),
        head + "".join(lines).replace("0 layers", "1 layer"),
        head + "".join(2 * lines),
        head + "".join(lines).replace("finished", "failed"),
        head + "".join(lines).replace("0.2", "good", 1),
    ):
        csv.write_text(content)
        code = ablate(study, "--from-csv", csv)
        assert code == f"error: {csv} is not a results.csv of {study}"


def test_bad_arguments(fake, capsys):
    study = write(fake.parent)
    assert ablate(fake.parent / "none.py") == f"error: study not found: {fake.parent}/none.py"
    assert ablate(study, "--jobs", "0") == 2
    assert "--jobs: expected at least 1, got 0" in capsys.readouterr().err
    assert "--cluster mine: " in ablate(study, "--work-dir", fake, "--cluster", "mine")
    options = ["--cluster", "local", "--cluster-options", "slurm_partitions=x"]
    assert "--cluster local: " in ablate(study, "--work-dir", fake, *options)
    (fake.parent / "file").write_text("")
    assert "cannot write to" in ablate(study, "--work-dir", fake.parent / "file" / "work")


@pytest.mark.slow
def test_real_runs_on_a_cluster(dataset, tmp_path, monkeypatch, capsys):
    """submitit's cluster of this machine; trainings and report are the real ones."""
    monkeypatch.chdir(dataset)
    monkeypatch.setenv("PYTHONPATH", "")  # the tool sets it for the jobs
    study = write(
        tmp_path,
        base=str(ROOT / "tests/tools/tiny.py"),
        seeds=[0],
        axes={"model.backbone.type": ["ResNet", "DeformResNet"]},
        options={"train_cfg.max_epochs": 1},
        pictures={"cells": ["type=ResNet", "type=DeformResNet"]},
    )
    options = ["--work-dir", tmp_path / "work", "--cluster", "local"]
    assert ablate(study, *options, "--cluster-options", "timeout_min=5") is None
    said = capsys.readouterr().out
    assert "[2/2] type=" in said
    lines = list(csv.DictReader((tmp_path / "work" / "results.csv").open()))
    assert [line["state"] for line in lines] == ["finished"] * 2
    assert {line["parameters"] for line in lines} == {lines[0]["parameters"]}
    assert all(float(lines[0][key]) > 0 for key in ("gflops", "memory_mb"))
    assert re.search(r"\| type=ResNet +\| 1 +\| 0\.", (tmp_path / "work/report.md").read_text())
    page = (tmp_path / "work" / "report.html").read_text()
    for cell in ("annotated", "type=ResNet", "type=DeformResNet"):
        assert len(re.findall(rf"<figcaption>{cell}: \d+ box", page)) == 6
    assert len(list((tmp_path / "work" / "jobs").glob("*_log.out"))) == 2


def test_pool_is_that_of_boxes_and_masks(tmp_path):
    base = ROOT / "configs/dcnv2/mask-rcnn_r50_dc5_1x_coco.py"
    study = Study.read(write(tmp_path, base=str(base), axes={"pool": ["align", "mdpool"]}))
    _, cell = study.cells
    head = cell.config.model.roi_head
    assert head.bbox_roi_extractor.pool == head.mask_roi_extractor.pool == "mdpool"
