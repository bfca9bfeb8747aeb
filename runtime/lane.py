"""A lane: the way into one worker. It has the worker's slots, the queue for them by priority, and
the requests that are held while another one primes their prefix."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass

from costmodel.usage import Usage
from runtime.backends.base import Backend, Request
from runtime.clock import Clock
from runtime.gathering import Gathering
from runtime.priming import (
    REMEMBERED_TOKENS,
    Prefill,
    Priming,
    PrimingStats,
    prompt_chain,
    prompt_text,
)

LOOK_AHEAD = 2
"""Calls in the engine and held, for each slot. While calls are held, those of later rows go in
their place; with no bound on that, they would fill the cache with prefixes that are dropped again
before their turn."""
LEAST_AHEAD = 16


@dataclass(slots=True, eq=False)
class Ticket:
    """A call's place in a lane."""

    priority: int
    arrival: int
    chain: list[int]
    n_chars: int
    granted: bool = False
    gone: bool = False
    held: bool = False
    prefill: Prefill | None = None
    ready: asyncio.Future[None] | None = None


class Lane:
    """Lets at most `Backend.in_flight_limit` calls into `engine`, smaller `priority` first and
    equal ones in order of arrival. A slot is taken by `enter` and given back by `release`, which
    may come later than `leave` (the end of the engine's work).

    Attributes:
        waiting: calls that have no slot, held ones included.
        in_flight: calls that the engine works on.
    """

    def __init__(self, engine: Backend, *, prime: bool) -> None:
        capabilities = engine.capabilities
        self.engine = engine
        self.gathering: Gathering | None = None
        self.waiting = 0
        self.in_flight = 0
        self._taken = 0
        engine.on_limit_change(self._admit)
        self._arrivals = 0
        self._queue: list[tuple[int, int, Ticket]] = []
        self._held: dict[Prefill, list[Ticket]] = {}
        self._n_held = 0
        self._refusal: Callable[[], Exception] | None = None
        self._hold = prime and capabilities.prime_prefix
        self._priming = (
            Priming(
                concurrent_reuse=not capabilities.prime_prefix,
                remembered_tokens=capabilities.cache_estimated_tokens or REMEMBERED_TOKENS,
                worth_chars=round(capabilities.prime_tokens * capabilities.bytes_per_token),
            )
            if capabilities.prime_prefix or capabilities.prefix_cache
            else None
        )

    def gather(self, model: str, clock: Clock) -> Gathering:
        """From here on, calls of this lane, whose engine serves `model`, may gather."""
        machine = self.engine.capabilities.machine
        self.gathering = Gathering(model, machine, clock, lambda: self.in_flight, self._admit)
        return self.gathering

    def awaits_prefill(self, ticket: Ticket) -> bool:
        """Whether others may be held until the prompt of `ticket` is prefilled: to be told of it
        costs a streamed answer. Never on an engine that shares prefixes between requests that
        arrive together."""
        prefill = ticket.prefill
        if not self._hold or self._priming is None or prefill is None or not prefill.open:
            return False
        return self._priming.may_hold(prefill)

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return max(0, self._limit - self._taken)

    @property
    def _limit(self) -> int:
        return max(1, self.engine.in_flight_limit)

    @property
    def priming_stats(self) -> PrimingStats:
        return self._priming.stats if self._priming is not None else PrimingStats()

    async def enter(self, request: Request) -> Ticket:
        """Wait for a slot. Raises what `refuse` was given."""
        if self._refusal is not None:
            raise self._refusal()
        chain: list[int] = []
        n_chars = 0
        if self._priming is not None:
            text = prompt_text(request)
            chain, n_chars = prompt_chain(text), len(text)
        self._arrivals += 1
        ticket = Ticket(request.priority, self._arrivals, chain, n_chars)
        self.waiting += 1
        heapq.heappush(self._queue, (ticket.priority, ticket.arrival, ticket))
        self._admit()
        if ticket.granted:
            return ticket
        ticket.ready = asyncio.get_running_loop().create_future()
        try:
            await ticket.ready
        except BaseException:
            if ticket.granted:  # cancelled in the same moment in which the slot came
                self.leave(ticket)
                self.release()
            elif not ticket.gone:
                self._drop(ticket)
            raise
        return ticket

    def prefilled(self, ticket: Ticket) -> None:
        """The prompt is in the KV cache: whoever was held for it may go. Idempotent."""
        self._end_prefill(ticket, cached=True)

    def failed(self, ticket: Ticket) -> None:
        """An attempt failed: nobody waits for its prompt any longer. The slot is kept."""
        self._end_prefill(ticket, cached=False)

    def again(self, ticket: Ticket) -> None:
        """Another attempt of a failed call begins."""
        if self._priming is not None:
            ticket.prefill = self._priming.start(ticket.chain, ticket.n_chars)

    def leave(self, ticket: Ticket) -> None:
        """The engine's work on a call is over, with or without an answer."""
        self.in_flight -= 1
        self.failed(ticket)

    def release(self, slots: int = 1) -> None:
        """Give slots back."""
        self._taken -= slots
        self._admit()
        if self.gathering is not None:
            self.gathering.slots_came_back()

    def refuse(self, error: Callable[[], Exception]) -> None:
        """From here on nobody enters: `error()` is raised for all who wait and who come. Those who
        have a slot keep it."""
        self._refusal = error
        waiting = [t for _, _, t in self._queue]
        waiting.extend(t for held in self._held.values() for t in held)
        self._queue.clear()
        self._held.clear()
        self._n_held = 0
        for ticket in waiting:
            if not ticket.gone:
                self._drop(ticket)
                if ticket.ready is not None and not ticket.ready.done():
                    ticket.ready.set_exception(error())

    def predict(self, ticket: Ticket, usage: Usage) -> int | None:
        """Prompt tokens of a finished call that the engine should have reused; None when this lane
        does not follow prefixes."""
        if self._priming is None or ticket.prefill is None:
            return None
        return self._priming.predict(ticket.prefill, usage.input_tokens)

    def _admit(self) -> None:
        gathering = self.gathering
        if gathering is not None and self._queue and gathering.holds(len(self._queue)):
            return
        limit = self._limit
        ahead = max(LOOK_AHEAD * limit, limit + LEAST_AHEAD)
        while self._queue and self._taken < limit and self._taken + self._n_held < ahead:
            ticket = heapq.heappop(self._queue)[2]
            if ticket.gone or (self._hold and self._hold_back(ticket)):
                continue
            self._taken += 1
            self.waiting -= 1
            self.in_flight += 1
            ticket.granted = True
            self.again(ticket)
            if ticket.ready is not None and not ticket.ready.done():
                ticket.ready.set_result(None)
        if gathering is not None and not self._queue and not self._n_held:
            gathering.nothing_waits()

    def _hold_back(self, ticket: Ticket) -> bool:
        owner = self._priming.blocker(ticket.chain) if self._priming is not None else None
        if owner is None or self._priming is None:
            return False
        held = self._held.get(owner)
        if held is None:
            held = self._held[owner] = []
            self._priming.stats.groups += 1
        held.append(ticket)
        self._n_held += 1
        if not ticket.held:
            ticket.held = True
            self._priming.stats.held += 1
        return True

    def _end_prefill(self, ticket: Ticket, *, cached: bool) -> None:
        if self._priming is None or ticket.prefill is None:
            return
        if self._priming.end(ticket.prefill, cached=cached):
            for held in self._held.pop(ticket.prefill, ()):
                self._n_held -= 1
                heapq.heappush(self._queue, (held.priority, held.arrival, held))
            self._admit()

    def _drop(self, ticket: Ticket) -> None:
        ticket.gone = True
        self.waiting -= 1
