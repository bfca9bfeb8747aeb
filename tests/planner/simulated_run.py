"""Runs plans on the simulated engine, with tools that write down what they are asked."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from costmodel.tokens import estimate_tokens
from costmodel.usage import OpMetrics
from planner.logical import Agent, Effect, Json, LogicalPlan, ModelOp, Sql, SqlRows, canonical_json
from planner.physical import Worker, place
from planner.sql_effects import query_effects
from planner.stats import estimate
from runtime.backends.base import Request, ToolSchema
from runtime.backends.simulated import SimulatedBackend, describe
from runtime.clock import LoopClock, new_event_loop
from runtime.derive import Table
from runtime.dispatch import Dispatcher
from runtime.errors import BackendError, ToolError
from runtime.executor import Executor
from runtime.memory_store import MemoryStore
from runtime.records import CallRecord, CallSite, Outcome
from runtime.sharing import CallTable

Rows = Mapping[str, Sequence[Mapping[str, Json]]]


@dataclass
class Tools:
    """Answers with a text that depends on what is asked, and, for calls that are not pure, on who
    asks. Counts calls: pure ones by what they ask, others by their identity."""

    table: CallTable
    made: Counter[str] = field(default_factory=Counter[str])
    writes: list[str] = field(default_factory=list[str])

    async def call(
        self, name: str, arguments: Mapping[str, Json], site: CallSite, listener: object = None
    ) -> CallRecord:
        return await self._ask(f"tool {name} {canonical_json(dict(arguments))}", arguments, site)

    async def query(
        self,
        op: Sql,
        text: str,
        params: Mapping[str, Json],
        site: CallSite,
        listener: object = None,
    ) -> CallRecord:
        words = query_effects(text).key or text
        asked = f"sql {op.database} {words} {op.max_rows} {canonical_json(dict(params))}"
        record = await self._ask(asked, params, site)
        return CallRecord("", "sql", "", site.op, site.query, site.row_key, [{"n": record.value}])

    async def rows(
        self, op: SqlRows, tables: Mapping[str, Table], params: Mapping[str, Json], site: CallSite
    ) -> Sequence[Mapping[str, Json]]:
        """Two rows for each row of the first table, or two; each column a text."""
        asked = f"rows {op.text} {tables!r} {params!r} {site.identity}"
        self.made[asked] += 1
        if op.effect is Effect.WRITE:
            self.writes.append(asked)
        first = next(iter(tables.values())).rows if tables else [()]
        word = digest(asked)
        return [
            {name: f"{word}{canonical_json(list(row))}{n}" for name in op.columns}
            for row in first
            for n in range(2)
        ]

    async def _ask(self, asked: str, arguments: Mapping[str, Json], site: CallSite) -> CallRecord:
        key = digest(f"{asked} {site.identity}")

        async def make() -> CallRecord:
            await asyncio.sleep(0.01 * (int(key[:2], 16) % 7))
            self.made[key] += 1
            if site.effect is Effect.WRITE:
                self.writes.append(f"{site.identity} {asked}")
            if "FAIL" in str(arguments):
                raise ToolError(f"cannot {asked}", tool="t")
            value = f"{key[:6]} of {asked[:12]}"
            return CallRecord(key, "tool", "t", site.op, site.query, site.row_key, value)

        return await self.table.once(key, site, make)

    def stop(self) -> None: ...


def digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Ran:
    """What a run did: outcomes by query, requests of the engine, calls of tools, writes in order,
    metrics, tokens asked."""

    outcomes: Mapping[str, Sequence[Outcome]]
    requests: int
    sampled_requests: int
    tool_calls: int
    writes: Sequence[str]
    metrics: Mapping[str, OpMetrics]
    executor: Executor

    @property
    def calls(self) -> int:
        return self.requests + self.tool_calls

    @property
    def answers(self) -> dict[str, list[Json]]:
        """Values by query in row order; an error as `{"error": type}`."""
        return {
            name: [o.value if o.error is None else {"error": o.error.type} for o in outcomes]
            for name, outcomes in self.outcomes.items()
        }


def run_plan(
    plan: LogicalPlan,
    rows: Rows,
    *,
    fail: Callable[[Request], BackendError | None] | None = None,
    slots: int = 8,
    window: int | None = None,
    row_order: Mapping[str, tuple[int, ...]] | None = None,
) -> Ran:
    """Run `plan` on virtual time."""

    async def main() -> Ran:
        clock = LoopClock()
        seen: list[Request] = []

        def look(request: Request) -> BackendError | None:
            seen.append(request)
            return fail(request) if fail is not None else None

        engine = SimulatedBackend("m", clock, capabilities=describe(slots), fail=look)
        metrics: dict[str, OpMetrics] = {}
        store = MemoryStore()
        table = CallTable(store, metrics)
        tools = Tools(table)
        models = {op.model for op in plan.walk_all() if isinstance(op, ModelOp)}
        workers = {m: Worker(f"sim:{m}", "simulated", m, slots, prefix_cache=True) for m in models}
        physical = place(plan, estimate(plan, rows, estimate_tokens), workers)
        if row_order is not None or window is not None:
            physical = replace(
                physical,
                row_order=physical.row_order if row_order is None else row_order,
                rows_in_flight=physical.rows_in_flight if window is None else window,
            )
        engines = {worker.name: engine for worker in workers.values()}
        schema = '{"type":"object","properties":{"q":{"type":"string"}},"required":["q"]}'
        executor = Executor(
            physical,
            dispatcher=Dispatcher(engines, table, store, clock, max_attempts=1),
            tools=tools,
            tool_schemas={
                tool.name: ToolSchema(tool.name, "a tool", schema)
                for op in plan.walk_all()
                if isinstance(op, Agent)
                for tool in op.tools
            },
            store=store,
            clock=clock,
            metrics=metrics,
            row_queries=tools,
        )
        outcomes = await executor.run(rows)
        assert executor.complete
        progress = executor.progress
        assert progress.rows_done == progress.rows_total
        sampled = sum(request.temperature > 0 for request in seen)
        return Ran(
            outcomes,
            len(seen),
            sampled,
            sum(tools.made.values()),
            tools.writes,
            metrics,
            executor,
        )

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        return runner.run(main())
