"""Sharing: one call per key in a batch, whoever asks, however often, at whatever moment.

A made call runs in a task of its own, so that it belongs to all who wait for it: a waiter that is
cancelled leaves, and the last one to leave cancels the call. The task costs a few microseconds a
made call; a use that is shared costs a dictionary look-up, or a future while the call is in flight.

The table does not record. Whoever makes a call (`Dispatcher`, `ToolRunner`) records it, because the
maker holds its slot until the record is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from costmodel.usage import OpMetrics
from planner.logical import Effect
from runtime.errors import BackendError, DrainingError, ToolError
from runtime.records import CallRecord, CallSite, Store


@dataclass(slots=True)
class _Flight:
    """A call under way: its task, and how many wait for it."""

    task: asyncio.Task[CallRecord]
    waiters: int = 0


class CallTable:
    """Calls of this batch by key. Use one table a run, in one event loop; of calls whose keys never
    meet, such as those of tools and those of models, each kind may have a table.

    Metrics are counted when a use ends, under the operator that asked, and at every moment
    `requested == made + shared + replayed`. A use that shares a failing call is shared and an
    error. Uses that are cancelled, or refused because the run is draining, are not counted.

    Args:
        turn: what a call waits for before it is made, and leaves when it is over.
    """

    def __init__(
        self,
        store: Store,
        metrics: dict[str, OpMetrics],
        turn: Callable[[], AbstractAsyncContextManager[None]] | None = None,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._turn = turn
        self._in_flight: dict[str, _Flight] = {}
        self._finished: dict[str, CallRecord] = {}

    @property
    def in_flight(self) -> int:
        """Calls under way, tools and models together."""
        return len(self._in_flight)

    async def once(
        self,
        key: str,
        site: CallSite,
        make: Callable[[], Awaitable[CallRecord]],
        *,
        share: bool = True,
    ) -> CallRecord:
        """The record of `key`: of a call in flight, of a finished pure call of this process, of
        what an earlier process recorded, or of `make()`, which must record what it made.

        When `make` raises, all who wait at that moment get the same exception, and the next one
        who asks makes the call again. `make` itself is cancelled when nobody waits any more.
        Without `share` every use makes a call of its own: for measuring what sharing gives.
        """
        if not share:
            return await self._make(key, site, make)
        flight = self._in_flight.get(key)
        if flight is not None:
            return await self._share(flight, key, site)
        record = self._finished.get(key)
        if record is not None:
            self._count(site).shared += 1
            return record
        record = self._store.recorded_call(key)
        if record is not None:
            self._count(site).replayed += 1
            return record
        flight = _Flight(asyncio.create_task(self._make(key, site, make)))
        flight.task.add_done_callback(_retrieve)
        self._in_flight[key] = flight
        return await self._wait(flight, key)

    async def _share(self, flight: _Flight, key: str, site: CallSite) -> CallRecord:
        try:
            record = await self._wait(flight, key)
        except (asyncio.CancelledError, DrainingError):
            raise
        except Exception:
            metrics = self._count(site)
            metrics.shared += 1
            metrics.errors += 1
            raise
        self._count(site).shared += 1
        return record

    async def _wait(self, flight: _Flight, key: str) -> CallRecord:
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                # Everyone was cancelled. The key is free at once: who asks next must not join a
                # call that is about to end.
                self._forget(key, flight.task)
                flight.task.cancel()

    async def _make(
        self, key: str, site: CallSite, make: Callable[[], Awaitable[CallRecord]]
    ) -> CallRecord:
        task = asyncio.current_task()
        try:
            if self._turn is None:
                record = await make()
            else:
                async with self._turn():
                    record = await make()
            if site.effect is Effect.PURE:
                self._finished[key] = record
        except (asyncio.CancelledError, DrainingError):
            raise
        except Exception as error:
            metrics = self._count(site)
            metrics.made += 1
            metrics.errors += 1
            if isinstance(error, BackendError | ToolError):
                metrics.retries += error.attempts - 1
            raise
        finally:
            self._forget(key, task)
        metrics = self._count(site)
        metrics.made += 1
        metrics.retries += record.attempts - 1
        metrics.busy_s += record.end_s - record.start_s
        metrics.usage += record.usage
        return record

    def _forget(self, key: str, task: asyncio.Task[CallRecord] | None) -> None:
        flight = self._in_flight.get(key)
        if flight is not None and flight.task is task:
            del self._in_flight[key]

    def _count(self, site: CallSite) -> OpMetrics:
        metrics = self._metrics.get(site.op)
        if metrics is None:
            metrics = self._metrics[site.op] = OpMetrics()
        metrics.requested += 1
        return metrics


def _retrieve(task: asyncio.Task[CallRecord]) -> None:
    """Take the outcome, so that asyncio does not report an error that nobody waits for."""
    if not task.cancelled():
        task.exception()
