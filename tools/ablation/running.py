"""Runs the cells of a study: each an ordinary tools/train.py, side by side where asked."""

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event
from typing import Any

import torch
from dcndet.models.engine import CheckpointError, find_resumable
from filelock import lock_descriptor

from .results import Record, collect, read_record, write_record, write_text
from .study import Run, StudyError

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "tools" / "train.py"
LOG = "train.log"  # what tools/train.py printed


def execute(run: Run, environment: dict[str, str] | None = None, gpus: int = 1) -> Record:
    """Train one cell with one seed, or go on with what an interrupted attempt left.

    Returns its record, which is also written. A failed run has a record too, and the next call
    tries it again.

    Args:
        environment: variables for the process, beside those of this one.
        gpus: how many to train on, each with a process of its own.

    Raises:
        StudyError: the folder holds a run of another config, or a process is training in it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "lock").open("w") as lock:
        if not lock_descriptor(lock.fileno(), blocking=False):
            raise StudyError(f"another process is training in {run.folder}")
        record = read_record(run)
        if record.finished:
            return record
        return _train(run, environment or {}, gpus, lock.fileno())


def _train(run: Run, environment: dict[str, str], gpus: int, lock: int) -> Record:
    write_text(run.config, f"# {' '.join(run.identity)}\n{run.content.pretty_text}")
    command = [str(TRAIN), str(run.config), "--work-dir", str(run.folder)]
    if gpus > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
        command = [*torchrun, *command, "--launcher", "pytorch"]
    resume = []
    if any(run.folder.glob("*.pth")):
        try:
            resume = find_resumable(run.folder) and ["--resume"]
        except CheckpointError as error:
            print(f"{run.name}: trained anew, {error}", flush=True)
    start = time.monotonic()
    with (run.folder / LOG).open("a+", errors="replace") as log:
        before = log.tell()
        status = subprocess.run(
            [sys.executable, *command, *resume],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            pass_fds=[lock],  # an orphan keeps it, so that nobody trains beside it
        ).returncode
        log.seek(before)
        lines = log.read().strip().splitlines()
    # torchrun says more than its processes do, and after them.
    last = next((line for line in lines[::-1] if line.startswith("error: ")), *lines[-1:] or [""])
    if status == -signal.SIGINT or "got signal: 2" in last:
        raise StudyError(f"{run.name} was stopped")
    if status < 0:
        last = f"killed by signal {-status}; last line: {last}"
    record = Record(error=last or f"exit status {status}")
    if status == 0:
        try:
            record = collect(run)
        except StudyError as error:
            record.error = str(error)
    record.seconds = None if resume else time.monotonic() - start
    return write_record(run, record)


def local_jobs(asked: int | None, gpus: int) -> int:
    """How many runs this machine takes at a time: without a GPU what is asked for, or one.

    Raises:
        StudyError: the GPUs are too few for it.
    """
    count = torch.cuda.device_count()
    jobs = asked or max(1, count // gpus)
    if count and jobs * gpus > count:
        need = f"--jobs {jobs} with --gpus-per-run {gpus} takes {jobs * gpus} GPUs"
        raise StudyError(f"{need}, and {count} are visible")
    return jobs


def execute_all(
    runs: list[Run],
    jobs: int,
    gpus: int = 1,
    train: Callable[[Run, dict[str, str], int], Record] = execute,
    stopped: Event | None = None,
) -> Iterator[tuple[Run, Record]]:
    """Execute runs, `jobs` at a time, and yield each as it ends, or why it could not start.

    Where there are GPUs, every job has its share of those that are visible; otherwise the jobs
    share the cores.

    Args:
        gpus: of each run, or processes where there is no GPU.
        train: what executes one, `execute` or one of `cluster`.
        stopped: is set when nobody waits for the runs any more, as after Ctrl-C.
    """
    environments: queue.SimpleQueue = queue.SimpleQueue()
    for i in range(jobs):
        environments.put(_environment(i, jobs, gpus))

    def job(run: Run) -> Record:
        environment = environments.get()
        try:
            return train(run, environment, gpus)
        except StudyError as error:
            return Record(error=str(error))
        finally:
            environments.put(environment)

    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(job, run): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        if stopped is not None:
            stopped.set()
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, nothing new starts


def _environment(job: int, jobs: int, gpus: int) -> dict[str, str]:
    if count := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
        return {"CUDA_VISIBLE_DEVICES": ",".join(visible.split(",")[job * gpus :][:gpus])}
    if jobs * gpus == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (jobs * gpus)))}


def cluster(
    name: str, folder: Path, options: dict[str, Any], stopped: Event
) -> Callable[[Run, dict[str, str], int], Record]:
    """What executes a run as a job of a cluster, or waits for the job that an earlier call left.

    Args:
        name: of submitit's executor: 'slurm', or 'local' for this machine.
        folder: of the jobs' scripts and logs; every machine of the cluster must see it.
        options: of the executor, for example slurm_partition, timeout_min.
        stopped: once it is set, jobs are left to themselves.

    Raises:
        StudyError: submitit is not installed, or does not know the name or an option.
    """
    try:
        import submitit
    except ImportError:
        raise StudyError("--cluster needs submitit: pip install submitit") from None
    try:
        executor = submitit.AutoExecutor(folder, cluster=name)
        executor.update_parameters(**options)
    except (ValueError, TypeError, NameError, RuntimeError) as error:
        raise StudyError(f"--cluster {name}: {' '.join(str(error).split())}") from error
    # A job imports this module by name.
    path = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    os.environ["PYTHONPATH"] = os.pathsep.join(path)

    def train(run: Run, environment: dict[str, str], gpus: int) -> Record:
        job, known = None, run.folder / "slurm.job"
        if name == "slurm" and known.exists():
            job = submitit.SlurmJob(folder, known.read_text())
        if job is None or job.done(force_check=True):
            job = executor.submit(execute, run, gpus=gpus)  # the cluster hands out its own devices
            write_text(run.folder / f"{name}.job", job.job_id)
        else:
            print(f"{run.name}: waiting for job {job.job_id} (as in {known})", flush=True)
        while not job.done():
            if stopped.wait(1):
                raise StudyError(f"{run.name} goes on as job {job.job_id}")
        try:
            return job.result()
        except Exception as error:  # whatever a cluster does to a job
            last = str(error).strip().splitlines()[-1:]
            return Record(error=f"job {job.job_id}: {' '.join(last)}")

    return train
