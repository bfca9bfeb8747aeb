"""Deadlines of many waits, at the cost of one timer for each different limit."""

from __future__ import annotations

import asyncio
from typing import Protocol

TIMER_SLACK_S = 0.001
"""Timers may ring a moment before their time: what is due so soon is due, or they would be set
again and again for the rest of that moment."""


class OverdueError(Exception):
    """The deadline has passed."""


class Waited(Protocol):
    """What is waited for."""

    def fail(self, error: BaseException) -> None:
        """End it by `error`, unless it has ended."""
        ...


class Deadlines:
    """Ends by `OverdueError` what has not ended in time.

    The calls of a client have few different limits, and those with the same one are due in the
    order in which they began: it is enough to have a timer for the first of each. Use it in one
    event loop.
    """

    def __init__(self) -> None:
        self._queues: dict[float, _Queue] = {}

    def add(self, waited: Waited, limit_s: float) -> None:
        """End `waited` in `limit_s` seconds."""
        queue = self._queues.get(limit_s)
        if queue is None:
            queue = self._queues[limit_s] = _Queue(limit_s)
        queue.add(waited)

    def discard(self, waited: Waited, limit_s: float) -> None:
        """It has ended. Safe to call twice."""
        queue = self._queues.get(limit_s)
        if queue is not None:
            queue.discard(waited)

    def clear(self) -> None:
        """Stop all timers."""
        for queue in self._queues.values():
            queue.clear()
        self._queues.clear()


class _Queue:
    """Those with the same limit, first due first."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._due_s: dict[Waited, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waited: Waited) -> None:
        loop = asyncio.get_running_loop()
        due_s = self._due_s[waited] = loop.time() + self._limit_s
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._ring, loop)

    def discard(self, waited: Waited) -> None:
        self._due_s.pop(waited, None)
        if not self._due_s:
            # On virtual time a timer that nobody needs would move the clock.
            self.clear()

    def clear(self) -> None:
        self._due_s.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        soon_s = loop.time() + TIMER_SLACK_S
        late: list[Waited] = []
        for waited, due_s in self._due_s.items():
            if due_s > soon_s:
                self._timer = loop.call_at(due_s, self._ring, loop)
                break
            late.append(waited)
        for waited in late:
            del self._due_s[waited]
            waited.fail(OverdueError())
