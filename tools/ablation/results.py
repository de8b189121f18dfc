"""What a study's runs left behind: logs, records made of them, and what all of them showed."""

import json
import os
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from .intervals import compare, compare_pairs
from .study import COCO, Run, Study, StudyError

RECORD = "run.json"
COSTS = ["seconds_per_iteration", "memory_mb", "parameters", "gflops"]


@dataclass
class Record:
    """How a run ended. Metrics of the last epoch, memory in MB."""

    finished: bool = False
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None  # from start to end, None where it was interrupted
    iteration: float | None = None  # seconds, the median of what training logged
    memory: float | None = None  # peak: of the GPU, or of the process where there is none
    logged: dict[str, str] = field(default_factory=COCO.keys.copy)  # as what, by a metric's name

    @property
    def state(self) -> str:
        """'finished', 'failed' or 'waiting'."""
        return "finished" if self.finished else "failed" if self.error else "waiting"


def read_record(run: Run) -> Record:
    """The record of a run: as it was written, as its logs have it, or one that waits.

    Raises:
        StudyError: the folder holds a run of another config.
    """
    if run.config.exists():
        known = run.config.read_text(encoding="utf-8").partition("\n")[0].split()[1:]
        if known[: len(run.identity)] != run.identity:  # shorter where weights are gone by now
            raise StudyError(
                f"{run.folder} holds a run of another config or other weights than {run.name} has "
                f"now (compare {run.config}); give another --work-dir, or move both away"
            )
    path = run.folder / RECORD
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
        if record.finished and not record.metrics.keys() >= run.metrics.keys.keys():
            raise ValueError("a metric is missing")
        if record.finished and record.logged != run.metrics.keys:
            raise ValueError("it has other metrics")
        return record
    except FileNotFoundError:  # tools/ablate.py may have stopped before it
        pass
    except (ValueError, TypeError) as error:
        print(f"{path} is damaged ({error}): made again from the run's logs", flush=True)
    if run.config.exists():  # without it, nothing says which config the logs are of
        with suppress(StudyError):
            return write_record(run, collect(run))
    return Record()


def write_record(run: Run, record: Record) -> Record:
    """Keep a record, which is returned, with the run."""
    write_text(run.folder / RECORD, json.dumps(asdict(record), indent=1) + "\n")
    return record


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4()}.part")  # threads may write the same one
    with part.open("w", encoding="utf-8") as file:
        print(text, end="", file=file, flush=True)
        os.fsync(file.fileno())
    part.replace(path)


def read_log(folder: Path) -> pd.DataFrame:
    """The lines that all attempts at a run logged, one after the other."""
    lines = []
    for file in sorted(folder.glob("*/vis_data/scalars.json")):
        for text in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # a killed run leaves half a line, logged again later
                lines.append(json.loads(text))
    return pd.DataFrame(lines)


def curve(log: pd.DataFrame, key: str) -> pd.Series:
    """What was logged as `key`, by step; where attempts overlap, the last one counts."""
    known = log.reindex(columns=["step", key]).dropna()
    return known.drop_duplicates("step", keep="last").set_index("step")[key].sort_index()


def collect(run: Run) -> Record:
    """The record of a run whose training has ended.

    Raises:
        StudyError: its logs lack the evaluation of the last epoch.
    """
    log, epochs = read_log(run.folder), run.content.train_cfg.max_epochs
    curves = {name: curve(log, key) for name, key in run.metrics.keys.items()}
    unknown = [run.metrics.keys[name] for name, values in curves.items() if values.empty]
    known = [key for key in log if "/" in key and not key.startswith("offsets/")]
    if unknown and known:
        raise StudyError(f"{run.folder}: its logs have no {unknown[0]}, but {', '.join(known)}")
    last = min(values.last_valid_index() or 0 for values in curves.values())
    if last != epochs or "loss" not in log:
        what = f"the evaluation of epoch {epochs}, the last one is of {last:.0f}"
        raise StudyError(f"{run.folder}: its logs lack {what}")
    training = log.dropna(subset="loss")
    return Record(
        finished=True,
        metrics={name: float(values.iloc[-1]) for name, values in curves.items()},
        logged=run.metrics.keys,
        iteration=float(training["time"].median()),
        memory=float(training["memory"].max()) if "memory" in training else None,
    )


@dataclass
class Results:
    """A study with what its runs showed. Seconds, MB; unknown is NaN.

    `runs` has a line per run: its cell, the cell's settings, seed, `state` (finished, failed or
    waiting), the study's metrics, `COSTS` and what else belongs into results.csv.

    `cells` has a line per cell, by name: how many runs `finished` and `failed`; of each metric the
    mean over seeds and, as `NAME std`, the standard deviation; the medians of COSTS; and
    `difference` in the mean of the main metric to the baseline with what `compare` says of it, none
    for the baseline.
    """

    study: Study
    ended: list[tuple[Run, Record]]
    runs: pd.DataFrame

    @cached_property
    def cells(self) -> pd.DataFrame:
        names, base = self.study.names, self.study.baseline.name
        metrics, main = [*self.study.metrics.keys], self.study.metrics.main
        by_cell = self._finished.groupby("cell")
        means, spreads = by_cell[metrics].mean(), by_cell[metrics].std().add_suffix(" std")
        cells = means.join([spreads, by_cell[COSTS].median()]).reindex(pd.Index(names, name="cell"))
        counts = pd.crosstab(self.runs["cell"], self.runs["state"]).reindex(names)
        cells[["finished", "failed"]] = counts.reindex(columns=["finished", "failed"]).fillna(0)
        cells["difference"] = (cells[main] - cells.loc[base, main]).where(cells.index != base)
        return cells.join(compare(self._values, base))

    @property
    def pairs(self) -> pd.DataFrame:
        """What `compare_pairs` says of the study's pairs, by the main metric."""
        return compare_pairs(self._values, self.study.pairs)

    @property
    def _finished(self) -> pd.DataFrame:
        return self.runs[self.runs["state"] == "finished"]

    @property
    def _values(self) -> dict[str, list[float]]:
        """The main metric of the finished runs, by cell."""
        by_cell = self._finished.groupby("cell")[self.study.metrics.main]
        return {name: [*values] for name, values in by_cell}

    def finished(self, cell: str) -> list[Run]:
        return [run for run, r in self.ended if r.finished and run.cell.name == cell]

    @cached_property
    def logs(self) -> dict[str, list[pd.DataFrame]]:
        """Of the finished runs, by the name of their cell."""
        names = self.cells.index[self.cells["finished"] > 0]
        return {name: [read_log(run.folder) for run in self.finished(name)] for name in names}

    @property
    def best(self) -> pd.Series:
        """The cell with the highest mean of the main metric."""
        return self.cells.loc[self.cells[self.study.metrics.main].idxmax()]


def make_results(
    study: Study, ended: list[tuple[Run, Record]], complexity: dict[str, dict[str, float]]
) -> Results:
    """Of all runs with their records, and what `complexity` found, by the name of the cell."""
    axes = dict.fromkeys(axis for cell in study.cells for axis in cell.settings)
    lines = []
    for run, record in ended:
        line = {"cell": run.cell.name, "seed": run.seed, "folder": run.folder, **run.cell.settings}
        line |= complexity.get(run.cell.name, {}) | record.metrics
        line |= {"seconds_per_iteration": record.iteration, "memory_mb": record.memory}
        lines.append({**line, **asdict(record), "state": record.state})
    figures = [*study.metrics.keys, *COSTS, "seconds"]
    columns = ["cell", *axes, "seed", "state", *figures, "folder", "error"]
    runs = pd.DataFrame(lines, columns=columns)
    runs[figures] = runs[figures].astype(float)
    runs = runs.sort_values("cell", key=pd.Index(study.names).get_indexer, kind="stable")
    return Results(study, ended, runs)


def read_results(study: Study, path: Path) -> Results:
    """Of the runs in a results.csv of the study, without their folders.

    Raises:
        StudyError: it is none, no run in it has finished, or one is in it twice.
    """
    try:
        runs = pd.read_csv(path).astype(dict.fromkeys([*study.metrics.keys, *COSTS], float))
        right = {*runs["cell"]} <= {*study.names} and (runs["state"] == "finished").any()
        right &= not runs.duplicated(["cell", "seed"]).any()
    except (ValueError, KeyError):
        right = False
    if not right:
        raise StudyError(f"{path} is not a results.csv of {study.path}")
    return Results(study, [], runs)
