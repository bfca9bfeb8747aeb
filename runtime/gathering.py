"""Gathering: calls of a small model wait a moment for each other while a large model is busy.

A decode step reads all weights, for one answer or for a hundred. Where rows go from a large model
to a small one, the small one's calls come a few at a time, as the large one's answers do, and each
few have decode steps of their own. On a card that both share, the large one waits for those steps.
Gathered for a moment, many more share them (emulated: docs/benchmarks/sglang). It costs the rows
that time, which is little to a large model that has calls enough meanwhile. Where both have cards
of their own, it gains nothing; engines on different machines never gather for each other.

A model is known by its calls: the small one's take a fraction of the time for each answer token.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from runtime.clock import Clock

FULL = 256
"""Calls in an engine from which its steps hardly become better by more of them."""
SMALLER = 0.5
"""A model is smaller than another one if its answer tokens take at most this share of the time."""
SHARE = 10
"""Calls gather for this many times as long as one is decoded, so that decoding takes a tenth."""
MOST_S = 2.0
"""Nobody waits longer."""


class Gathering:
    """Of one lane. Closed, it holds back what waits; it opens when the time is over, when enough
    calls wait, or when no larger model has a full batch any longer, and closes when nothing waits.

    Args:
        model, machine: that the lane's engine serves, and where; only calls of different models on
            one machine gather for each other.
        in_flight: calls that the engine works on, as of now.
        admit: lets the lane's calls in, as far as it is open.
    """

    def __init__(
        self,
        model: str,
        machine: str,
        clock: Clock,
        in_flight: Callable[[], int],
        admit: Callable[[], None],
    ) -> None:
        self.model = model
        self.machine = machine
        self._clock = clock
        self._in_flight = in_flight
        self._admit = admit
        self._others: Sequence[Gathering] = ()
        self._open = True
        self._timer: asyncio.Task[None] | None = None
        self._s_per_token = math.inf
        self._calls = 0
        self._tokens = 0

    def beside(self, others: Sequence[Gathering]) -> None:
        """The run's lanes that gather; those of other models on this machine count."""
        self._others = [
            other for other in others if other.machine == self.machine and other.model != self.model
        ]

    def took(self, seconds: float, answer_tokens: int) -> None:
        """A call was in the engine for so long."""
        self._calls += 1
        self._tokens += answer_tokens
        self._s_per_token = min(self._s_per_token, seconds / max(1, answer_tokens))

    def holds(self, waiting: int) -> bool:
        """Whether the lane's `waiting` calls have to wait on."""
        if self._open:
            return False
        if not self._pays(waiting):
            self._stop()
            return False
        if self._timer is None or self._timer.done():
            decoding_s = self._s_per_token * self._tokens / self._calls
            self._timer = asyncio.ensure_future(self._open_after(min(MOST_S, SHARE * decoding_s)))
        return True

    def nothing_waits(self) -> None:
        """What comes next gathers again."""
        self._open = False

    def slots_came_back(self) -> None:
        """Calls have left the engine. Lanes that gathered because it was full go on if it is not
        any longer."""
        if not self._full:
            for other in self._others:
                other.look_again()

    def look_again(self) -> None:
        """Let calls in if they need not be held any longer."""
        if self._timer is not None:
            self._admit()

    async def close(self) -> None:
        """End the wait, if there is one."""
        timer = self._timer
        self._stop()
        if timer is not None:
            await asyncio.wait((timer,))

    @property
    def _full(self) -> bool:
        return self._in_flight() >= FULL

    def _pays(self, waiting: int) -> bool:
        return self._in_flight() + waiting < FULL and any(
            other._full and self._s_per_token <= SMALLER * other._s_per_token < math.inf
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
