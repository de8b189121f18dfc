#!/usr/bin/env python
"""Run an ablation study and report on it: tools/ablate.py STUDY."""

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from dcndet.models.engine.cli import one_line_errors
from mmengine.config import DictAction

from tools.ablation.report import write_report
from tools.ablation.running import cluster, execute, execute_all
from tools.ablation.study import Study, StudyError
from tools.ablation.table import to_markdown
from tools.ablation.workspace import Workspace
from tools.benchmarks import measure


def main():
    parser = argparse.ArgumentParser(
        description="Run an ablation study, a grid of trainings, and report on it. Called again, "
        "it goes on where it stopped; what is finished is not run again."
    )
    parser.add_argument("study", help="path of the study, for example configs/studies/bccd.py")
    parser.add_argument(
        "--work-dir", type=Path, help="of runs and report (default: work_dirs/studies/NAME)"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--dry-run", action="store_true", help="list the runs and estimate the time, run nothing"
    )
    mode.add_argument(
        "--report", action="store_true", help="report on what has finished, run nothing"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="runs at a time (default: one a GPU, or one; on a cluster all)",
    )
    parser.add_argument(
        "--cluster", metavar="NAME", help="submit the runs through submitit: slurm, local"
    )
    parser.add_argument(
        "--cluster-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="for submitit, for example slurm_partition=gpu gpus_per_node=1 timeout_min=1440",
    )
    args = parser.parse_args()
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {args.jobs}")

    study = Study.read(args.study)
    folder = args.work_dir or Path("work_dirs", "studies", study.path.stem)
    workspace = Workspace(study, folder)
    devices = max(1, torch.cuda.device_count())
    jobs = args.jobs or (len(workspace.runs) if args.cluster else devices)
    if args.dry_run:
        print(workspace.plan(jobs))
        return
    failed = []
    if not args.report:
        train = execute
        if args.cluster:
            train = cluster(args.cluster, folder / "jobs", args.cluster_options)
        workspace.claim()
        failed = run_all(workspace, jobs, train)
    command = shlex.join(["python", "tools/ablate.py", *sys.argv[1:]])
    rows = workspace.rows()
    page = write_report(study, rows, folder, command, measure.machine())
    workspace.write_results(rows)
    print(f"\n{to_markdown(rows)}\nWritten to {folder}/results.csv, report.md and {page.name}")
    if failed:
        raise StudyError(f"{len(failed)} runs failed, call again to retry: {'; '.join(failed)}")


def run_all(workspace, jobs, train):
    """Run what is not finished; the names of those that failed."""
    todo = [run for run, record in workspace.records() if not (record and record.finished)]
    failed = []
    for i, (run, record) in enumerate(execute_all(todo, jobs, train), 1):
        workspace.write_results()
        progress = f"[{i}/{len(todo)}] {run.name}"
        if record.finished:
            print(f"{progress}: AP {record.metrics['AP']:.3f}", flush=True)
        else:
            failed.append(run.name)
            print(f"{progress}: failed, {record.error} (see {run.folder})", flush=True)
    return failed


if __name__ == "__main__":
    with one_line_errors():
        try:
            main()
        except KeyboardInterrupt:
            sys.exit("stopped; called again, it goes on from here")
