"""The project's commands, run in this process: importing torch and mmdet anew takes seconds."""

import runpy
import signal
import sys
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
_ended = 0  # the second in which the last one did


def run_tool(name, *args):
    """What tools/``name`` exits with: a status, its last words, or None if it just returned."""
    global _ended
    # mmengine names a run, its logger and its folder by the second: two in one would share them.
    while int(time.time()) == _ended:
        time.sleep(0.02)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv = [name, *map(str, args)]
    try:
        with mock.patch.object(sys, "argv", argv), mock.patch.object(sys, "path", [*sys.path]):
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if name in ("train.py", "test.py"):
            _ended = int(time.time())
