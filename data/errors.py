"""The error that every reader and converter of this package raises."""


class DataError(ValueError):
    """Bad input data. The message names the file and says what to do about it.

    Takes one string, because a DataLoader rebuilds a worker's exception from its message alone.
    """
