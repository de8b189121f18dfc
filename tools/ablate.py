#!/usr/bin/env python
"""Run an ablation study and report on it: tools/ablate.py STUDY."""

import argparse
import shlex
import sys
from pathlib import Path
from threading import Event

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.models.engine.cli import one_line_errors
from mmengine.config import DictAction

from tools.ablation.report import summary, write_report
from tools.ablation.results import read_results
from tools.ablation.running import cluster, execute, execute_all, local_jobs
from tools.ablation.study import Study, StudyError
from tools.ablation.workspace import Workspace
from tools.benchmarks.measure import machine, positive


def main():
    parser = argparse.ArgumentParser(
        description="Run an ablation study, a grid of trainings, and report on it. Called again, "
        "it goes on where it stopped; what is finished is not run again."
    )
    parser.add_argument("study", help="path of the study, for example configs/studies/bccd.py")
    add = parser.add_argument
    add("--work-dir", type=Path, help="of runs and report (default: work_dirs/studies/NAME)")
    mode = parser.add_mutually_exclusive_group().add_argument
    mode("--dry-run", action="store_true", help="list the runs, estimate the time, run nothing")
    mode("--report", action="store_true", help="report on what has finished, run nothing")
    mode("--from-csv", type=Path, metavar="FILE", help="print the table of a results.csv")
    add("--jobs", type=positive, help="runs at a time (default: one per GPU, or all on a cluster)")
    text = "train each run on N GPUs (without a GPU: in N processes), with N times the batch"
    add("--gpus-per-run", type=positive, default=1, metavar="N", help=text)
    add("--cluster", metavar="NAME", help="submit the runs through submitit: slurm, local")
    text = "for submitit, for example slurm_partition=gpu cpus_per_task=8 timeout_min=1440"
    add("--cluster-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help=text)
    args = parser.parse_args()

    study = Study.read(args.study)
    if args.from_csv:
        print(summary(read_results(study, args.from_csv)))
        return
    folder = args.work_dir or Path("work_dirs", "studies", study.path.stem)
    workspace = Workspace(study, folder)
    if args.cluster:
        jobs = args.jobs or len(workspace.runs)
    elif not args.report:
        jobs = local_jobs(args.jobs, args.gpus_per_run)
    if args.dry_run:
        workspace.claim(args.gpus_per_run, write=False)
        print(workspace.plan(jobs))
        return
    failed = [] if args.report else run_all(workspace, jobs, args)
    command = shlex.join(["python", "tools/ablate.py", *sys.argv[1:]])
    results = workspace.results()
    page = write_report(results, folder, command, machine())
    workspace.write_results(results)
    print(f"\n{summary(results)}\nWritten to {folder}/results.csv, report.md and {page.name}")
    if failed:
        raise StudyError(f"{len(failed)} runs failed, call again to retry: {'; '.join(failed)}")


def run_all(workspace, jobs, args):
    """Run what is not finished; the names of those that failed."""
    stopped, train, gpus = Event(), execute, args.gpus_per_run
    metrics = workspace.study.metrics
    if args.cluster:
        options = ({"gpus_per_node": gpus} if gpus > 1 else {}) | (args.cluster_options or {})
        train = cluster(args.cluster, workspace.folder / "jobs", options, stopped)
    workspace.claim(gpus)
    todo = [run for run, record in workspace.records() if not record.finished]
    failed = []
    for i, (run, record) in enumerate(execute_all(todo, jobs, gpus, train, stopped), 1):
        workspace.write_results()
        if record.finished:
            ending = metrics.text(record.metrics[metrics.main])
        else:
            failed.append(run.name)
            ending = f"failed, {record.error} (see {run.folder})"
        print(f"[{i}/{len(todo)}] {run.name}: {ending}", flush=True)
    return failed


if __name__ == "__main__":
    with one_line_errors():
        try:
            main()
        except KeyboardInterrupt:
            sys.exit("stopped; called again, it goes on from here")
