"""Gathering: calls of a small model wait a moment for each other while a large model is busy.

A decode step reads all weights, for one answer or for a hundred. Where rows go from a large model
to a small one, the small one's calls come a few at a time, as the large one's answers do, and each
few have decode steps of their own. On a card that both share, the large one waits for those steps.
Gathered for a moment, many more share them; and since the large model has calls enough meanwhile,
nobody waits for the small one's answers (emulated: docs/benchmarks/sglang).

The small model is found by its calls: they take a fraction of the time. On cards of their own the
two lose nothing by it either, as long as the large one is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence

from runtime.clock import Clock

FULL = 64
"""Calls in an engine that keep it busy for longer than others gather."""
SMALLER = 0.5
"""A model is smaller than another one if its calls take at most this share of the other's time."""
SHARE = 10
"""Calls gather for this many times as long as one takes, so that decoding alone takes a tenth."""
MOST_S = 2.0
"""Nobody waits longer."""


class Gathering:
    """Of one lane. Closed, it holds back what waits; it opens when the time is over, when no larger
    model is busy any longer, or when its own engine is, and closes when nothing waits any more.

    Args:
        in_flight: calls that the lane's engine works on, as of now.
        limit: as many as it takes at once.
        admit: lets the lane's calls in, as far as it is open.

    Attributes:
        shortest_s: what a call took, at least; infinite before the first.
    """

    def __init__(
        self,
        clock: Clock,
        in_flight: Callable[[], int],
        limit: Callable[[], int],
        admit: Callable[[], None],
    ) -> None:
        self.shortest_s = math.inf
        self._clock = clock
        self._in_flight = in_flight
        self._limit = limit
        self._admit = admit
        self._others: Sequence[Gathering] = ()
        self._open = True
        self._timer: asyncio.Task[None] | None = None

    def beside(self, others: Sequence[Gathering]) -> None:
        """The run's other lanes that gather."""
        self._others = others

    @property
    def full(self) -> bool:
        """Whether the engine has calls enough to be busy."""
        return self._in_flight() >= min(FULL, self._limit())

    def took(self, seconds: float) -> None:
        """A call was in the engine for so long."""
        self.shortest_s = min(self.shortest_s, seconds)

    def ended(self) -> None:
        """A call has left the engine. Lanes that gathered because it was full go on."""
        if self._in_flight() == min(FULL, self._limit()) - 1:
            for other in self._others:
                other.look_again()

    def holds(self) -> bool:
        """Whether calls that wait have to wait on."""
        if self._open:
            return False
        if not self._pays():
            self._stop()
            return False
        if self._timer is None:
            wait_s = min(MOST_S, SHARE * self.shortest_s)
            self._timer = asyncio.ensure_future(self._open_after(wait_s))
        return True

    def nothing_waits(self) -> None:
        """What comes next gathers again."""
        self._open = False

    def look_again(self) -> None:
        """Let calls in if they need not be held any longer."""
        if self._timer is not None and not self._pays():
            self._admit()

    async def close(self) -> None:
        """End the wait, if there is one."""
        timer = self._timer
        self._stop()
        if timer is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await timer

    def _pays(self) -> bool:
        """Whether a model that is at least twice as large has enough to do meanwhile, and this one
        has not."""
        return not self.full and any(
            other.full and self.shortest_s <= SMALLER * other.shortest_s < math.inf
            for other in self._others
        )

    def _stop(self) -> None:
        self._open = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _open_after(self, seconds: float) -> None:
        await self._clock.sleep_s(seconds)
        self._open = True
        self._timer = None
        self._admit()
