"""The bad files in a folder: python -m tests.bad_files.make FOLDER.

outcomes.csv says what becomes of each.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from . import annotations, checkpoints, images, lists, voc

Content = bytes | Callable[[Path], object]  # or what makes it at a path: a folder, a link
SECTIONS: dict[str, dict[str, Content]] = {
    "annotations": annotations.FILES,
    "images": images.FILES,
    "voc": voc.FILES,
    "lists": lists.FILES,
    "checkpoints": checkpoints.FILES,
}


def write(content: Content, path: Path) -> None:
    """Make one file."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write every bad file below a new folder.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for section, files in SECTIONS.items():
        (folder / section).mkdir(parents=True)
        for name, content in files.items():
            write(content, folder / section / name)
        print(f"{folder / section}: {len(files)} files")


if __name__ == "__main__":
    main()
