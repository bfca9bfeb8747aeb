"""A clock that counts processor seconds: of this process and of all processes below it.

On a machine that others use, the wall-clock time of a batch says more about them than about the
engine. An engine that runs on one thread of this machine takes as many processor seconds as it
would take seconds on a free core. Linux alone tells them per thread in time to be useful.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from halo.errors import ConfigError
from runtime.clock import LoopClock

_PROC = Path("/proc")


class ProcessorClock(LoopClock):
    """`now_s` counts processor seconds; waiting takes wall-clock time, as ever.

    Threads and processes that end take their seconds with them: measure while they live.
    """

    def __init__(self) -> None:
        super().__init__()
        if not (_PROC / "self" / "schedstat").is_file():
            raise ConfigError("processor seconds are counted on Linux alone; measure wall time")
        self._process = os.getpid()

    def now_s(self) -> float:
        nanoseconds = 0
        for process in _family(self._process):
            for thread in _threads(process):
                with suppress(OSError, ValueError, IndexError):
                    nanoseconds += int((thread / "schedstat").read_text("ascii").split()[0])
        return nanoseconds / 1e9


def _threads(process: int) -> list[Path]:
    try:
        return list((_PROC / str(process) / "task").iterdir())
    except OSError:
        return []  # it has ended


def _family(process: int) -> Iterator[int]:
    """A process and all below it."""
    waiting = [process]
    while waiting:
        current = waiting.pop()
        yield current
        for thread in _threads(current):
            with suppress(OSError, ValueError):
                waiting += [
                    int(child) for child in (thread / "children").read_text("ascii").split()
                ]
