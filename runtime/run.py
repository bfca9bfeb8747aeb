"""One run: opens the store, wires dispatcher, tools and executor, writes the results."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from costmodel.usage import OpMetrics
from planner.logical import (
    Agent,
    Filter,
    Json,
    LogicalPlan,
    Relation,
    Result,
    Scan,
    Sql,
    canonical_json,
)
from planner.physical import PhysicalPlan
from planner.refine import refined
from planner.stats import PlanStats
from runtime.answer_cache import AnswerCache, CachedStore
from runtime.backends.base import Backend, ToolSchema
from runtime.budget import Budget, BudgetMeter
from runtime.clock import LoopClock, process_cpu_s, utc_now, wall_s
from runtime.dispatch import Dispatcher
from runtime.executor import Executor, Progress
from runtime.journal import Journal
from runtime.journal_reader import read_outcomes
from runtime.kept_plan import KeptPlan, refuse_another_plan, write_plan
from runtime.memory_store import MemoryStore
from runtime.phases import Phases
from runtime.placement import Replan
from runtime.records import Outcome, Recovered, Store
from runtime.results import write_results
from runtime.run_directory import RunDirectory, describe_operators
from runtime.sharing import CallTable
from runtime.sql_session import SessionQueries, SqlSession
from runtime.sql_tool import Databases
from runtime.tool_runner import ToolRunner
from runtime.tools import ToolSpec
from runtime.warmup import end_warming, shared_prefixes

NO_BUDGET = Budget()


@dataclass(frozen=True, slots=True)
class CacheSetting:
    """The answer cache of a run: where it is, for whose answers, and how large it may become."""

    directory: Path
    scope: str
    max_bytes: int

    def open(self, now: str) -> AnswerCache:
        return AnswerCache(self.directory, scope=self.scope, max_bytes=self.max_bytes, now=now)


@dataclass(frozen=True)
class RunInputs:
    """What a run needs besides its engines.

    Attributes:
        out: the run directory; None keeps the run in memory.
        resume: continue what `out` holds, if it holds anything.
        sql: the DuckDB session of a SQL batch.
        manifest: JSON that says how to rebuild the batch on resume; what status and report need is
            added to it.
        replan: plans the rest of the run again; see `runtime.placement`.
    """

    plan: PhysicalPlan
    stats: PlanStats
    rows: Mapping[str, Sequence[Mapping[str, Json]]]
    tools: Mapping[str, ToolSpec]
    database: Path | None = None
    seed: int = 0
    tenant: str = ""
    prime: bool = True
    gather: bool = True
    share: bool = True
    warm: bool = True
    overlap: bool = True
    budget: Budget = NO_BUDGET
    cache: CacheSetting | None = None
    out: Path | None = None
    resume: bool = False
    sql: SqlSession | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict[str, Any])
    merged: LogicalPlan | None = None
    replan: Replan | None = None


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    Attributes:
        outcomes: by query, in row order; those that earlier processes recorded included.
        metrics: what this process did, by operator fingerprint.
        elapsed_s: real seconds of this process; `run_clock_s` are seconds on the run's clock, which
            is simulated where the engine is.
        stopped: empty unless rows were left for a resume, and then why.
        budget_reached: whether that was the budget.
        warmed_tokens: prompt tokens computed for shared instructions, outside any call.
        engine_requests: by worker, how often its engine says it was asked.
        cached_answers: calls that the answer cache answered.
        recovered: failures that became values (`planner.logical.Recover`).
    """

    outcomes: Mapping[str, Sequence[Outcome]]
    metrics: Mapping[str, OpMetrics]
    rows_total: int
    elapsed_s: float
    run_clock_s: float
    cpu_s: float
    stopped: str
    budget_reached: bool
    engine_requests: Mapping[str, int]
    recovered: Sequence[Recovered] = ()
    warmed_tokens: int = 0
    cached_answers: int = 0


class RunHandle:
    """A run under way: `stop` and `progress` from outside, `run` in the loop."""

    def __init__(self, inputs: RunInputs) -> None:
        self._inputs = inputs
        self._executor: Executor | None = None
        self._metrics: dict[str, OpMetrics] = {}
        self._stopped = ""
        self.budget_reached = False

    @cached_property
    def clock(self) -> LoopClock:
        """Of the loop that is running when it is first asked for: that of the run."""
        return LoopClock(asyncio.get_running_loop())

    @property
    def progress(self) -> Progress | None:
        """Where the run stands; None until it has started."""
        if self._executor is None:
            return None
        progress = self._executor.progress
        done = progress.rows_done / progress.rows_total if progress.rows_total else 0.0
        forecast = refined(
            self._inputs.stats, dict(list(self._metrics.items())), done, progress.share_started
        )
        return replace(progress, calls_expected=forecast.total.calls)

    def use(self, plan: PhysicalPlan) -> None:
        """Run another plan of the same operators: a worker was lost before the start."""
        self._inputs = replace(self._inputs, plan=plan)

    def stop(self, reason: str = "interrupted") -> None:
        """Drain: nothing new starts, calls in flight finish. Call it in the loop's thread."""
        self._stopped = reason
        if self._executor is not None:
            self._executor.stop()

    def _reach_budget(self, reason: str) -> None:
        self.budget_reached = True
        self.stop(reason)

    async def run(self, engines: Mapping[str, Backend]) -> Finished:
        """Run to the end, or until `stop`. `engines` by worker name, opened; they are left open.

        Errors of rows are outcomes. What is raised ended the run, and what was recorded before it
        stays in the run directory: `RunDirectoryError`, `RunLockedError`, and errors of Halo's own.
        """
        inputs = self._inputs
        if inputs.out is None:
            return await self._execute(MemoryStore(), engines)
        directory = _directory(inputs, inputs.out)
        queries = [name for name, _ in inputs.plan.logical.outputs]
        with directory.lock(
            "halo resume" if inputs.resume else "halo run", started_at=(started_at := utc_now())
        ):
            _keep_plan(directory, inputs)
            finished = await self._journalled(directory, started_at, engines)
            if not finished.stopped:
                await asyncio.to_thread(write_results, directory, queries)
        if not inputs.resume:
            return finished  # whose outcomes are all that there are
        recorded = {name: list(read_outcomes(directory.journal, name)) for name in queries}
        return replace(finished, outcomes=recorded)

    async def _journalled(
        self, directory: RunDirectory, started_at: str, engines: Mapping[str, Backend]
    ) -> Finished:
        journal = Journal(directory.journal, started_at=started_at, clock=self.clock)
        ending = "failed"
        try:
            finished = await self._execute(journal, engines)
            ending = finished.stopped or "finished"
        except asyncio.CancelledError:
            ending = self._stopped or "interrupted"
            raise
        finally:
            journal.close(ending, ended_at=utc_now(), cpu_s=process_cpu_s())
        return finished

    def _warm(
        self, dispatcher: Dispatcher, engines: Mapping[str, Backend]
    ) -> list[asyncio.Task[int]]:
        """Start computing what it pays to compute before the rows; they do not wait for it."""
        if not self._inputs.warm:
            return []
        worth = {
            name: engine.capabilities.prime_tokens * engine.capabilities.bytes_per_token
            for name, engine in engines.items()
            if engine.capabilities.warms
        }
        prefixes = shared_prefixes(self._inputs.plan, self._inputs.stats, worth)
        return [asyncio.create_task(dispatcher.warm(*prefix)) for prefix in prefixes]

    async def _execute(self, store: Store, engines: Mapping[str, Backend]) -> Finished:
        inputs, plan = self._inputs, self._inputs.plan
        started_s, clock_started_s, cpu_started_s = wall_s(), self.clock.now_s(), process_cpu_s()
        seen_before = {worker: engine.requests_seen for worker, engine in engines.items()}
        metrics = self._metrics
        cache = inputs.cache.open(utc_now()) if inputs.cache is not None else None
        if cache is not None:
            store = CachedStore(store, cache)
        model_calls = tool_calls = CallTable(store, metrics)
        if not inputs.overlap:
            phases = Phases()
            model_calls = CallTable(store, metrics, partial(phases.turn, "models"))
            tool_calls = CallTable(store, metrics, partial(phases.turn, "tools"))
        databases = Databases(inputs.database, writable=_written_databases(plan))
        tools = ToolRunner(
            inputs.tools, databases, tool_calls, store, self.clock, tenant=inputs.tenant
        )
        dispatcher = Dispatcher(
            engines,
            model_calls,
            store,
            self.clock,
            tenant=inputs.tenant,
            seed=inputs.seed,
            prime=inputs.prime,
            gather={w.name: w.model for w in plan.workers} if inputs.gather else None,
            share=inputs.share,
            meter=BudgetMeter(inputs.budget, clock_started_s) if inputs.budget.is_limited else None,
            on_budget=self._reach_budget,
        )
        self._executor = executor = Executor(
            plan,
            dispatcher=dispatcher,
            tools=tools,
            tool_schemas=_agent_tools(inputs),
            store=store,
            clock=self.clock,
            metrics=metrics,
            replan=inputs.replan,
            load=dispatcher.load,
            opener=dispatcher if inputs.overlap and dispatcher.opens_prompts else None,
            shares=tools.shares if inputs.share else None,
            row_queries=(
                SessionQueries(inputs.sql, store, self.clock, metrics) if inputs.sql else None
            ),
        )
        if self._stopped:
            executor.stop()
        warming = self._warm(dispatcher, engines)
        try:
            outcomes = await executor.run(inputs.rows)
        finally:
            warmed = await end_warming(warming)
            await dispatcher.close()
            await tools.close()
            await databases.close()
            if cache is not None:
                cache.close()
        progress = executor.progress
        complete = executor.complete
        return Finished(
            outcomes=outcomes,
            metrics=metrics,
            rows_total=progress.rows_total,
            elapsed_s=wall_s() - started_s,
            run_clock_s=self.clock.now_s() - clock_started_s,
            cpu_s=process_cpu_s() - cpu_started_s,
            stopped="" if complete else self._stopped or "stopped early",
            budget_reached=self.budget_reached and not complete,
            warmed_tokens=warmed,
            engine_requests={
                worker: engine.requests_seen - seen_before[worker]
                for worker, engine in engines.items()
            },
            recovered=tuple(executor.recovered),
            cached_answers=store.hits if isinstance(store, CachedStore) else 0,
        )


def _directory(inputs: RunInputs, path: Path) -> RunDirectory:
    """The run directory: the one to continue, or a new one."""
    if inputs.resume and (path / "manifest.json").exists():
        return RunDirectory.open(path)
    logical = inputs.plan.logical
    return RunDirectory.create(
        path,
        {
            **inputs.manifest,
            "queries": [name for name, _ in logical.outputs],
            "rows": {
                name: len(inputs.rows[scan.source])
                for name, result in logical.outputs
                if (scan := whole_scan(result)) is not None
            },
            "operators": describe_operators(logical),
        },
    )


def whole_scan(result: Result) -> Scan | None:
    """The scan whose every row has an outcome in a query; None when that is not known before, since
    the query makes its own rows or stops at a limit."""
    rows: Relation = result.rows
    while isinstance(rows, Filter):
        rows = rows.rows
    return rows if isinstance(rows, Scan) else None


def _keep_plan(directory: RunDirectory, inputs: RunInputs) -> None:
    """Write the plan of a new run; of a resumed one, refuse another plan than it began with."""
    if directory.plan.exists():
        refuse_another_plan(directory, inputs.plan.logical)
    else:
        write_plan(directory, KeptPlan(inputs.plan, inputs.stats, inputs.merged))


def _written_databases(plan: PhysicalPlan) -> frozenset[str]:
    return frozenset(
        op.database for op in plan.logical.walk_all() if isinstance(op, Sql) and not op.read_only
    )


def _agent_tools(inputs: RunInputs) -> dict[str, ToolSchema]:
    """The tools of the plan's agents, as models see them."""
    named = {
        tool.name
        for op in inputs.plan.logical.walk_all()
        if isinstance(op, Agent)
        for tool in op.tools
    }
    return {
        name: ToolSchema(name, spec.description, canonical_json(spec.parameters))
        for name, spec in inputs.tools.items()
        if name in named
    }
