"""The folder of a study: which of its runs are done, and what they showed."""

import json
from pathlib import Path

import pandas as pd
from dcndet.data.errors import DataError

from .complexity import complexity
from .results import Record, read_record, write_text
from .study import Run, Study, StudyError
from .table import Results, make_results


class Workspace:
    """A study in its folder.

    Raises:
        StudyError: the folder holds another study.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study = study
        self.folder = folder
        self.runs = study.runs(folder)
        self._path = folder / "study.json"
        self._owner = {"study": study.path.name, "base": study.base.name}
        if self._path.exists():
            try:
                known = json.loads(self._path.read_text(encoding="utf-8"))
            except ValueError:
                raise StudyError(f"{self._path} is damaged: remove it") from None
            self._owner = {"gpus_per_run": known.get("gpus_per_run", 1), **self._owner}
            if known | self._owner != known:
                raise StudyError(
                    f"{folder} holds another study ({known['study']}, of {known['base']}); give "
                    "another --work-dir"
                )

    def claim(self, gpus: int = 1) -> None:
        """Mark the folder as this study's.

        Raises:
            StudyError: it cannot be written to, or its runs have another number of GPUs, and so
                another batch.
        """
        if self._owner.setdefault("gpus_per_run", gpus) != gpus:
            raise StudyError(
                f"{self.folder} holds runs with --gpus-per-run {self._owner['gpus_per_run']}, "
                f"which {gpus} cannot be compared with; give another --work-dir"
            )
        try:
            write_text(self._path, json.dumps(self._owner) + "\n")
        except OSError as error:
            raise StudyError(f"cannot write to {self.folder}: {error.strerror}") from error

    def records(self) -> list[tuple[Run, Record | None]]:
        """Every run with its record, None where it has none yet."""
        return [(run, read_record(run)) for run in self.runs]

    def results(self, count: bool = True) -> Results:
        """What the runs showed; with `count`, parameters and operations of what has finished."""
        records = self.records()
        known: dict[str, dict[str, float]] = {}
        for run, record in records:
            if count and record is not None and record.finished and run.cell.name not in known:
                try:
                    known[run.cell.name] = complexity(run)
                except DataError as error:
                    print(f"{run.name}: no GFLOPs: {error}", flush=True)
        return make_results(self.study, records, known)

    def write_results(self, results: Results | None = None) -> None:
        """Write `results.csv`, of `results` or as things stand."""
        runs = (results or self.results(count=False)).runs
        runs = runs.astype({"parameters": "Int64"})
        write_text(self.folder / "results.csv", runs.to_csv(index=False))

    def plan(self, jobs: int) -> str:
        """All runs and their state, and how long what is left will take."""
        records = self.records()
        done = [(run, r) for run, r in records if r is not None and r.finished]
        seconds = pd.Series([r.seconds for _, r in done], [run.cell.name for run, _ in done], float)
        seconds = seconds.dropna()
        by_cell = seconds.groupby(level=0).mean()
        lines, left, todo = [], [], len(records) - len(done)
        for run, record in records:
            if record is not None and record.finished:
                lines.append(f"{run.name}: finished, AP {record.metrics['AP']:.3f}")
                continue
            state = "waiting" if record is None else f"failed ({record.error})"
            if record is None and any(run.folder.glob("*.pth")):
                state = "interrupted"
            if len(seconds):
                left.append(by_cell.get(run.cell.name, seconds.mean()))
                state += f", about {left[-1] / 60:.0f} min"
            lines.append(f"{run.name}: {state}")
        end = f"{len(lines)} runs, {todo} to do"
        if left:
            minutes = max(*left, sum(left) / jobs) / 60
            end += f": about {minutes:.0f} min with {jobs} at a time, judged by those that are done"
        elif todo:
            end += "; how long they take can be told when the first has finished"
        return "\n".join([*lines, end])
