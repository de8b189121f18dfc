"""Checkpoints, most of them bad, all made from one that a run of a toy model wrote."""

import contextlib
import copy
import datetime
import functools
import gzip
import io
import os
import pathlib
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from tests.engine.toy import Stop, train

Content = bytes | Callable[[Path], object]


@functools.cache
def _file() -> bytes:
    """The first of two epochs."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = contextlib.redirect_stdout(io.StringIO())
        with contextlib.suppress(KeyboardInterrupt), quiet:
            train(Path(folder), epochs=2, hook=Stop())
        return Path(folder, "epoch_1.pth").read_bytes()


def _content() -> dict:
    return torch.load(io.BytesIO(_file()), weights_only=True)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def raw(edit: Callable[[bytes], bytes]) -> Content:
    """The file with its bytes edited."""
    return lambda path: path.write_bytes(edit(_file()))


def whole(content) -> Content:
    """A file of this content."""
    return lambda path: torch.save(content, path)


def changed(**parts) -> Content:
    """With these of its parts in place of its own; what is called gets its own."""

    def write(path):
        content = _content()
        for key, part in parts.items():
            content[key] = part(content.get(key)) if callable(part) else part
        torch.save(content, path)

    return write


def without(*keys: str) -> Content:
    return lambda path: torch.save({k: v for k, v in _content().items() if k not in keys}, path)


def within(key: str, **values) -> Content:
    return changed(**{key: lambda part: {**part, **values}})


def weight(value) -> Content:
    return changed(state_dict=lambda state: {**state, "head.weight": value})


def flipped(content: bytes) -> bytes:
    """One bit of the first tensor."""
    at = content.index(b"FB", content.index(b"data/0")) + 64  # torch pads with these letters
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def zeroed(content: bytes) -> bytes:
    at = len(content) // 3
    return content[:at] + bytes(512) + content[at + 512 :]


def legacy(content) -> Content:
    """In PyTorch's format before 1.6."""
    return lambda path: torch.save(content(), path, _use_new_zipfile_serialization=False)


def renamed_numpy(path: Path) -> None:
    legacy(mmengine)(path)
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))


def mmengine() -> dict:
    """As mmengine's own runner writes it."""
    content = _content()
    scalars = content["message_hub"]["log_scalars"]
    for name, value in scalars.items():
        scalars[name] = HistoryBuffer(value["values"].numpy(), value["counts"].numpy())
    content["meta"]["mAP"] = np.float64(0.5)
    return content


def repacked(
    edit: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED
) -> Content:
    """The zip with its records edited."""

    def write(path):
        with zipfile.ZipFile(io.BytesIO(_file())) as old, zipfile.ZipFile(path, "w", method) as new:
            for name in old.namelist():
                if (content := edit(name, old.read(name))) is not None:
                    new.writestr(name, content)

    return write


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())


def view(size: tuple, stride: tuple, offset: int = 0) -> Content:
    """A tensor whose view lies outside of its four numbers."""
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True
    )
    build = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})
    return lambda path: torch.save({"state_dict": {"head.weight": build}}, path)


def nested(depth: int) -> Content:
    """Lists in lists, deeper than Python recurses."""
    key = pickle.dumps("meta", 2)[2:-3]  # without its header, its place in the memo, and the end
    content = b"\x80\x02}" + key + b"]" * depth + b"a" * (depth - 1) + b"s."
    return repacked(lambda name, c: content if name.endswith("data.pkl") else c)


def doubled(times: int):
    """A list whose end is reached in 2^times ways."""
    value = ["lol"]
    for _ in range(times):
        value = [value, value]
    return value


def circle():
    """A list that holds itself."""
    value = []
    value.append(value)
    return value


ADDRESS = Call(np.ndarray, (1,), Call(np.dtype, "O"), b"AAAAAAAA")
CODE = "open('executed', 'w')"

FILES: dict[str, Content] = {
    # Good ones.
    "good.pth": raw(bytes),
    "name with späce.pth": raw(bytes),
    "link.pth": lambda path: (
        raw(bytes)(path.with_suffix(".target")),
        path.symlink_to(path.with_suffix(".target")),
    ),
    "legacy_format.pth": legacy(_content),
    "of_mmengine.pth": lambda path: torch.save(mmengine(), path),
    "of_mmengine_and_numpy_1.pth": renamed_numpy,
    "more_parts.pth": changed(ema_state_dict={}),
    "of_a_wrapped_model.pth": changed(
        state_dict=lambda state: {f"module.{key}": value for key, value in state.items()}
    ),
    "bytes_behind.pth": raw(lambda content: content + b"behind"),
    "numpy_numbers.pth": within("meta", mAP=np.float32(0.5), count=np.int16(3), ok=np.bool_(True)),
    "numpy_array.pth": within("meta", anchors=np.arange(6.0).reshape(2, 3)),
    # No checkpoint.
    "empty.pth": b"",
    "one_byte.pth": b"\x80",
    "zeros.pth": bytes(10_000),
    "noise.pth": np.random.default_rng(0).bytes(10_000),
    "text.pth": b"epoch: 1\n",
    "page.pth": b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n",
    "pointer_of_git_lfs.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "picture.pth": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "compressed.pth": lambda path: path.write_bytes(gzip.compress(_file())),
    "directory.pth": Path.mkdir,
    "pipe.pth": os.mkfifo,
    "link_to_nothing.pth": lambda path: path.symlink_to("nothing"),
    "link_to_itself.pth": lambda path: path.symlink_to(path.name),
    "other_zip.pth": lambda path: zipfile.ZipFile(path, "w").writestr("a/readme.txt", "text"),
    "empty_zip.pth": lambda path: zipfile.ZipFile(path, "w").close(),
    "torchscript.pth": lambda path: torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path),
    "tar_of_pytorch_0_1.pth": tar,
    "plain_pickle.pth": pickle.dumps({"state_dict": {}}),
    # Damaged.
    "half.pth": raw(lambda content: content[: len(content) // 2]),
    "last_byte_missing.pth": raw(lambda content: content[:-1]),
    "first_kilobyte.pth": raw(lambda content: content[:1000]),
    "first_byte_missing.pth": raw(lambda content: content[1:]),
    "byte_before.pth": raw(lambda content: b"\0" + content),
    "bit_flipped.pth": raw(flipped),
    "block_zeroed.pth": raw(zeroed),
    "twice.pth": raw(lambda content: content + content[: len(content) // 2]),
    "record_missing.pth": repacked(lambda name, c: None if name.endswith("data/0") else c),
    "record_short.pth": repacked(lambda name, c: c[:8] if name.endswith("data/0") else c),
    "pickle_missing.pth": repacked(lambda name, c: None if name.endswith("data.pkl") else c),
    "pickle_empty.pth": repacked(lambda name, c: b"" if name.endswith("data.pkl") else c),
    "pickle_cut.pth": repacked(  # within the length of the last string
        lambda name, c: c[: c.rindex(b"_last_value") - 2] if name.endswith("data.pkl") else c
    ),
    "pickle_of_noise.pth": repacked(
        lambda name, c: bytes(reversed(c)) if name.endswith("data.pkl") else c
    ),
    "zip_deflated.pth": repacked(lambda name, c: c, zipfile.ZIP_DEFLATED),
    # What would run code.
    "runs_system.pth": whole({"state_dict": Call(os.system, "touch executed")}),
    "runs_exec.pth": whole({"meta": Call(exec, CODE), "state_dict": {}}),
    "runs_eval.pth": whole({"meta": Call(eval, CODE), "state_dict": {}}),
    "runs_import.pth": whole({"meta": Call(__import__, "this"), "state_dict": {}}),
    "runs_open.pth": whole({"meta": Call(open, "executed", "w"), "state_dict": {}}),
    "runs_system_as_plain_pickle.pth": pickle.dumps(Call(os.system, "touch executed")),
    "runs_system_in_legacy_format.pth": legacy(lambda: {"meta": Call(os.system, "touch executed")}),
    "runs_partial.pth": whole({"meta": functools.partial(os.system, "touch executed")}),
    "whole_model.pth": whole(nn.Linear(1, 1)),
    "whole_model_inside.pth": whole({"state_dict": {}, "model": nn.Linear(1, 1)}),
    "numpy_address.pth": whole({"state_dict": {}, "meta": ADDRESS}),
    "numpy_address_counted.pth": whole({"meta": Call(HistoryBuffer, ADDRESS, ADDRESS)}),
    "numpy_object_dtype.pth": whole({"state_dict": {}, "meta": Call(np.dtype, "O")}),
    "numpy_structured_dtype.pth": whole({"state_dict": {}, "meta": np.dtype("f8,O")}),
    "numpy_objects.pth": whole({"state_dict": {}, "meta": np.array([{}], dtype=object)}),
    "numpy_text.pth": whole({"state_dict": {}, "meta": np.array(["a"])}),
    "numpy_lists.pth": whole({"state_dict": {}, "meta": Call(HistoryBuffer, ["x", {}], [1, 1])}),
    "weight_of_a_terabyte.pth": weight(torch.zeros(1).expand(2**38)),
    "numpy_8_gb.pth": whole({"state_dict": {}, "meta": Call(np.ndarray, (10**9,), np.dtype("f8"))}),
    "numpy_short_scalar.pth": whole(
        {"state_dict": {}, "meta": Call(np._core.multiarray.scalar, np.dtype("f8"), b"AA")}
    ),
    "numpy_load.pth": whole({"state_dict": {}, "meta": Call(np.load, "/etc/passwd")}),
    "getattr.pth": changed(meta=lambda meta: {**meta, "x": Call(getattr, HistoryBuffer, "update")}),
    "date.pth": whole({"state_dict": {}, "meta": datetime.date(2020, 1, 1)}),
    "path.pth": whole({"state_dict": {}, "meta": pathlib.PurePosixPath("/etc/passwd")}),
    "view_beyond_its_storage.pth": view((100, 100), (100, 1)),
    "view_before_its_storage.pth": view((2,), (1,), offset=-8),
    "view_with_negative_strides.pth": view((2, 2), (-2, -1), offset=3),
    "view_that_overflows.pth": view((2**40, 2**40), (2**40, 1)),
    # Contents of another kind.
    "tensor.pth": whole(torch.zeros(3)),
    "list.pth": whole([torch.zeros(3)]),
    "word.pth": whole("epoch_1"),
    "nothing.pth": whole(None),
    "no_key.pth": whole({}),
    "weights_only.pth": lambda path: torch.save(_content()["state_dict"], path),
    "no_meta.pth": without("meta"),
    "no_message_hub.pth": without("message_hub"),
    "no_optimizer.pth": without("optimizer"),
    "no_schedulers.pth": without("param_schedulers"),
    "no_state_dict.pth": without("state_dict"),
    "state_dict_of_nothing.pth": changed(state_dict={}),
    "state_dict_none.pth": changed(state_dict=None),
    "state_dict_list.pth": changed(state_dict=lambda state: list(state.values())),
    "state_dict_numbered.pth": changed(state_dict=lambda state: dict(enumerate(state.values()))),
    "state_dict_nested.pth": changed(state_dict=lambda state: {"model": state}),
    "weight_missing.pth": changed(state_dict=lambda state: {"head.bias": state["head.bias"]}),
    "weight_more.pth": changed(state_dict=lambda state: {**state, "more": torch.zeros(1)}),
    "weight_of_another_shape.pth": weight(torch.zeros(4, 5)),
    "weight_nan.pth": weight(torch.full((4, 4), float("nan"))),
    "weight_infinite.pth": weight(torch.full((4, 4), float("inf"))),
    "weight_complex.pth": weight(torch.zeros(4, 4, dtype=torch.complex64)),
    "weight_sparse.pth": weight(torch.eye(4).to_sparse()),
    "weight_half.pth": weight(torch.zeros(4, 4, dtype=torch.float16)),
    "weight_on_meta.pth": weight(torch.zeros(4, 4, device="meta")),
    "weight_list.pth": weight([[0.0] * 4] * 4),
    "weight_text.pth": weight("zeros"),
    "meta_none.pth": changed(meta=None),
    "meta_list.pth": changed(meta=["epoch", 1]),
    "meta_empty.pth": changed(meta={}),
    "epoch_text.pth": within("meta", epoch="1"),
    "epoch_negative.pth": within("meta", epoch=-1),
    "epoch_half.pth": within("meta", epoch=0.5),
    "epoch_true.pth": within("meta", epoch=True),
    "epoch_beyond_the_run.pth": within("meta", epoch=10**9, iter=3 * 10**9),
    "iteration_none.pth": within("meta", iter=None),
    "iteration_of_another_length.pth": within("meta", iter=100),
    "seed_text.pth": within("meta", seed="five"),
    "seed_huge.pth": within("meta", seed=10**400),
    "time_number.pth": within("meta", time=5),
    "run_text.pth": within("meta", run="one"),
    "threads_text.pth": within("meta", threads="many"),
    "runs_config.pth": within("meta", config=CODE),
    "meta_nested.pth": nested(100_000),
    "meta_doubled.pth": within("meta", deep=doubled(200)),
    "message_hub_list.pth": changed(message_hub=[]),
    "message_hub_empty.pth": changed(message_hub={}),
    "scalars_numbers.pth": within("message_hub", log_scalars={"train/loss": 0.5}),
    "scalars_of_two_lengths.pth": within(
        "message_hub",
        log_scalars={"loss": dict(values=torch.ones(2), counts=torch.ones(3), max_length=9)},
    ),
    "info_doubled.pth": changed(
        message_hub=lambda hub: {**hub, "runtime_info": {**hub["runtime_info"], "x": doubled(60)}}
    ),
    "info_in_itself.pth": changed(
        message_hub=lambda hub: {**hub, "runtime_info": {**hub["runtime_info"], "x": circle()}}
    ),
    "info_list.pth": within("message_hub", runtime_info=[1]),
    "best_elsewhere.pth": within(
        "message_hub", runtime_info={"best_ckpt": "/etc/passwd", "outdated": ["../good.pth", 5]}
    ),
    "optimizer_none.pth": changed(optimizer=None),
    "optimizer_empty.pth": changed(optimizer={}),
    "optimizer_without_groups.pth": changed(optimizer=lambda o: {"state": o["state"]}),
    "optimizer_of_another_model.pth": changed(
        optimizer=lambda o: {**o, "param_groups": [{**o["param_groups"][0], "params": [0]}]}
    ),
    "optimizer_two_groups.pth": changed(
        optimizer=lambda o: {**o, "param_groups": 2 * o["param_groups"]}
    ),
    "momentum_of_another_shape.pth": changed(
        optimizer=lambda o: {**o, "state": {0: {"momentum_buffer": torch.zeros(7)}}}
    ),
    "momentum_nan.pth": changed(
        optimizer=lambda o: {
            **o,
            "state": {
                i: {"momentum_buffer": s["momentum_buffer"] * float("nan")}
                for i, s in o["state"].items()
            },
        }
    ),
    "momentum_text.pth": changed(
        optimizer=lambda o: {**o, "state": {0: {"momentum_buffer": "zeros"}}}
    ),
    "schedulers_number.pth": changed(param_schedulers=3),
    "schedulers_empty.pth": changed(param_schedulers=[]),
    "schedulers_of_numbers.pth": changed(param_schedulers=[1]),
    "schedulers_of_two.pth": changed(param_schedulers=lambda s: [*s, copy.deepcopy(s[0])]),
    "schedulers_by_name_numbers.pth": changed(param_schedulers={"a": 5}),
    "schedulers_by_name.pth": changed(param_schedulers=lambda s: {"a": s}),
}
