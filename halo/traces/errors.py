"""What goes wrong with trace files as a whole."""

from __future__ import annotations

from halo.errors import InputError


class TraceFormatError(InputError):
    """A file is in no trace format that Halo reads.

    Attributes:
        tried: (format, first mismatch) of every reader.
    """

    def __init__(self, path: str, tried: list[tuple[str, str]]) -> None:
        self.tried = tried
        lines = "\n".join(f"  {name}: {mismatch}" for name, mismatch in tried)
        super().__init__(
            f"{path}: no reader knows this format; tried, with the first mismatch:\n{lines}"
        )
