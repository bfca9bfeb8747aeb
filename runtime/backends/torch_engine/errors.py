"""Errors of the torch engine."""

from __future__ import annotations

from runtime.errors import BackendError, ModelFileError

ENGINE = "torch"


class RequestRefusedError(BackendError):
    """A request that this engine cannot run: an empty prompt, an unknown grammar, settings that
    exclude each other."""

    def __init__(self, message: str) -> None:
        super().__init__(message, backend=ENGINE)


def bad_file(message: str) -> ModelFileError:
    """The error for a model file that is damaged, unknown, or unlike its own description."""
    return ModelFileError(message, backend=ENGINE)
