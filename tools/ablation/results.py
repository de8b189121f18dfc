"""What a run left behind: its record, read from the logs of tools/train.py and kept beside them."""

import json
import os
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .study import Run, StudyError

RECORD = "run.json"
METRICS = {"AP": "coco/bbox_mAP", "AP50": "coco/bbox_mAP_50", "AP75": "coco/bbox_mAP_75"}


@dataclass
class Record:
    """How a run ended. AP in 0..1 of the last epoch, memory in MB."""

    finished: bool
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None  # from start to end, None where it was interrupted
    iteration: float | None = None  # seconds, the median of what training logged
    memory: float | None = None  # peak: of the GPU, or of the process where there is none


def read_record(run: Run) -> Record | None:
    """The record of a run; None where there is none, or a damaged one, which is said.

    Raises:
        StudyError: the folder holds a run of another config.
    """
    if run.config.exists():
        with run.config.open(encoding="utf-8") as file:
            if file.readline() != f"# {run.identity}\n":
                raise StudyError(
                    f"{run.folder} holds a run of another config than {run.name} has now (compare "
                    f"{run.config}); give another --work-dir, or move both away"
                )
    path = run.folder / RECORD
    if not path.exists():
        return None
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        print(f"{path} is damaged ({error}): made again from the run's logs", flush=True)
        return None


def write_record(run: Run, record: Record) -> None:
    write_text(run.folder / RECORD, json.dumps(asdict(record), indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


@dataclass
class Log:
    """What tools/train.py logged, by what it says of itself."""

    train: list[dict[str, Any]]  # a line per interval: step, epoch, loss, time, ...
    val: list[dict[str, Any]]  # a line per epoch: step (the epoch), coco/bbox_mAP, ...
    offsets: list[dict[str, Any]]  # a line per interval: step, offsets/LAYER/...


def read_log(folder: Path) -> Log:
    """The logs of all attempts at a run; where they overlap, the last one counts."""
    train, val, offsets = {}, {}, {}
    for file in sorted(folder.glob("*/vis_data/scalars.json")):
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # a killed run leaves half a line, which its successor logs again
            if "loss" in line:
                train[line["step"]] = line
            elif METRICS["AP"] in line:
                val[line["step"]] = line
            elif any(key.startswith("offsets/") for key in line):
                offsets[line["step"]] = line
    return Log(*([lines[step] for step in sorted(lines)] for lines in (train, val, offsets)))


def collect(run: Run) -> Record:
    """The record of a run whose training has ended.

    Raises:
        StudyError: its logs lack the evaluation of the last epoch.
    """
    log = read_log(run.folder)
    last = log.val[-1] if log.val else {"step": 0}
    if last["step"] != run.epochs or not log.train:
        raise StudyError(
            f"{run.folder}: its logs lack the evaluation of epoch {run.epochs}, the last one is of "
            f"{last['step']}"
        )
    return Record(
        finished=True,
        metrics={name: last[key] for name, key in METRICS.items()},
        iteration=statistics.median(line["time"] for line in log.train),
        memory=max((line["memory"] for line in log.train if "memory" in line), default=None),
    )
