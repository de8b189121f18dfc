import os
import pickle
import urllib.error
from collections import OrderedDict

import numpy as np
import pytest
import torch
from dcndet.models.engine import CheckpointError, load_weights
from dcndet.models.engine import checkpoint as checkpoint_module
from dcndet.models.engine.checkpoint import load_arrays
from dcndet.models.engine.plain import from_plain, to_plain
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, get_torchvision_models, load_checkpoint
from torch import nn


class Runs:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def load(path):
    return CheckpointLoader.load_checkpoint(str(path), map_location="cpu")


def cached(url, monkeypatch, tmp_path):
    """Where torch.hub looks for ``url`` before it downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / os.path.basename(url)


@pytest.mark.parametrize("source", ["local", "http", "torchvision"])
def test_a_malicious_pickle_is_refused_and_not_executed(source, tmp_path, monkeypatch):
    path, name = tmp_path / "evil.pth", str(tmp_path / "evil.pth")
    if source != "local":
        url = get_torchvision_models()["resnet50"]
        path = cached(url, monkeypatch, tmp_path)
        name = url if source == "http" else "torchvision://resnet50"
    marker = tmp_path / "executed"
    torch.save({"state_dict": {}, "meta": Runs(os.mkdir, str(marker))}, path)
    with pytest.raises(CheckpointError, match=rf"{path.name}.*mkdir.*could run code"):
        load(name)
    assert not marker.exists()


ARRAY = Runs(np.ndarray, (1,), Runs(np.dtype, "O"), b"AAAAAAAA")  # a pointer to 0x4141...


@pytest.mark.parametrize(
    "content",
    [
        ARRAY,
        Runs(HistoryBuffer, ARRAY, ARRAY),  # counts a reference at that address
        Runs(np.ndarray, (10**9,), np.dtype("f8")),
        Runs(np.dtype, "O"),
        Runs(np.dtype, "f8,O"),
        np.dtype([("a", "f8"), ("b", "O")]),
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.datetime64("2020-01-01"),
        Runs(np.load, "/etc/passwd"),
        Runs(np._core.multiarray.scalar, np.dtype("f8"), b"AAAA"),
    ],
)
def test_a_pickle_calls_no_constructor_of_numpy(content, tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"meta": content}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load(path)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickled_arrays_are_read_as_tensors(protocol, tmp_path):
    weights = {
        "float": np.float32([[1, 2, 3], [4, 5, 6]]),
        "column-major": np.asfortranarray(np.float64([[1, 2], [3, 4]])),
        "big-endian": np.array([1, 2], ">i4"),
        "count": np.array(7),
    }
    content = {"model": OrderedDict(weights), "__author__": "someone"}
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    read = load_arrays(path)
    assert read["__author__"] == "someone"
    assert read["model"].keys() == weights.keys()
    for key, value in weights.items():
        native = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        assert torch.equal(read["model"][key], native)
        assert read["model"][key].dtype == native.dtype


def test_a_pickle_of_arrays_that_holds_more_is_refused_and_not_executed(tmp_path):
    marker = tmp_path / "executed"
    path = tmp_path / "evil.pkl"
    for content, message in (
        (Runs(os.mkdir, str(marker)), r"evil\.pkl.*mkdir.*could run code"),
        (Runs(getattr, np.ones(1), "dump"), r"evil\.pkl.*getattr.*could run code"),
        (ARRAY, r"evil\.pkl"),
        (Runs(np.dtype, "O"), r"evil\.pkl.*numpy\.dtype"),
        (np.array([{}], dtype=object), r"evil\.pkl.*numpy\.dtype"),
    ):
        path.write_bytes(pickle.dumps({"model": {"weight": content}}))
        with pytest.raises(CheckpointError, match=message):
            load_arrays(path)
    for content in (b"", b"not a pickle", pickle.dumps({"a": np.ones(9)})[:-20]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"evil\.pkl: truncated or not a checkpoint"):
            load_arrays(path)
    assert not marker.exists()


def test_getattr_in_a_checkpoint_reaches_nothing(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"meta": Runs(getattr, HistoryBuffer, "__init__")}, path)
    assert load(path) == {"meta": None}


def test_pretrained_weights_of_a_config_are_loaded_safely(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"meta": Runs(os.mkdir, str(tmp_path / "executed"))}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        BaseModule(init_cfg={"type": "Pretrained", "checkpoint": str(path)}).init_weights()
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load_checkpoint(nn.Linear(1, 1), str(path))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["s3://bucket/a.pth", "petrel://a.pth", "pavi://a.pth"])
def test_storages_whose_loaders_execute_pickles_are_refused(name):
    with pytest.raises(CheckpointError, match=name):
        load(name)


def test_names_of_published_models(tmp_path, monkeypatch):
    path = cached(get_torchvision_models()["resnet50"], monkeypatch, tmp_path)
    torch.save({"conv1.weight": torch.ones(2)}, path)
    assert load("torchvision://resnet50")["conv1.weight"].sum() == 2
    for scheme in ("torchvision", "open-mmlab", "mmcls"):
        with pytest.raises(CheckpointError, match=f"{scheme}://resnet5000 names no"):
            load(f"{scheme}://resnet5000")


def damaged(tmp_path, kind):
    path = tmp_path / f"{kind}.pth"
    if kind == "truncated":
        torch.save({"state_dict": {"weight": torch.zeros(10_000)}}, path)
        path.write_bytes(path.read_bytes()[:20_000])
    elif kind == "pickled":
        path.write_bytes(pickle.dumps({"weight": 1}))
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind != "missing":
        path.write_text({"text": "{'state_dict': 1}\n", "empty": ""}[kind])
    return path


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "pickled", "list", "missing"])
def test_what_is_no_checkpoint_is_refused_by_name(kind, tmp_path):
    path = damaged(tmp_path, kind)
    with pytest.raises(CheckpointError, match=str(path)) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_published_checkpoints_of_older_versions_load(tmp_path):
    checkpoint = {
        "meta": {"epoch": 12, "CLASSES": ("a",), "mAP": np.float64(0.374), "seed": np.int64(0)},
        "state_dict": OrderedDict(weight=torch.ones(1, 1)),
    }
    path = tmp_path / "faster_rcnn.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    # numpy 1 wrote this module's name without the underscore
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    assert load(path)["meta"]["mAP"] == 0.374


@pytest.mark.parametrize("kind", ["bit", "block"])
def test_a_file_that_changed_on_the_disk_is_refused(kind, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"weight": torch.rand(5000)}}, path)
    content = bytearray(path.read_bytes())
    if kind == "bit":
        content[12_000] ^= 1
    else:
        content[8_192:12_288] = bytes(4096)
    path.write_bytes(content)
    assert "weight" in torch.load(path, weights_only=True)["state_dict"]  # torch does not notice
    with pytest.raises(CheckpointError, match=r"a\.pth: it is damaged \(.*data/0 has another"):
        load(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda path: torch.jit.script(nn.Linear(1, 1)).save(path), "a TorchScript archive"),
        (lambda path: torch.save(nn.Linear(1, 1), path), r"a Python object \(torch\.nn\.modules"),
        (lambda path: path.write_bytes(pickle.dumps(Runs(os.mkdir, "/x"))), "or not a checkpoint"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no zip"), "truncated or not a checkpoint"),
    ],
)
def test_a_refusal_says_why_and_does_not_advise_the_unsafe_way(content, reason, tmp_path):
    content(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth: .*{reason}") as error:
        load(tmp_path / "a.pth")
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)


def test_plain_values_come_back_with_their_types():
    value = {
        "a": (1, [np.float32(0.5), np.int64(3), None], {"b": True}),
        "c": np.arange(3),
        "d": HistoryBuffer([1.0, 2.0], [1, 1]),
    }
    plain = to_plain(value, "x")
    assert plain["a"] == (1, [0.5, 3, None], {"b": True})
    assert type(plain["a"][1][0]) is float
    assert plain["c"].tolist() == [0, 1, 2]
    (again,) = from_plain({"d": plain["d"]}).values()
    assert again.data[0].tolist() == [1, 2]
    with pytest.raises(TypeError, match=r"^x\.a\[0\] is a Module, which no checkpoint"):
        to_plain({"a": [nn.Module()]}, "x")


def test_strict_loading_names_what_differs():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    state = model.state_dict()
    load_weights(model, {"state_dict": {f"module.{k}": v for k, v in state.items()}}, "x", True)
    state["1.weight"] = torch.zeros(5, 3)
    state["other"] = state.pop("0.weight")
    with pytest.raises(CheckpointError) as error:
        load_weights(model, state, "a.pth", strict=True)
    assert str(error.value) == (
        "a.pth does not fit the model: 1 keys missing: 0.weight; 1 keys unexpected: other; "
        "1 keys of another shape: 1.weight (5, 3) for (1, 3)"
    )


def test_the_config_beside_weights_that_do_not_fit_is_named(tmp_path):
    (tmp_path / "run.py").touch()
    with pytest.raises(CheckpointError, match=r"a config lies beside it: .*run\.py"):
        load_weights(nn.Linear(1, 1), {}, str(tmp_path / "a.pth"), strict=True)


def test_a_text_file_gives_no_advice_to_load_it_unsafely(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("# Notes\n")
    with pytest.raises(CheckpointError, match=r"truncated or not a checkpoint$"):
        load(path)


def test_lenient_loading_takes_what_fits_and_says_how_much(monkeypatch):
    said = []
    monkeypatch.setattr(checkpoint_module, "say", lambda logger, line: said.append(line))
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = model[1].weight.clone()
    load_weights(model, {"0.weight": torch.ones(3, 2), "1.weight": torch.ones(4, 3)}, "a", False)
    assert (model[0].weight == 1).all()
    assert torch.equal(model[1].weight, before)
    assert said == [
        "a fills 46.2% of the model's parameters (1 of 4 tensors); of its 2 keys these do not fit: "
        "1.weight"
    ]


def test_lenient_loading_refuses_what_fills_next_to_nothing():
    model = nn.Sequential(nn.Linear(20, 3), nn.Linear(3, 1))
    state = {"0.bias": torch.ones(3), "0.weight": torch.ones(4, 20)}
    with pytest.raises(CheckpointError, match=r"a\.pth.*fill 4\.5%.*\(1 of 4 tensors\).*0\.weight"):
        load_weights(model, state, "a.pth", strict=False)
    assert not (model[0].bias == 1).any()


def test_lenient_loading_needs_something_for_the_backbone():
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 9)})
    state = {"head.weight": torch.ones(9, 2), "backbone.weight": torch.ones(3, 2)}
    with pytest.raises(CheckpointError, match=r"a\.pth.*; 0\.0% of the backbone"):
        load_weights(model, state, "a.pth", strict=False)


def test_failed_download_is_not_called_a_damaged_file(monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(CheckpointError, match=r"resnet18.*Name or service not known") as error:
        CheckpointLoader.load_checkpoint("torchvision://resnet18")
    assert "truncated" not in str(error.value)
