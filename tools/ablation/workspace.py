"""The folder of a study: which of its runs are done, and what they showed."""

import json
import statistics
from pathlib import Path

from dcndet.data.errors import DataError

from .complexity import Complexity, complexity
from .results import Record, read_record, write_text
from .study import Run, Study, StudyError
from .table import Row, make_rows, to_csv


class Workspace:
    """A study in its folder.

    Raises:
        StudyError: the folder holds another study.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study = study
        self.folder = folder
        self.runs = study.runs(folder)
        self._owner = folder / "study.json"
        self._identity = {"study": study.path.name, "base": study.base.name}
        if self._owner.exists():
            try:
                owner = json.loads(self._owner.read_text(encoding="utf-8"))
            except ValueError:
                raise StudyError(f"{self._owner} is damaged: remove it") from None
            if owner != self._identity:
                raise StudyError(
                    f"{folder} holds another study ({owner['study']}, of {owner['base']}); give "
                    "another --work-dir"
                )

    def claim(self) -> None:
        """Mark the folder as this study's."""
        try:
            write_text(self._owner, json.dumps(self._identity) + "\n")
        except OSError as error:
            raise StudyError(f"cannot write to {self.folder}: {error.strerror}") from error

    def records(self) -> list[tuple[Run, Record | None]]:
        """Every run with its record, None where it has none yet."""
        return [(run, read_record(run)) for run in self.runs]

    def rows(self) -> list[Row]:
        """The table, with parameters and operations of the cells that have finished runs."""
        records = self.records()
        known: dict[str, Complexity] = {}
        for run, record in records:
            if record is not None and record.finished and run.cell.folder not in known:
                try:
                    known[run.cell.folder] = complexity(run)
                except DataError as error:
                    print(f"{run.name}: no GFLOPs: {error}", flush=True)
        return make_rows(self.study, records, known)

    def write_results(self, rows: list[Row] | None = None) -> None:
        """Write `results.csv`, of `rows` or, without parameters and operations, as things stand."""
        rows = rows or make_rows(self.study, self.records(), {})
        write_text(self.folder / "results.csv", to_csv(rows))

    def plan(self, jobs: int) -> str:
        """All runs and their state, and how long what is left will take."""
        records = self.records()
        seconds: dict[str, list[float]] = {}
        for run, record in records:
            if record is not None and record.finished and record.seconds is not None:
                seconds.setdefault(run.cell.folder, []).append(record.seconds)
        every = [value for values in seconds.values() for value in values]
        lines, left, todo = [], [], 0
        for run, record in records:
            if record is not None and record.finished:
                lines.append(f"{run.name}: finished, AP {record.metrics['AP']:.3f}")
                continue
            todo += 1
            state = "waiting" if record is None else f"failed ({record.error})"
            if record is None and any(run.folder.glob("*.pth")):
                state = "interrupted"
            estimate = ""
            if every:
                left.append(statistics.fmean(seconds.get(run.cell.folder, every)))
                estimate = f", about {left[-1] / 60:.0f} min"
            lines.append(f"{run.name}: {state}{estimate}")
        lines.append(f"{len(lines)} runs, {todo} to do")
        if left:
            minutes = max(max(left), sum(left) / jobs) / 60
            lines[-1] += f": about {minutes:.0f} min with {jobs} at a time, by those that are done"
        elif todo:
            lines[-1] += "; no run has finished yet that the time could be estimated from"
        return "\n".join(lines)
