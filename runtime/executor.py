"""The executor: rows flow through the operators of a plan as what they need becomes ready.

Queries over the same rows share them: one row evaluates what the queries that still need it use
between them, each operator once, and ends in one outcome for each query. At most
`PhysicalPlan.rows_in_flight` rows are under way; a row that ends gives its values back.

Each relation that makes rows is a stage. Rows pass from stage to stage one by one, in row order,
except where a relation needs all rows before it (groups, sorts, tables of queries). Rows of later
stages start first, so that few are half done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from costmodel.errors import HaloError
from costmodel.usage import OpMetrics
from planner.errors import InvariantError
from planner.logical import CALLS, Const, Effect, Json, Op, Scan, SqlRows, walk
from planner.physical import PhysicalPlan
from runtime.agenda import Agenda
from runtime.agent_loop import ToolCaller
from runtime.backends.base import ToolSchema
from runtime.clock import Clock
from runtime.derive import Given, Table
from runtime.dispatch import Dispatcher
from runtime.equal_rows import EqualRows, Equals, Shares, equal_rows
from runtime.errors import DrainingError
from runtime.evaluator import Evaluator
from runtime.operators import Compiler
from runtime.placement import FIRST_LOOK_ROWS, Load, Observed, Placement, Replan
from runtime.records import CallSite, Outcome, Recovered, RowError, Store, row_keys
from runtime.scope import Frame, Row, Scope
from runtime.stages import (
    Stage,
    StageRow,
    Target,
    given_to,
    needs_row_order,
    set_limits,
    stages_of,
)
from runtime.streaming import PromptOpener

ROWS_PER_PASS = 64
"""Rows admitted before the loop may do other things, such as `stop`: rows without calls end at
once and would otherwise be admitted all in one go."""


class RowQueries(Protocol):
    """Runs the queries that make rows."""

    async def rows(
        self,
        op: SqlRows,
        tables: Mapping[str, Table],
        params: Mapping[str, Json],
        site: CallSite,
    ) -> Sequence[Mapping[str, Json]]:
        """The rows of `op` by column name, in order. A query that writes has run once when this
        returns, also if the run was killed and resumed. Raises `HaloError` when it fails, and
        `DrainingError` when the run is stopping and it has not started."""
        ...


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
        share_started: of the rows that there are so far, those that have started, ended or not.
        requested, made, shared, replayed: of calls, as in `OpMetrics`.
        queries: the rows of each query.
        calls_expected: what the whole run is expected to make, as its first rows suggest; None
            where nobody estimates.
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
    calls_expected: float | None = None
    share_started: float = 0.0


@dataclass(slots=True)
class _Query:
    """A query while it runs."""

    name: str
    stage: Stage
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    recorded: int = 0
    dropped: int = 0
    failed: int = 0

    @property
    def progress(self) -> QueryProgress:
        done = self.recorded + len(self.outcomes) + self.dropped + self.stage.skipped
        return QueryProgress(self.stage.total, done, self.failed)


class Executor:
    """Runs a physical plan, once. Make it and use it in one event loop.

    Calls have the priority `position * stride + PhysicalPlan.priority[op]`: rows admitted earlier
    go first, so that rows end early and few are half done; within a row, or within a block of
    `row_block` rows, the plan decides.

    Writing operators run for one row after the other, in input order, and limits count in it: a
    scan that feeds one is admitted in input order, whatever `row_order` says.

    Args:
        dispatcher: makes model calls.
        tools: calls tools and databases.
        tool_schemas: by name, the tools of the plan's agents as models see them.
        metrics: by operator fingerprint; shared with the call table, which counts calls there.
        row_queries: runs the queries of the plan's `SqlRows`; None for a plan without any.
        replan: asked now and then, with what was measured, for a plan of the rest.
        load: how busy a worker is, for calls that may go to one of several.
        opener: opens prompts that grow with the rows of a tool; None where no engine takes them.
        shares: whether equal calls of an operator are made once: then of rows that are equal in all
            that is read of them one is run. None: each row is run.

    Attributes:
        recovered: failures that `Recover` operators turned into values, as they happened.
    """

    def __init__(
        self,
        plan: PhysicalPlan,
        *,
        dispatcher: Dispatcher,
        tools: ToolCaller,
        tool_schemas: Mapping[str, ToolSchema],
        store: Store,
        clock: Clock,
        metrics: dict[str, OpMetrics],
        row_queries: RowQueries | None = None,
        replan: Replan | None = None,
        load: Callable[[str], Load] | None = None,
        opener: PromptOpener | None = None,
        shares: Shares | None = None,
    ) -> None:
        self._plan = plan
        self._placement = Placement(plan, load)
        self._replan = replan
        self._rows_ended = 0
        self._look_at = FIRST_LOOK_ROWS
        self._began_s = 0.0
        self._dispatcher = dispatcher
        self._tools = tools
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self.recovered: list[Recovered] = []
        self._evaluator = Evaluator(
            on_draining=self.stop, on_crash=self._wake_up, on_recovered=self.recovered.append
        )
        self._row_queries = row_queries
        self._compiler = Compiler(
            self._placement,
            models=dispatcher,
            tools=tools,
            tool_schemas=tool_schemas,
            metrics=metrics,
            evaluator=self._evaluator,
            is_stopping=lambda: self._evaluator.stopping,
            opener=opener,
        )
        self._stages = stages_of(plan.logical)
        self._queries = {
            name: _Query(name, self._stages[result.rows.base])
            for name, result in plan.logical.outputs
        }
        set_limits(self._stages.values(), self._compiler.limit)
        for relation, stage in self._stages.items():
            if paths := plan.stage_order.get(relation.fingerprint):
                stage.start_in_groups(paths)
        self._agenda = Agenda(self._stages.values(), self._start_query)
        self._scopes: dict[tuple[Target, ...], Scope] = {}
        self._shares = shares
        self._equals: dict[Scope, EqualRows | None] = {}
        self._rows: Mapping[str, Sequence[Mapping[str, Json]]] = {}
        self._calls = {op.fingerprint for op in plan.logical.walk_all() if isinstance(op, CALLS)}
        self._recorded: set[tuple[str, str]] = set()
        self._querying: dict[Stage, asyncio.Task[None]] = {}
        self._left: deque[tuple[Stage, StageRow, tuple[Target, ...]]] = deque()
        self._admitted = 0
        self._active = 0
        self._started = False
        self._wake: asyncio.Future[None] | None = None

    @property
    def progress(self) -> Progress:
        """A snapshot, safe to take from another thread."""
        queries = {name: query.progress for name, query in self._queries.items()}
        # A list made in one step: the loop's thread may add operators meanwhile.
        calls = [m for op, m in list(self._metrics.items()) if op in self._calls]
        rows = sum(stage.total for stage in self._stages.values())
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
            share_started=min(1.0, self._admitted / rows) if rows else 0.0,
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
        self._began_s = self._clock.now_s()
        # The store looks at them again whenever it commits.
        self._store.record_metrics(self._metrics)
        self._recorded = set(self._store.recorded_outcomes())
        self._rows = rows
        self._fill_scans(rows)
        try:
            await self._run_stages()
        finally:
            await self._end_queries()
            await self._evaluator.cancel()
            self._store.record_metrics(self._metrics)
        await self._store.durable()
        return {
            name: sorted(query.outcomes, key=lambda outcome: outcome.row_index)
            for name, query in self._queries.items()
        }

    @property
    def complete(self) -> bool:
        """Whether every row of every query has ended."""
        return all(stage.finished for stage in self._stages.values())

    # --- stages ----------------------------------------------------------------------------------

    def _fill_scans(self, rows: Mapping[str, Sequence[Mapping[str, Json]]]) -> None:
        for relation, stage in self._stages.items():
            if not isinstance(relation, Scan):
                continue
            if relation.source not in rows:
                have = ", ".join(map(repr, rows)) or "none"
                raise InvariantError(
                    f"no rows for the scan of {relation.source!r}; the run has: {have}"
                )
            its_rows = rows[relation.source]
            keys = row_keys(its_rows)
            stage.fill(
                StageRow(index, keys[index], its_rows[index])
                for index in self._order(relation.source, stage, len(keys))
            )

    def _order(self, source: str, stage: Stage, n_rows: int) -> Sequence[int]:
        if source not in self._plan.row_order or needs_row_order(stage.targets):
            return range(n_rows)
        order = self._plan.row_order[source]
        if sorted(order) != list(range(n_rows)):
            raise InvariantError(
                f"the plan orders {len(order)} rows of {source!r}, the run has {n_rows}; plan "
                "again with the rows of the run"
            )
        return order

    async def _run_stages(self) -> None:
        """Admit rows until all stages have finished, or the run stops."""
        while True:
            self._check_crash()
            started = False
            if not self._evaluator.stopping:
                self._agenda.settle()
                started = self._has_room and self._start_next()
            if started:
                self._admitted += 1
                if self._admitted % ROWS_PER_PASS == 0:
                    await self._clock.sleep_s(0)
            elif self._active or self._querying:
                await self._woken()
            else:
                return

    def _start_next(self) -> bool:
        """Start a row, if there is one."""
        if self._left:
            stage, row, targets = self._left.popleft()
            self._active += 1
            on_end = partial(self._ended, stage, row, targets)
            self._start(stage, row, self._scope(stage, targets), on_end)
            return True
        waiting = self._agenda.next()
        if waiting is None:
            return False
        self._admit(waiting, waiting.pending.popleft())
        return True

    @property
    def _has_room(self) -> bool:
        return self._active < max(1, self._plan.rows_in_flight)

    # --- rows ------------------------------------------------------------------------------------

    def _admit(self, stage: Stage, row: StageRow) -> None:
        targets = tuple(target for target in stage.targets if self._needs(target, row))
        if not targets:
            self._agenda.changed(stage)
            return
        stage.active += 1
        self._active += 1
        if isinstance(row.row, RowError):
            self._failed_row(stage, row, targets, row.row)
            return
        scope = self._scope(stage, targets)
        equal = self._equal_rows(stage, scope)
        equals = equal.of(row) if equal is not None else None
        if equal is None or equals is None:
            self._start(stage, row, scope, partial(self._ended, stage, row, targets))
        elif equals.values is not None:
            self._end_with(stage, row, targets, equal.values(equals, self._metrics))
        elif equals.waiting is not None:
            equals.waiting.append(row)
            self._active -= 1  # it takes no memory and asks for nothing
        else:
            equals.waiting = []
            on_end = partial(self._first_ended, stage, row, targets, equal, equals)
            self._start(stage, row, scope, on_end)

    def _start(
        self,
        stage: Stage,
        row: StageRow,
        scope: Scope,
        on_end: Callable[[Frame], None],
    ) -> None:
        position = self._admitted
        started = Row(row.index, row.key, self._placement.row_priority(position), position)
        self._evaluator.start_row(Frame(scope, row.row, started, on_end))

    def _equal_rows(self, stage: Stage, scope: Scope) -> EqualRows | None:
        """The rows of `stage` that end with another one."""
        if self._shares is None or not isinstance(stage.relation, Scan):
            return None
        if scope not in self._equals:
            rows = self._rows[stage.relation.source]
            self._equals[scope] = equal_rows(scope, stage.relation, rows, self._shares)
        return self._equals[scope]

    def _first_ended(
        self,
        stage: Stage,
        row: StageRow,
        targets: tuple[Target, ...],
        equal: EqualRows,
        equals: Equals,
        frame: Frame,
    ) -> None:
        """Of equal rows the one that was run has ended: so have the others, or they are run."""
        waiting, together = equal.ended(equals, frame)
        for other in waiting:
            if together:
                self._active += 1
                self._end_with(stage, other, targets, equal.values(equals, self._metrics))
            else:
                self._left.append((stage, other, targets))
        self._ended(stage, row, targets, frame)

    def _end_with(
        self, stage: Stage, row: StageRow, targets: tuple[Target, ...], values: Sequence[Json]
    ) -> None:
        """End a row that was not run with the values of one that is equal."""
        for target, value in zip(targets, values, strict=True):
            self._deliver(target, row, value)
        self._row_ended(stage)

    def _needs(self, target: Target, row: StageRow) -> bool:
        """Whether a row is to run for a target: not when an earlier process recorded its outcome,
        unless a limit must count it."""
        if target.query and not target.limits and (target.query, row.key) in self._recorded:
            self._queries[target.query].recorded += 1
            return False
        return True

    def _scope(self, stage: Stage, targets: tuple[Target, ...]) -> Scope:
        """What `targets` read of a row between them."""
        scope = self._scopes.get(targets)
        if scope is None:
            users = self._plan.logical.users
            sinks = [target.sink for target in targets]
            wanted = {target.query for target in targets if target.query}
            named: dict[Op, str] = {}
            for op in walk(tuple(sinks), stop_at=stage.relation):
                # The name is part of what a sampled or writing call is: always the same one.
                # A pure call is recorded under a query that asks for it in this process.
                names = users.get(op, ("",))
                named[op] = names[0]
                if op.effect is Effect.PURE:
                    named[op] = next((name for name in names if name in wanted), names[0])
            scope = self._scopes[targets] = self._compiler.row_scope(sinks, named, stage.relation)
        return scope

    def _ended(
        self, stage: Stage, row: StageRow, targets: tuple[Target, ...], frame: Frame
    ) -> None:
        """Pass on what a row has become, except to targets for which it was stopped."""
        for target, position in zip(targets, frame.scope.results, strict=True):
            failure = frame.failures.get(position) if frame.failures is not None else None
            if failure is not None:
                if failure.error is not None:
                    given = given_to(target, frame, position, failure.error)
                    self._deliver(target, row, None, failure.error, given)
            elif frame.is_dropped(position):
                self._drop(target, row)
            else:
                self._deliver(target, row, frame.values[position])
        self._row_ended(stage)

    def _failed_row(
        self, stage: Stage, row: StageRow, targets: Sequence[Target], error: RowError
    ) -> None:
        """A row that failed where it was made: it fails wherever it is read."""
        for target in targets:
            self._deliver(target, row, None, error, error)
        self._row_ended(stage)

    def _deliver(
        self,
        target: Target,
        row: StageRow,
        value: Any,
        error: RowError | None = None,
        given: Given | None = None,
    ) -> None:
        if target.stage is not None:
            target.put(row.index, value if error is None else given)
            return
        query = self._queries[target.query]
        if (target.query, row.key) in self._recorded:
            query.recorded += 1
            return
        ended_s = self._clock.now_s() - self._began_s
        outcome = Outcome(target.query, row.index, row.key, value, error, ended_s=ended_s)
        self._store.record_outcome(outcome)
        query.outcomes.append(outcome)
        query.failed += error is not None

    def _drop(self, target: Target, row: StageRow) -> None:
        if target.stage is not None:
            target.put(row.index, None)
            return
        if (target.query, row.key) in self._recorded:
            self._queries[target.query].recorded += 1
            return
        self._store.record_outcome(Outcome(target.query, row.index, row.key, dropped=True))
        self._queries[target.query].dropped += 1

    def _row_ended(self, stage: Stage) -> None:
        limits = [limit for target in stage.targets for limit in target.limits]
        for limit in limits:
            limit.see()
        stage.active -= 1
        self._active -= 1
        if limits or stage.limited or not (stage.pending or stage.active):
            self._agenda.changed(stage)
        self._rows_ended += 1
        if self._replan is not None and self._rows_ended >= self._look_at:
            self._plan_again(self._replan)
        self._wake_up()

    def _plan_again(self, replan: Replan) -> None:
        """Let the rest be planned again from what was measured. Calls under way are not touched."""
        self._look_at = 2 * self._rows_ended
        plan = replan(
            Observed(
                metrics=self._metrics,
                rows_started=self._admitted,
                rows_ended=self._rows_ended,
                rows_total=sum(stage.total for stage in self._stages.values()),
                elapsed_s=self._clock.now_s() - self._began_s,
            )
        )
        if plan is not None:
            self._placement.update(plan)

    # --- queries that make rows ------------------------------------------------------------------

    def _start_query(self, stage: Stage) -> None:
        task = asyncio.get_running_loop().create_task(self._query(stage))
        self._querying[stage] = task

    async def _query(self, stage: Stage) -> None:
        """Run the query of a stage, whose tables are whole."""
        op, reader = stage.relation, stage.tables
        assert isinstance(op, SqlRows) and reader is not None
        names = self._plan.logical.users[op]
        site = CallSite(op.fingerprint, names[0], 0, "", "", op.label, op.effect, op.call_id)
        try:
            try:
                if reader.error is not None:
                    stage.add([reader.error])
                elif self._row_queries is None:
                    raise InvariantError(f"the run cannot run {op!r}: it has no database")
                else:
                    params = {
                        name: each.value if isinstance(each, Const) else None
                        for name, each in zip(op.params, op.param_inputs, strict=True)
                    }
                    stage.add(await self._row_queries.rows(op, reader.tables, params, site))
            except DrainingError:
                self.stop()
                return
            except InvariantError:
                raise
            except HaloError as error:
                name = op.label or op.fingerprint
                stage.add([RowError(type(error).__name__, str(error), name)])
            stage.ended = True
            self._agenda.changed(stage)
        except Exception as error:
            self._evaluator.crashed(error)
        finally:
            self._querying.pop(stage, None)
            self._wake_up()

    async def _end_queries(self) -> None:
        tasks = list(self._querying.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

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
