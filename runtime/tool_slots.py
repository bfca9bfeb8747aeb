"""Places for the calls of one tool.

A call keeps its place until its record is durable. While calls take microseconds, a few more places
than the tool may run at once keep its threads busy between two turns of the event loop.
"""

from __future__ import annotations

import asyncio

HAND_OVER_S = 0.005
"""What it takes to hand a function to a thread while the loop is busy: the interpreter's switch
interval."""
MOST_AHEAD = 256
_WEIGHT = 0.2


class ToolSlots:
    """`most` places, and as many more as calls that the threads do within a hand-over."""

    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self._slots = asyncio.Semaphore(self._most)
        self._ahead = 0
        self._wanted = 0
        self._mean_s: float | None = None

    async def acquire(self) -> None:
        """Wait for a place."""
        await self._slots.acquire()

    def release(self) -> None:
        """Give a place back."""
        if self._ahead > self._wanted:
            self._ahead -= 1
        else:
            self._slots.release()

    def took(self, seconds: float) -> None:
        """A call has run in its thread for so long."""
        mean_s = self._mean_s
        self._mean_s = mean_s = seconds if mean_s is None else mean_s + _WEIGHT * (seconds - mean_s)
        self._wanted = min(MOST_AHEAD, int(self._most * HAND_OVER_S / max(mean_s, 1e-9)))
        while self._ahead < self._wanted:
            self._ahead += 1
            self._slots.release()
