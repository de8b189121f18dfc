"""The folder of a study: which of its runs are done, and what they showed."""

import json
from pathlib import Path

from dcndet.data.errors import DataError

from .complexity import complexity
from .results import Record, Results, make_results, read_record, write_text
from .study import Run, Study, StudyError


class Workspace:
    """A study in its folder.

    Raises:
        StudyError: the folder holds another study.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder, self.runs = study, folder, study.runs(folder)
        self._path = folder / "study.json"
        self._owner = {"study": study.path.name, "base": study.base.name}
        if self._path.exists():
            try:
                known = json.loads(self._path.read_text(encoding="utf-8"))
                other = f"{known['study']}, of {known['base']}"
            except (ValueError, TypeError, KeyError):
                raise StudyError(f"{self._path} is damaged: remove it") from None
            if known | self._owner != known:
                raise StudyError(f"{folder} holds another study ({other}); give another --work-dir")
            self._owner = {"gpus_per_run": 1} | known

    def claim(self, gpus: int = 1, write: bool = True) -> None:
        """Check that its runs have so many GPUs each, and mark the folder as this study's.

        Raises:
            StudyError: they have another number, and so another batch; weights that a run starts
                from are missing; or the folder cannot be written to.
        """
        for path in (path for run in self.runs for path in run.weights if not path.is_file()):
            raise StudyError(f"weights not found: {path}")
        if self._owner.setdefault("gpus_per_run", gpus) != gpus:
            raise StudyError(
                f"{self.folder} holds runs with --gpus-per-run {self._owner['gpus_per_run']}, "
                f"which {gpus} cannot be compared with; give another --work-dir"
            )
        try:
            if write:
                write_text(self._path, json.dumps(self._owner) + "\n")
        except OSError as error:
            raise StudyError(f"cannot write to {self.folder}: {error.strerror}") from error

    def records(self) -> list[tuple[Run, Record]]:
        """Every run with its record."""
        return [(run, read_record(run)) for run in self.runs]

    def results(self, count: bool = True) -> Results:
        """What the runs showed; with `count`, parameters and operations of what has finished."""
        records = self.records()
        known: dict[str, dict[str, float]] = {}
        for run, record in records:
            if count and record.finished and run.cell.name not in known:
                try:
                    known[run.cell.name] = complexity(run)
                except DataError as error:
                    print(f"{run.name}: no GFLOPs: {error}", flush=True)
        return make_results(self.study, records, known)

    def write_results(self, results: Results | None = None) -> None:
        """Write `results.csv`, of `results` or as things stand."""
        runs = (results or self.results(count=False)).runs.astype({"parameters": "Int64"})
        write_text(self.folder / "results.csv", runs.to_csv(index=False))

    def plan(self, jobs: int) -> str:
        """All runs and their state, and how long what is left will take."""
        results = self.results(count=False)
        known = results.runs.query("state == 'finished'").set_index("cell")["seconds"].dropna()
        lines, left = [], []
        for run, record in results.ended:
            if record.finished:
                value = record.metrics[self.study.metrics.main]
                state = f"finished, {self.study.metrics.text(value)}"
            else:
                state = "interrupted" if any(run.folder.glob("*.pth")) else "waiting"
                state = f"failed ({record.error})" if record.error else state
                left.append(known.get([run.cell.name], known).mean())
                state += f", about {left[-1] / 60:.0f} min" if len(known) else ""
            lines.append(f"{run.name}: {state}")
        end = f"{len(lines)} runs, {len(left)} to do"
        if left and len(known):
            minutes = max(*left, sum(left) / jobs) / 60
            end += f": about {minutes:.0f} min with {jobs} at a time, judged by those that are done"
        elif left:
            end += "; how long they take can be told when the first has finished"
        return "\n".join([*lines, end])
