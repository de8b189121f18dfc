"""The project's commands, run in this process: to import torch and mmdet anew takes seconds."""

import runpy
import sys
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
_started: set[int] = set()


def run_tool(name, *args):
    """What tools/``name`` exits with: a status, its last words, or None."""
    if name in ("train.py", "test.py"):  # mmengine names a run by the second of its start
        while int(time.time()) in _started:
            time.sleep(0.02)
        _started.add(int(time.time()))
    argv = [name, *map(str, args)]
    with mock.patch.object(sys, "argv", argv), mock.patch.object(sys, "path", [*sys.path]):
        try:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
        except SystemExit as exit:
            return exit.code
