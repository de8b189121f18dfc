"""One training per work directory."""

import os
import socket
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from .errors import EngineError


@contextmanager
def only_training(work_dir):
    """Hold the lock of ``work_dir``; the system lets go of it when the process ends, however.

    The lock is flock's, which Linux's NFS passes on to its server. Data workers do not keep it.

    Raises:
        EngineError: another process holds it; the message names it.
    """
    with Path(work_dir, ".training").open("a+") as file:
        os.register_at_fork(after_in_child=file.close)
        if not lock_descriptor(file.fileno(), blocking=False):
            file.seek(0)
            raise EngineError(f"{work_dir}: another training writes there ({file.read().strip()})")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
