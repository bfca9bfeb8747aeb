"""The tool runner: from a tool call or a query to its record, each distinct pure call made once.

It names a call (its content key), lets the call table decide whether it has to be made, and makes
it: order a write behind what is durable, wait for the tool's slot, run, try again when that can
help, record. As with model calls, a slot is free again when the record is durable.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from planner.logical import Effect, Json, Sql, Tool, canonical_json, strongest
from runtime.clock import Clock
from runtime.errors import DrainingError, ToolError
from runtime.http_tool import HttpTools
from runtime.python_tool import OnEnd, call_python
from runtime.records import CallRecord, CallSite, Store
from runtime.retry import RetryPolicy
from runtime.sharing import CallTable
from runtime.sql_batches import MAX_LOOKUPS, SqlBatches
from runtime.sql_keys import QueryKeys
from runtime.sql_tool import Databases
from runtime.streaming import Listener, RowStreams
from runtime.thread_lane import ThreadLane
from runtime.tool_arguments import ArgumentChecker
from runtime.tool_slots import ToolSlots
from runtime.tools import OnRows, ToolSpec

_QUERIES_AHEAD = 64
"""Queries that wait for a thread of their file: it goes from one to the next by itself, without the
event loop, which may be busy for as long as many of them take."""
_RETRY = RetryPolicy(base_s=0.4, max_s=5.0)
_MAX_RETRY_AFTER_S = 600.0
"""A server that wants to be left alone for longer ends the call: it holds one of the tool's slots.
"""


@dataclass(frozen=True, slots=True)
class _Call:
    """A call to make: what it is recorded as, and how it is run once."""

    key: str
    kind: Literal["tool", "sql", "http"]
    name: str
    site: CallSite
    attempts: int
    run: Callable[[], Awaitable[Json]]
    began_s: list[float] = field(default_factory=list[float])
    """When each attempt began to run, of those that waited for a thread and ended."""


class ToolRunner:
    """Calls of the tools `specs` and queries on `databases`. Make it inside the running loop: times
    in records are seconds since then.

    Args:
        tenant: results are never shared between different tenants.
    """

    def __init__(
        self,
        specs: Mapping[str, ToolSpec],
        databases: Databases,
        table: CallTable,
        store: Store,
        clock: Clock,
        *,
        tenant: str = "",
    ) -> None:
        self._specs = specs
        self._databases = databases
        self._table = table
        self._store = store
        self._clock = clock
        self._tenant = tenant
        self._http = HttpTools(clock)
        self._batches = SqlBatches(databases.most_at_once, databases.is_open)
        self._query_keys = QueryKeys()
        self._streams = RowStreams()
        self._slots: dict[str, ToolSlots] = {}
        self._lanes: dict[str, ThreadLane] = {}
        self._arguments = ArgumentChecker()
        self._origin_s = clock.now_s()
        self._refused = ""
        self._pauses: set[asyncio.Task[None]] = set()

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Json],
        site: CallSite,
        listener: Listener | None = None,
    ) -> CallRecord:
        """The record of a tool call, made now or shared or replayed; its value is the tool's JSON
        value. `listener` hears of the rows of a generator as they come.

        Raises `ToolError` (no such tool, arguments that do not fit, the tool raised, a result that
        is no JSON), `ToolTimeoutError`, and `DrainingError` when the call had not started.
        """
        spec = self._specs.get(name)
        if spec is None:
            known = ", ".join(sorted(self._specs)) or "none"
            raise ToolError(f"there is no tool {name!r}; the tools are: {known}", tool=name)
        site = replace(site, effect=strongest((site.effect, spec.effect)))
        kind: Literal["tool", "http"] = "http" if spec.url else "tool"
        key = site.key(self._key(kind, name, spec.digest, dict(arguments), site.identity))
        idempotency_key = hashlib.sha256((site.identity or key).encode()).hexdigest()[:32]

        async def run() -> Json:
            self._arguments.check(spec, arguments)
            if spec.url:
                return await self._http.call(spec, arguments, idempotency_key)
            if spec.function is None:
                raise ToolError(f"tool {name!r} has neither a function nor a URL", tool=name)
            return await call_python(
                spec,
                arguments,
                idempotency_key,
                self._clock,
                self._lane_of(spec),
                self._streams.attempt(key),
                ran,
            )

        def ran(began_s: float, seconds: float) -> None:
            call.began_s.append(began_s)
            if spec.effect is Effect.PURE:
                slots.took(seconds)

        attempts = 1 + (spec.retries if spec.effect is Effect.PURE else 0)
        slots = self._places(f"tool {name}", spec.max_concurrency)
        call = _Call(key, kind, name, site, attempts, run)
        with self._streams.listening(key, listener):
            return await self._table.once(key, site, lambda: self._make(call, slots))

    async def query(
        self,
        op: Sql,
        text: str,
        params: Mapping[str, Json],
        site: CallSite,
        listener: Listener | None = None,
    ) -> CallRecord:
        """The record of a query, made now or shared or replayed; its value is a list of row
        objects, at most `op.max_rows`. `listener` hears of rows as they are read. Errors are those
        of `call`."""
        path = self._databases.path(op.database)
        site = replace(site, effect=strongest((site.effect, op.own_effect)))
        identity = site.identity
        if not identity and self._changes(op, text):
            # Equal texts may have different answers, so every asker asks for itself.
            identity = replace(site, effect=Effect.WRITE).identity

        async def read(
            text: str,
            params: Mapping[str, Json],
            max_rows: int,
            on_rows: OnRows | None = None,
            on_end: OnEnd | None = None,
        ) -> list[Json]:
            return list(
                await self._databases.query(
                    op.database,
                    text,
                    params,
                    self._clock,
                    max_rows=max_rows,
                    read_only=op.read_only,
                    bounded=op.text is None,
                    on_rows=on_rows,
                    on_end=on_end,
                )
            )

        asked: Json = None
        if op.derived and not identity:
            asked = await self._query_keys.asked(op, params, read)
        if asked is None:
            asked = {"text": text, "params": dict(params), "max_rows": op.max_rows}
        key = self._key("sql", str(path), str(op.read_only), asked, identity)
        batched = op.batched and not identity

        async def run() -> Json:
            if batched:
                return await self._batches.query(op, params, read)
            return await read(text, params, op.max_rows, self._streams.attempt(key), ran)

        def ran(began_s: float, seconds: float) -> None:
            call.began_s.append(began_s)

        call = _Call(key, "sql", path.name, site, 1, run)
        if batched:
            # They wait for each other's batch, not for a slot each.
            slots = self._places(f"sql batched {path}", MAX_LOOKUPS)
        else:
            # Queries that write are serial for each file.
            most = self._databases.most_at_once + _QUERIES_AHEAD if op.read_only else 1
            slots = self._places(f"sql {op.read_only} {path}", most)
        with self._streams.listening(key, listener):
            return await self._table.once(key, site, lambda: self._make(call, slots))

    def shares(self, op: Tool | Sql) -> bool:
        """Whether equal calls of `op` are made once, as far as is known before they are made: not
        when they write, when the answer may change, or when a model writes the query."""
        if isinstance(op, Tool):
            spec = self._specs.get(op.tool.name)
            return spec is not None and strongest((op.effect, spec.effect)) is Effect.PURE
        if op.text is None or op.own_effect is not Effect.PURE:
            return False
        try:
            return not self._changes(op, op.text)
        except ToolError:
            return False  # no such database: each row is told so

    def _changes(self, op: Sql, text: str) -> bool:
        """Whether a query may be answered differently each time."""
        return self._databases.is_writable(op.database) or self._databases.volatile(text)

    def stop(self) -> None:
        """Drain: calls that have not started are refused with `DrainingError`, and so are further
        attempts of failed ones. Calls that run finish."""
        self._refuse("the run is stopping; this call had not started and was left for resume")

    async def close(self) -> None:
        """Close HTTP connections and databases."""
        await self._query_keys.close()
        await self._http.close()
        await self._databases.close()

    async def _make(self, call: _Call, slots: ToolSlots) -> CallRecord:
        self._check_running()
        queued_s = self._clock.now_s()
        await slots.acquire()
        durable: asyncio.Future[None] | None = None
        try:
            self._check_running()
            if call.site.effect is Effect.WRITE:
                # What led to the write must survive a crash, or a resumed run could decide
                # differently and write something else as well.
                await self._store.durable()
                self._check_running()
            start_s = self._clock.now_s()
            try:
                value, attempts = await self._attempt(call)
            except ToolError as error:
                start_s = next(iter(call.began_s), start_s)
                durable = self._store.record_call(self._record(call, queued_s, start_s, error))
                raise
            start_s = next(iter(call.began_s), start_s)
            record = self._record(call, queued_s, start_s, None, value, attempts)
            durable = self._store.record_call(record)
            return record
        finally:
            if durable is None:
                slots.release()
            else:
                durable.add_done_callback(lambda done: self._release(slots, done))

    async def _attempt(self, call: _Call) -> tuple[Json, int]:
        # Not `stamina`: it sleeps by itself, and waits here must be on the run's clock.
        attempt = 1
        while True:
            try:
                return await call.run(), attempt
            except ToolError as error:
                error.attempts = attempt
                asked_s = error.retry_after_s or 0.0
                if attempt >= call.attempts or not error.retryable or asked_s > _MAX_RETRY_AFTER_S:
                    raise
                await self._pause(max(asked_s, _RETRY.delay_s(call.key, attempt)))
                self._check_running(error)
                attempt += 1

    async def _pause(self, delay_s: float) -> None:
        if self._refused:
            return
        pause = asyncio.ensure_future(self._clock.sleep_s(delay_s))
        self._pauses.add(pause)
        try:
            await asyncio.wait((pause,))
        finally:
            self._pauses.discard(pause)
            pause.cancel()

    def _record(
        self,
        call: _Call,
        queued_s: float,
        start_s: float,
        error: ToolError | None,
        value: Json = None,
        attempts: int = 1,
    ) -> CallRecord:
        site = call.site
        return CallRecord(
            # A failed call is traced under a key of its own: nothing can replay it as a success.
            key=call.key if error is None else f"{call.key}/failed",
            kind=call.kind,
            name=call.name,
            op=site.op,
            query=site.query,
            row_key=site.row_key,
            value=value,
            effect=site.effect.value,
            path=site.path,
            turn=site.turn,
            queued_s=queued_s - self._origin_s,
            start_s=start_s - self._origin_s,
            end_s=self._clock.now_s() - self._origin_s,
            attempts=attempts if error is None else error.attempts,
            error=None if error is None else f"{type(error).__name__}: {error}",
        )

    def _release(self, slots: ToolSlots, durable: asyncio.Future[None]) -> None:
        error = None if durable.cancelled() else durable.exception()
        if error is not None:
            # To go on would make calls that a resume repeats, writes among them.
            self._refuse(f"calls can no longer be recorded, so none is started: {error}")
        slots.release()

    def _refuse(self, reason: str) -> None:
        self._refused = self._refused or reason
        self._databases.refuse(self._draining)
        for lane in self._lanes.values():
            lane.refuse(self._draining)
        for pause in self._pauses:
            pause.cancel()

    def _draining(self) -> Exception:
        return DrainingError(self._refused)

    def _check_running(self, cause: Exception | None = None) -> None:
        if self._refused:
            raise DrainingError(self._refused) from cause

    def _places(self, name: str, limit: int) -> ToolSlots:
        slots = self._slots.get(name)
        if slots is None:
            slots = self._slots[name] = ToolSlots(limit)
        return slots

    def _lane_of(self, spec: ToolSpec) -> ThreadLane:
        """The threads of a tool."""
        lane = self._lanes.get(spec.name)
        if lane is None:
            lane = ThreadLane(spec.max_concurrency, f"halo-tool-{spec.name}")
            self._lanes[spec.name] = lane
        return lane

    def _key(self, kind: str, name: str, digest: str, arguments: Json, identity: str) -> str:
        text = canonical_json([self._tenant, kind, name, digest, arguments, identity])
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
