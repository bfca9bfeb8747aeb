"""Sharing: one call per key in a batch, whoever asks, however often, at whatever moment.

A made call runs in a task of its own, so that it belongs to all who wait for it: a use that is
cancelled leaves, and the last one to leave cancels the call. Who asks gets a future and needs no
task: a made call costs one task and one future, a use that is shared a future, or a dictionary
look-up where the call has ended before.

The table does not record. Whoever makes a call (`Dispatcher`, `ToolRunner`) records it, because the
maker holds its slot until the record is durable.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from costmodel.usage import OpMetrics
from planner.logical import Effect
from runtime.errors import BackendError, DrainingError, ToolError
from runtime.records import CallRecord, CallSite, Store


class _Use(Future[CallRecord]):
    """What one who asks for a call waits for. `sharer` is who asks, and None for the one that the
    call is made for."""

    def __init__(
        self,
        sharer: CallSite | None,
        on_leave: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(loop=loop)
        self.sharer = sharer
        self._on_leave = on_leave

    def cancel(self, msg: object = None) -> bool:
        left = super().cancel(msg)
        if left:
            # At once, not in a callback: who asks next must not join a call that is about to end.
            self._on_leave()
        return left


class _Flight:
    """A call under way: its task, and the uses that wait for it."""

    __slots__ = ("_on_abandoned", "_uses", "_waiting", "key", "task")

    def __init__(self, key: str, on_abandoned: Callable[[_Flight], None]) -> None:
        self.key = key
        self.task: asyncio.Task[None] | None = None
        self._uses: list[_Use] = []
        self._waiting = 0
        self._on_abandoned = on_abandoned

    def join(self, sharer: CallSite | None) -> _Use:
        """Another use."""
        use = _Use(sharer, self._left, asyncio.get_running_loop())
        self._uses.append(use)
        self._waiting += 1
        return use

    def ended(self) -> list[_Use]:
        """The uses that wait still; they are let go of."""
        waiting = [use for use in self._uses if not use.done()]
        self._uses.clear()
        return waiting

    def _left(self) -> None:
        self._waiting -= 1
        if not self._waiting and self.task is not None and not self.task.done():
            self._on_abandoned(self)
            self.task.cancel()


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

    def begin(
        self,
        key: str,
        site: CallSite,
        make: Callable[[], Awaitable[CallRecord]],
        *,
        share: bool = True,
    ) -> Future[CallRecord]:
        """The record of `key`: of a call in flight, of a finished pure call of this process, of
        what an earlier process recorded, or of `make()`, which must record what it made. The future
        is done already where the record is known. Cancel it to stop waiting.

        When `make` raises, all who wait at that moment get the same exception, and the next one
        who asks makes the call again. `make` itself is cancelled when nobody waits any more.
        Without `share` every use makes a call of its own: for measuring what sharing gives.
        """
        if share:
            flight = self._in_flight.get(key)
            if flight is not None:
                return flight.join(site)
            record = self._finished.get(key)
            if record is not None:
                self._count(site).shared += 1
                return _known(record)
            record = self._store.recorded_call(key)
            if record is not None:
                self._count(site).replayed += 1
                return _known(record)
        flight = _Flight(key, self._forget)
        if share:
            self._in_flight[key] = flight
        use = flight.join(None)
        flight.task = use.get_loop().create_task(self._run(flight, site, make))
        return use

    async def once(
        self,
        key: str,
        site: CallSite,
        make: Callable[[], Awaitable[CallRecord]],
        *,
        share: bool = True,
    ) -> CallRecord:
        """Wait for the record of `key`. As `begin`."""
        return await self.begin(key, site, make, share=share)

    async def _run(
        self, flight: _Flight, site: CallSite, make: Callable[[], Awaitable[CallRecord]]
    ) -> None:
        """Make a call, and tell all who wait for it."""
        try:
            if self._turn is None:
                record = await make()
            else:
                async with self._turn():
                    record = await make()
        except Exception as error:
            self._forget(flight)
            self._failed(flight, site, error)
        except BaseException:
            self._forget(flight)
            for use in flight.ended():
                use.cancel()
            raise
        else:
            if site.effect is Effect.PURE:
                self._finished[flight.key] = record
            self._forget(flight)
            self._made(flight, site, record)

    def _made(self, flight: _Flight, site: CallSite, record: CallRecord) -> None:
        metrics = self._count(site)
        metrics.made += 1
        metrics.retries += record.attempts - 1
        metrics.busy_s += record.end_s - record.start_s
        metrics.usage += record.usage
        for use in flight.ended():
            if use.sharer is not None:
                self._count(use.sharer).shared += 1
            use.set_result(record)

    def _failed(self, flight: _Flight, site: CallSite, error: Exception) -> None:
        counted = not isinstance(error, DrainingError)
        if counted:
            metrics = self._count(site)
            metrics.made += 1
            metrics.errors += 1
            if isinstance(error, BackendError | ToolError):
                metrics.retries += error.attempts - 1
        for use in flight.ended():
            if counted and use.sharer is not None:
                metrics = self._count(use.sharer)
                metrics.shared += 1
                metrics.errors += 1
            use.set_exception(error)

    def _forget(self, flight: _Flight) -> None:
        if self._in_flight.get(flight.key) is flight:
            del self._in_flight[flight.key]

    def _count(self, site: CallSite) -> OpMetrics:
        metrics = self._metrics.get(site.op)
        if metrics is None:
            metrics = self._metrics[site.op] = OpMetrics()
        metrics.requested += 1
        return metrics


def _known(record: CallRecord) -> Future[CallRecord]:
    use: Future[CallRecord] = asyncio.get_running_loop().create_future()
    use.set_result(record)
    return use
