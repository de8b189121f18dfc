"""Kills training at random and at chosen moments, and compares what is resumed with a whole run.

python tests/torture.py --minutes 60 --seed 0

Three kinds of runs are killed: tools/train.py in one process, in two, and tools/ablate.py with two
jobs. Each is killed a few times and then left to finish. Losses, metrics, weights, and the files in
its folder are to be those of a run that nobody disturbed. Exits with status 1 if any differs.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from tests.tools.conftest import write_squares

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "tools" / "tiny.py"
STUDY = f"""
base = {str(TINY)!r}
axes = {{"optim_wrapper.optimizer.lr": [0.02, 0.01]}}
seeds = [0]
"""
MOMENTS = ("any", "training", "writing", "evaluating")
ENDINGS = [signal.SIGKILL] * 8 + [signal.SIGTERM, signal.SIGINT]


class Run:
    """A process of its own session, which can be killed as a whole, and nothing left of it."""

    def __init__(self, command, cwd):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it outlives the call
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            # started in the background, a shell has SIGINT ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def running(self):
        return self.process.poll() is None

    def ranks(self):
        """The processes that a launcher has started."""
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True
        )
        return [int(pid) for pid in found.stdout.split()]

    def end(self):
        """Wait for it and for all that it started, and return what it wrote to stderr."""
        self.process.wait(300)
        deadline = time.monotonic() + 60
        while subprocess.run(["pgrep", "-s", str(self.process.pid)], capture_output=True).stdout:
            if time.monotonic() > deadline:
                raise AssertionError(f"processes are left of {self.process.args}")
            time.sleep(0.1)
        self.errors.seek(0)
        return self.errors.read()


class Training:
    """tools/train.py with so many processes, in the folder of its data."""

    def __init__(self, data, processes):
        self.data, self.processes, self.training = data, processes, 0
        self.name = f"train.py, {processes} process{'es' * (processes > 1)}"

    def start(self, folder):
        options = ["train_cfg.max_epochs=16", "train_dataloader.num_workers=1"]
        # Where nothing was written yet there is nothing to resume.
        resume = ["--resume"] * any(folder.glob("*.pth"))
        tail = [TINY, "--work-dir", folder, *resume, "--cfg-options", *options]
        launcher = []
        if self.processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={self.processes}"]
            launcher.append(f"--master-port={port}")
            tail[1:1] = ["--launcher", "pytorch"]
        return Run([sys.executable, *launcher, ROOT / "tools" / "train.py", *tail], self.data)

    def wait_for(self, moment, run, folder, whole, rng):
        """Return when ``moment`` has come, or the run has ended."""
        if moment == "any":
            _sleep(run, rng.uniform(0, whole / 2))
            return
        before = _training_since(folder)
        while run.running() and _training_since(folder) == before:
            time.sleep(0.01)
        _sleep(run, rng.uniform(0, self.training / 2))
        if moment == "training":
            return
        before = _saved(folder)
        while run.running():
            if moment == "writing" and any(folder.glob("*.tmp")):
                return
            if moment == "evaluating" and _saved(folder) != before:
                _sleep(run, rng.uniform(0, 0.2))
                return

    def kill(self, run, rng):
        ending = rng.choice(ENDINGS)
        ranks = run.ranks() if self.processes > 1 else []
        if ranks and rng.random() < 0.5:
            os.kill(rng.choice(ranks), signal.SIGKILL)
        else:
            os.killpg(run.process.pid, ending if self.processes == 1 else signal.SIGKILL)

    def outcome(self, folder):
        """Everything that has to be the same."""
        last = max(folder.glob("epoch_*.pth"), key=lambda path: path.stat().st_mtime)
        self.training = self.training or last.stat().st_mtime - _training_since(folder)
        found = {"files": sorted(p.name for p in folder.iterdir() if ".pth" in p.name)}
        for file in sorted(folder.glob("*/vis_data/scalars.json")):
            for line in file.read_text().splitlines():
                try:
                    values = json.loads(line)
                except ValueError:  # cut off by a kill
                    continue
                for key in ("loss", "coco/bbox_mAP"):
                    if key in values:
                        found.setdefault(f"{key} at {values['step']}", set()).add(values[key])
        checkpoint = torch.load(last, weights_only=True)
        found |= {f"weight {name}": w for name, w in checkpoint["state_dict"].items()}
        for index, state in checkpoint["optimizer"]["state"].items():
            found[f"momentum {index}"] = state["momentum_buffer"]
        info = checkpoint["message_hub"]["runtime_info"]
        found["best"] = info["best_score"], Path(info["best_ckpt"]).name
        return found


class Ablation:
    """tools/ablate.py with two jobs."""

    name = "ablate.py, 2 jobs"

    def __init__(self, data):
        self.data = data
        self.study = data / "study.py"
        self.study.write_text(STUDY)

    def start(self, folder):
        tool = ROOT / "tools" / "ablate.py"
        return Run([sys.executable, tool, self.study, "--work-dir", folder, "--jobs", 2], self.data)

    def wait_for(self, moment, run, folder, whole, rng):
        _sleep(run, rng.uniform(0, whole))

    def kill(self, run, rng):
        os.killpg(run.process.pid, rng.choice(ENDINGS))

    def outcome(self, folder):
        table = pd.read_csv(folder / "results.csv").sort_values(["cell", "seed"])
        found = {"files": [str(p) for p in folder.rglob("*") if p.suffix in (".tmp", ".part")]}
        for _, row in table.iterrows():
            for key in ("state", "AP", "AP50", "AP75"):
                found[f"{row['cell']}, seed {row['seed']}: {key}"] = row[key]
        return found


def _sleep(run, seconds):
    end = time.monotonic() + seconds
    while run.running() and time.monotonic() < end:
        time.sleep(0.005)


def _training_since(folder):
    """When the training in a folder took its lock."""
    lock = folder / ".training"
    return lock.stat().st_mtime if lock.exists() else 0


def _saved(folder):
    return sorted(path.name for path in folder.glob("epoch_*.pth"))


def differences(expected, found):
    """Keys of the outcomes whose values differ."""
    return [
        key
        for key in expected.keys() | found.keys()
        if key not in expected
        or key not in found
        or not (
            torch.equal(expected[key], found[key])
            if isinstance(expected[key], torch.Tensor)
            else expected[key] == found[key]
        )
    ]


def finish(subject, folder):
    run = subject.start(folder)
    errors = run.end()
    assert run.process.returncode == 0, errors
    return subject.outcome(folder)


def trial(subject, folder, expected, whole, rng):
    """Kill a run up to six times, let it finish. Returns the kills by moment, and what differs."""
    kills = Counter()
    for moment in rng.choices(MOMENTS, k=rng.randint(1, 6)):
        run = subject.start(folder)
        subject.wait_for(moment, run, folder, whole, rng)
        alive = run.running()
        if alive:
            subject.kill(run, rng)
            kills[moment if isinstance(subject, Training) else "any"] += 1
        errors = run.end()
        if "Traceback" in errors and getattr(subject, "processes", 1) == 1:
            return kills, [f"a traceback: {errors[-500:]}"]
        if not alive:
            break
    return kills, differences(expected, finish(subject, folder))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at a time")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="torture-"))
    write_squares(work)
    subjects = [Training(work, 1), Ablation(work), Training(work, 2)]
    wholes = {}
    for subject in subjects:
        folder = work / f"whole {subject.name}"
        start = time.monotonic()
        expected = finish(subject, folder)
        wholes[subject] = expected, time.monotonic() - start
        print(f"{subject.name}: undisturbed in {wholes[subject][1]:.0f} s", flush=True)

    end = time.monotonic() + 60 * args.minutes
    order = itertools.cycle([subjects[0], subjects[0], subjects[2], subjects[0], subjects[1]])
    kills = {subject.name: Counter() for subject in subjects}
    trials, bad, lock, number = Counter(), [], threading.Lock(), itertools.count()

    def work_on(_):
        while time.monotonic() < end:
            with lock:
                subject, i = next(order), next(number)
            folder = work / f"trial {i}"
            found, wrong = trial(
                subject, folder, *wholes[subject], random.Random(f"{args.seed} {i}")
            )
            with lock:
                kills[subject.name] += found
                trials[subject.name] += 1
                state = f"differs: {', '.join(wrong[:5])} (see {folder})" if wrong else "equal"
                print(
                    f"trial {i}, {subject.name}: {sum(found.values())} kills, {state}", flush=True
                )
            if wrong:
                bad.append(i)
            else:
                shutil.rmtree(folder)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work_on, range(args.jobs)))
    print(f"\nseed {args.seed}: kills of")
    for name, found in kills.items():
        by_moment = ", ".join(f"{count} {moment}" for moment, count in sorted(found.items()))
        print(f"  {name}: {sum(found.values())} in {trials[name]} runs ({by_moment})")
    print(
        f"{sum(map(Counter.total, kills.values()))} kills in {trials.total()} runs; "
        f"{len(bad)} runs differ from the undisturbed one"
    )
    if bad or not any(kills.values()):
        sys.exit(1)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
