"""Time behind one seam: the loop's clock, real or virtual. Nothing else reads a clock."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Clock(Protocol):
    """Seconds of a run. Virtual time stands still while real work (`outside`) is under way."""

    def now_s(self) -> float:
        """Seconds on a monotonic clock."""
        ...

    async def sleep_s(self, seconds: float) -> None:
        """Wait; under virtual time this takes no real time."""
        ...

    def outside(self) -> AbstractContextManager[None]:
        """Hold while a thread or socket works for us, so that virtual time waits for it."""
        ...
