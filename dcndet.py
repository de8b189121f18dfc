"""The import name of this repository's detection code: ``dcndet.models`` and ``dcndet.data``.

The folders ``models`` and ``data`` share their names with packages of many other projects. Imported
as parts of this one, they collide with none of them.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

__path__ = [str(Path(__file__).parent)]

warnings.filterwarnings("ignore", message="faster_coco_eval is not installed")  # nor used


@contextmanager
def quiet_import() -> Iterator[None]:
    """Without what mmdet prints when it is imported beside no OneDL, a product it can read from."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            if "Could not import OneDL" not in line:
                print(line)
