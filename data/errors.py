"""The error that every reader and converter of this package raises, and lists in its message."""

from collections.abc import Sequence


class DataError(ValueError):
    """Bad input data. The message names the file and says what to do about it.

    Takes one string, because a DataLoader rebuilds a worker's exception from its message alone.
    """


def first(lines: Sequence[str], separator: str = "\n  ", limit: int = 5) -> str:
    """The first few of ``lines`` in full and how many more there are, as one string."""
    more = len(lines) - limit
    return separator.join([*lines[:limit], *([f"and {more} more"] if more > 0 else [])])


def listed(lines: Sequence[str]) -> str:
    """What follows a colon: one of ``lines`` on the same line, or the first few below it."""
    return f" {lines[0]}" if len(lines) == 1 else f"\n  {first(lines)}"
