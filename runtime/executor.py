"""The executor: rows flow through the operators of a plan as what they need becomes ready.

Queries over the same scan share its rows: one row evaluates what the queries that still need it use
between them, each operator once, and ends in one outcome for each query. At most
`PhysicalPlan.rows_in_flight` rows are under way; a row that ends gives its values back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from costmodel.usage import OpMetrics
from planner.errors import InvariantError
from planner.logical import Effect, Json, ModelOp, Op, Result, Sql, Tool, walk
from planner.physical import PhysicalPlan
from runtime.agent_loop import ToolCaller
from runtime.answers import ModelCaller
from runtime.backends.base import ToolSchema
from runtime.clock import Clock
from runtime.evaluator import Evaluator
from runtime.operators import Compiler
from runtime.records import Outcome, Store, row_keys
from runtime.scope import Frame, Row, Scope

ROWS_PER_PASS = 64
"""Rows admitted before the loop may do other things, such as `stop`: rows without calls end at
once and would otherwise be admitted all in one go."""


@dataclass(frozen=True, slots=True)
class QueryProgress:
    """Where one query stands. Done rows include failed ones, and those that an earlier process
    recorded (whose errors are not counted again)."""

    rows_total: int = 0
    rows_done: int = 0
    rows_failed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. A row counts once for each query over it, except in `rows_active`.

    Attributes:
        rows_active: rows under way, each once.
        calls_in_flight: calls that engines work on.
        requested, made, shared, replayed: of calls, as in `OpMetrics`.
        queries: the rows of each query.
    """

    rows_total: int
    rows_done: int
    rows_failed: int
    rows_active: int
    calls_in_flight: int
    requested: int
    made: int
    shared: int
    replayed: int
    queries: Mapping[str, QueryProgress] = field(default_factory=dict[str, QueryProgress])


@dataclass(slots=True)
class _Query:
    """A query while it runs."""

    name: str
    result: Result
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    total: int = 0
    recorded: int = 0
    failed: int = 0

    @property
    def progress(self) -> QueryProgress:
        return QueryProgress(self.total, self.recorded + len(self.outcomes), self.failed)


@dataclass(frozen=True, slots=True)
class _Admission:
    """A row to run, for the queries that have no outcome of it yet."""

    row: Mapping[str, Json]
    index: int
    key: str
    queries: tuple[str, ...]


class Executor:
    """Runs a physical plan, once. Make it and use it in one event loop.

    Calls have the priority `position * stride + PhysicalPlan.priority[op]`: rows admitted earlier
    go first, so that rows end early and few are half done; within a row the plan decides.

    Writing operators run for one row after the other, in input order: a scan that feeds one is
    admitted in input order, whatever `row_order` says.

    Args:
        dispatcher: makes model calls.
        tools: calls tools and databases.
        tool_schemas: by name, the tools of the plan's agents as models see them.
        metrics: by operator fingerprint; shared with the call table, which counts calls there.
    """

    def __init__(
        self,
        plan: PhysicalPlan,
        *,
        dispatcher: ModelCaller,
        tools: ToolCaller,
        tool_schemas: Mapping[str, ToolSchema],
        store: Store,
        clock: Clock,
        metrics: dict[str, OpMetrics],
    ) -> None:
        self._plan = plan
        self._dispatcher = dispatcher
        self._tools = tools
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._evaluator = Evaluator(on_draining=self.stop, on_crash=self._wake_up)
        self._compiler = Compiler(
            plan,
            models=dispatcher,
            tools=tools,
            tool_schemas=tool_schemas,
            metrics=metrics,
            evaluator=self._evaluator,
            is_stopping=lambda: self._evaluator.stopping,
        )
        self._queries = {name: _Query(name, r) for name, r in plan.logical.outputs}
        self._scopes: dict[tuple[str, ...], Scope] = {}
        self._calls = {
            op.fingerprint for op in plan.logical.walk_all() if isinstance(op, ModelOp | Tool | Sql)
        }
        self._stride = max(plan.priority.values(), default=0) + 1
        self._active = 0
        self._started = False
        self._started_s = 0.0
        self._wake: asyncio.Future[None] | None = None

    @property
    def progress(self) -> Progress:
        """A snapshot, safe to take from another thread."""
        queries = {name: query.progress for name, query in self._queries.items()}
        # A list made in one step: the loop's thread may add operators meanwhile.
        calls = [m for op, m in list(self._metrics.items()) if op in self._calls]
        return Progress(
            rows_total=sum(q.rows_total for q in queries.values()),
            rows_done=sum(q.rows_done for q in queries.values()),
            rows_failed=sum(q.rows_failed for q in queries.values()),
            rows_active=self._active,
            calls_in_flight=self._dispatcher.in_flight,
            requested=sum(m.requested for m in calls),
            made=sum(m.made for m in calls),
            shared=sum(m.shared for m in calls),
            replayed=sum(m.replayed for m in calls),
            queries=queries,
        )

    @property
    def calls_requested(self) -> int:
        """Uses of calls so far: what the process's CPU time is to be divided by."""
        return self.progress.requested

    def stop(self) -> None:
        """Drain: no new rows or calls start, calls in flight finish and are recorded. Rows that
        cannot end have no outcome, and `run` returns. Call it in the loop's thread."""
        if not self._evaluator.stopping:
            self._evaluator.stopping = True
            self._dispatcher.stop()
            self._tools.stop()
            self._wake_up()

    async def run(
        self, rows: Mapping[str, Sequence[Mapping[str, Json]]]
    ) -> dict[str, list[Outcome]]:
        """Run the rows of each scan source; outcomes by query, in input row order.

        Rows whose outcome the store has are not run again and are absent. Errors of rows are
        outcomes; what is raised has ended the run: a store that cannot record, a broken plan.
        """
        if self._started:
            raise InvariantError("an executor runs once; make another for another run")
        self._started = True
        self._started_s = self._clock.now_s()
        # The store looks at them again whenever it commits.
        self._store.record_metrics(self._metrics)
        try:
            await self._admit_all(list(self._admissions(rows)))
            while self._active:
                await self._woken()
        finally:
            await self._evaluator.cancel()
            self._store.record_metrics(self._metrics)
        await self._store.durable()
        return {
            name: sorted(query.outcomes, key=lambda outcome: outcome.row_index)
            for name, query in self._queries.items()
        }

    # --- rows ------------------------------------------------------------------------------------

    def _admissions(self, rows: Mapping[str, Sequence[Mapping[str, Json]]]) -> Iterator[_Admission]:
        """The rows to run, in the order in which they start."""
        recorded = set(self._store.recorded_outcomes())
        sources: dict[str, list[_Query]] = {}
        for query in self._queries.values():
            sources.setdefault(query.result.scan.source, []).append(query)
        for source, queries in sources.items():
            if source not in rows:
                have = ", ".join(map(repr, rows)) or "none"
                raise InvariantError(f"no rows for the scan of {source!r}; the run has: {have}")
            its_rows = rows[source]
            keys = row_keys(its_rows)
            for query in queries:
                query.total = len(keys)
            everyone = tuple(query.name for query in queries)
            for index in self._order(source, queries, len(keys)):
                key = keys[index]
                names = everyone
                if recorded:
                    names = tuple(name for name in everyone if (name, key) not in recorded)
                    for name in set(everyone).difference(names):
                        self._queries[name].recorded += 1
                if names:
                    yield _Admission(its_rows[index], index, key, names)

    def _order(self, source: str, queries: Sequence[_Query], n_rows: int) -> Sequence[int]:
        ops = walk(tuple(query.result for query in queries))
        if source not in self._plan.row_order or any(op.effect is Effect.WRITE for op in ops):
            return range(n_rows)
        order = self._plan.row_order[source]
        if sorted(order) != list(range(n_rows)):
            raise InvariantError(
                f"the plan orders {len(order)} rows of {source!r}, the run has {n_rows}; plan "
                "again with the rows of the run"
            )
        return order

    async def _admit_all(self, admissions: Sequence[_Admission]) -> None:
        for position, admission in enumerate(admissions):
            while self._active >= max(1, self._plan.rows_in_flight):
                await self._woken()
            if position % ROWS_PER_PASS == ROWS_PER_PASS - 1:
                await self._clock.sleep_s(0)
            self._check_crash()
            if self._evaluator.stopping:
                return
            row = Row(admission.index, admission.key, position * self._stride)
            self._active += 1
            scope = self._scope(admission.queries)
            on_end = partial(self._ended, admission)
            self._evaluator.start_row(Frame(scope, admission.row, row, on_end))

    def _scope(self, queries: tuple[str, ...]) -> Scope:
        """What `queries` use of a row between them."""
        scope = self._scopes.get(queries)
        if scope is None:
            roots = [self._queries[name].result for name in queries]
            users = self._plan.logical.users
            named: dict[Op, str] = {}
            for op in walk(tuple(roots)):
                # The name is part of what a sampled or writing call is: always the same one.
                # A pure call is recorded under a query that asks for it in this process.
                names = users[op]
                named[op] = (
                    next(name for name in names if name in queries)
                    if op.effect is Effect.PURE
                    else names[0]
                )
            scope = self._scopes[queries] = self._compiler.row_scope(roots, named)
        return scope

    def _ended(self, admission: _Admission, frame: Frame) -> None:
        """Record the outcomes of a row, except for queries that were stopped in it."""
        for name, position in zip(admission.queries, frame.scope.results, strict=True):
            failure = frame.failures.get(position) if frame.failures is not None else None
            if failure is None:
                value, error = frame.values[position], None
            elif failure.error is not None:
                value, error = None, failure.error
            else:
                continue
            ended_s = self._clock.now_s() - self._started_s
            outcome = Outcome(name, admission.index, admission.key, value, error, ended_s)
            self._store.record_outcome(outcome)
            query = self._queries[name]
            query.outcomes.append(outcome)
            query.failed += outcome.error is not None
        self._active -= 1
        self._wake_up()

    # --- waiting ---------------------------------------------------------------------------------

    async def _woken(self) -> None:
        """Until a row has ended, or the run stops or crashes."""
        self._check_crash()
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None
        self._check_crash()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _check_crash(self) -> None:
        if self._evaluator.crash is not None:
            raise self._evaluator.crash
