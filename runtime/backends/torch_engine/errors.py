"""Errors of the torch engine."""

from __future__ import annotations

from runtime.errors import BackendError

ENGINE = "torch"


class ModelFileError(BackendError):
    """A model file is damaged, of an unknown kind, or does not fit its own description."""

    def __init__(self, message: str) -> None:
        super().__init__(message, backend=ENGINE)


class RequestRefusedError(BackendError):
    """A request that this engine cannot run: a prompt that does not fit, an unknown grammar."""

    def __init__(self, message: str) -> None:
        super().__init__(message, backend=ENGINE)
