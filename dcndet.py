"""The import name of this repository's detection code: ``dcndet.models`` and ``dcndet.data``.

The folders ``models`` and ``data`` share their names with packages of many other projects. Imported
as parts of this one, they collide with none of them.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent)]
