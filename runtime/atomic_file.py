"""Files that exist whole or not at all: written aside, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TextIO

from runtime.errors import RunDirectoryError


@contextlib.contextmanager
def replaced_path(path: Path) -> Generator[Path, None, None]:
    """A path beside `path` to write to. When the block ends well, the file is on disk under its
    real name, also after a power loss; when it fails, nothing is left. Raises `RunDirectoryError`
    for errors of the file system."""
    aside = path.with_name(f"{path.name}.tmp")
    try:
        yield aside
        descriptor = os.open(aside, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        aside.replace(path)
        sync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunDirectoryError(
                f"cannot write {path}: {error.strerror or error}; make room or fix the "
                "permissions, then resume the run"
            ) from error
        raise


@contextlib.contextmanager
def replaced_text(path: Path) -> Generator[TextIO, None, None]:
    """The same as an open UTF-8 text file with `\\n` line ends, for JSON: half a surrogate pair,
    which UTF-8 does not have, becomes the escape that JSON has for it."""
    with (
        replaced_path(path) as aside,
        aside.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        yield file


def sync_directory(path: Path) -> None:
    """Make names created in a directory survive a power loss. Windows needs and offers nothing."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
