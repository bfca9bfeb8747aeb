"""The lock of a run directory: held by the operating system, so that it cannot outlive its process.

The file says who has the lock, for people and for `halo status`; whether it is held is only what
the system says. A killed process leaves its name there, and no lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from runtime.errors import RunDirectoryError, RunLockedError

_ATTEMPTS = 200_000
"""`lock_owner` looks at a lock by taking a shared one for some microseconds. A new owner that meets
only such looks tries again, so often: for some tenths of a second, because whoever looks can lose
the processor (or the interpreter's lock) in between."""


@dataclass(frozen=True, slots=True)
class LockOwner:
    """Who holds a run directory. 0 and empty texts are unknown; `started` is ISO 8601 text."""

    pid: int = 0
    host: str = ""
    started: str = ""
    owner: str = ""

    def __str__(self) -> str:
        who = f"process {self.pid or 'unknown'} on {self.host or 'an unknown host'}"
        details = [text for text in (self.owner, self.started and f"since {self.started}") if text]
        return f"{who} ({', '.join(details)})" if details else who


@contextlib.contextmanager
def exclusive_lock(path: Path, owner: str, started: str = "") -> Generator[None, None, None]:
    """Hold the lock file `path` for the block; what a killed process held is taken over. Raises
    `RunLockedError`, naming the holder, when another process (or another part of this) has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunDirectoryError(f"cannot lock {path.parent}: {error.strerror}") from error
    try:
        if not _acquire(descriptor):
            raise RunLockedError(
                f"{path.parent} is in use by {_read_owner(path)}; wait until it ends, or stop it"
            )
        _write_owner(descriptor, LockOwner(os.getpid(), platform.node(), started, owner), path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def lock_owner(path: Path) -> LockOwner | None:
    """Who holds the lock file `path` now; None when nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunDirectoryError(f"cannot read {path}: {error.strerror}") from error
    try:
        return None if _try_lock(descriptor, exclusive=False) else _read_owner(path)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int) -> bool:
    for _ in range(_ATTEMPTS):
        if _try_lock(descriptor, exclusive=True):
            return True
        if not _try_lock(descriptor, exclusive=False):
            return False
        _unlock(descriptor)
    return False


def _read_owner(path: Path) -> LockOwner:
    try:
        found = json.loads(path.read_text("utf-8"))
        return LockOwner(**cast("dict[str, Any]", found))
    except (OSError, ValueError, TypeError):
        return LockOwner()


def _write_owner(descriptor: int, owner: LockOwner, path: Path) -> None:
    text = json.dumps(asdict(owner)).encode()
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, text)
        os.ftruncate(descriptor, len(text))
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror}") from error


if sys.platform == "win32":
    import msvcrt

    # Locked bytes cannot be read by others on Windows, so the lock is far behind the text.
    _LOCKED_BYTE = 1 << 30

    def _try_lock(descriptor: int, *, exclusive: bool) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int, *, exclusive: bool) -> bool:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
