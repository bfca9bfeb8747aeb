"""Errors of execution. `retryable` says whether trying again can help."""

from __future__ import annotations

from costmodel.errors import HaloError


class BackendError(HaloError):
    """An engine could not answer. `attempts` counts how often it was asked before giving up;
    `retry_after_s` is how long it asked to be left alone, None when it did not say; `status` is
    that of its HTTP answer, None without one."""

    attempts: int = 1
    retry_after_s: float | None = None
    status: int | None = None

    def __init__(self, message: str, *, backend: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.backend = backend
        self.retryable = retryable


class ContextOverflowError(BackendError):
    """A prompt and its answer do not fit the model's context; both numbers are in the message."""


class PromptError(BackendError):
    """This conversation cannot be put to this model; nothing was sent."""


class TruncatedAnswerError(BackendError):
    """An answer ended before its end: a stream or body was cut, or never said why it stopped."""


class EngineUnreachableError(BackendError):
    """No connection to the engine, or none any more: it is not there, died or does not react."""


class ModelNotFoundError(BackendError):
    """No such model: the message lists what exists and how to add one."""


class ModelFileError(BackendError):
    """A model's files are missing, damaged, or of a kind that no engine here reads."""

    def __init__(self, message: str, *, backend: str = "local") -> None:
        super().__init__(message, backend=backend)


class ModelFetchError(BackendError):
    """A model could not be fetched: the index cannot be reached, or broke its promise."""

    def __init__(self, message: str, *, backend: str = "local") -> None:
        super().__init__(message, backend=backend)


class ToolError(HaloError):
    """A tool raised, or returned what its type does not allow. `attempts` counts its calls;
    `retry_after_s` is how long it asked to be left alone, None when it did not say."""

    attempts: int = 1
    retry_after_s: float | None = None

    def __init__(self, message: str, *, tool: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.tool = tool
        self.retryable = retryable


class ToolTimeoutError(ToolError):
    """A tool did not answer within its timeout."""


class OutputTypeError(HaloError):
    """A model's answer does not fit its declared type, after the retry."""


class ValueTypeError(HaloError):
    """A value has not the shape that an operator needs (no such field, not a list)."""


class RunDirectoryError(HaloError):
    """A run directory cannot be used: missing, of another plan, unreadable."""


class RunLockedError(RunDirectoryError):
    """Another process holds the run directory; the message names it."""


class CacheError(HaloError):
    """The answer cache cannot be used: no directory, no cache, another version."""


class DrainingError(HaloError):
    """The run is stopping and this call had not started. Not a failure of the row: the executor
    leaves the row without an outcome, and `resume` runs it."""


class BudgetError(HaloError):
    """A budget cannot be read, or cannot be kept because a price is missing."""
