"""What the engine refuses; the tools print these as one line instead of a traceback."""


class EngineError(RuntimeError):
    """Base of the errors below."""


class CheckpointError(EngineError):
    """A checkpoint that cannot be found, read, trusted, written, or does not fit the model."""


class NonFiniteError(EngineError):
    """Training produced a NaN or an infinity."""
