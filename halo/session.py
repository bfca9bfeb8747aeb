"""The session: the one place that wires front ends, planner, engines, tools and the journal.

The runtime is asynchronous and lives on an event loop in a thread of the session; `run` is the
synchronous door to it, and works the same from a script, a notebook or a tool. The loop keeps the
engines loaded between runs.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from halo.config import Config, load_config
from halo.errors import HaloError, WorkflowError
from halo.flow import Flow, Traced
from halo.gantt import explain_schedule, is_gantt
from halo.result import RunResult
from halo.rows import RowSet, read_rows, rows_from
from planner.context import PlanContext
from planner.explain import explain, explain_physical
from planner.learnt import NOTHING_LEARNT, Learnt
from planner.logical import Effect, Json, LogicalPlan, ModelOp, SqlRows
from planner.merge import merge
from planner.physical import PhysicalPlan, Worker, place
from planner.rewrite import Rewritten, rewrite
from planner.stats import PlanStats
from planner.verify import verify
from runtime.backends.base import Backend
from runtime.backends.create import EngineOptions, create_backend, default_model, describe_backend
from runtime.clock import new_event_loop, wall_s
from runtime.errors import BackendError
from runtime.executor import Progress
from runtime.run import CacheSetting, Finished, RunHandle, RunInputs
from runtime.sql_session import SqlSession
from runtime.tools import ToolSpec

if TYPE_CHECKING:
    from planner.schedule.adapt import Replanner
    from planner.schedule.assign import ScheduledPlan

Batch: TypeAlias = "Sequence[tuple[Flow, Any]]"
"""Several workflows with their rows: (workflow, rows) pairs, run as one merged batch."""

T = TypeVar("T")
Announce = Callable[[str], None]
OnProgress = Callable[[Progress], None]
CountRows = Callable[[SqlRows], int | None]

PLANNING_STEPS = 60
"""Steps of local search: with them, not the clock, as the limit, equal batches get equal plans."""

DRAIN_SECONDS = 5.0
"""How long an interrupted run waits for the calls in flight before it gives them up."""


@dataclass(frozen=True)
class Query:
    """One workflow over its rows, under the name that results and EXPLAIN use."""

    name: str
    traced: Traced
    rows: RowSet


@dataclass(frozen=True)
class Prepared:
    """A batch, planned: what explain shows and run executes. `rewritten` says how the merged plan
    became the logical plan of `plan`; `planning_s` is what that and the rest of planning took."""

    queries: tuple[Query, ...]
    bound: tuple[LogicalPlan, ...]
    rewritten: Rewritten
    plan: PhysicalPlan
    stats: PlanStats
    tools: Mapping[str, ToolSpec]
    scheduled: ScheduledPlan | None = None
    planning_s: float = 0.0

    def _repr_html_(self) -> str:
        """The plan in a notebook: drawn, with its listing."""
        from planner.explain_html import render_fragment
        from planner.explain_view import View

        view = View(self.plan.logical, self.stats, physical=self.plan, rewritten=self.rewritten)
        return render_fragment(view)

    @property
    def rows_by_source(self) -> dict[str, list[dict[str, Json]]]:
        return {query.rows.source: query.rows.rows for query in self.queries}


class Session:
    """Configuration, engines and caches that several runs share. A context manager."""

    def __init__(self, config: Config | None = None, **settings: Any) -> None:
        """`settings` are those of `halo.config.Config` and win over environment and files."""
        if config is None:
            config, _ = load_config(settings)
        elif settings:
            config = config.model_copy(update=settings)
        self.config = config
        self._default_model = ""
        self._choice_warning = ""
        self._lessons: Learnt | None = None
        self._engines: dict[str, Backend] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- planning --------------------------------------------------------------------------------

    def prepare(
        self,
        flow: Flow | Batch,
        rows: Any = None,
        *,
        count_rows: CountRows | None = None,
        learnt: Learnt = NOTHING_LEARNT,
    ) -> Prepared:
        """Trace, merge, verify, estimate and place a batch. Makes no call and loads no engine.

        `count_rows` tells how many rows a query of the plan makes, None when it cannot say;
        `learnt` is believed before what the configured runs have taught."""
        pairs = _pairs(flow, rows)
        queries: list[Query] = []
        names: set[str] = set()
        for each, its_rows in pairs:
            row_set = its_rows if isinstance(its_rows, RowSet) else _row_set(its_rows)
            name, n = each.name, 2
            while name in names:
                name, n = f"{each.name}-{n}", n + 1
            names.add(name)
            queries.append(Query(name, each.trace(row_set.source, row_set.columns), row_set))
        return self._plan(tuple(queries), learnt, count_rows)

    def _plan(
        self,
        queries: tuple[Query, ...],
        learnt: Learnt = NOTHING_LEARNT,
        count_rows: CountRows | None = None,
    ) -> Prepared:
        tools = _merge_tools(queries)
        began_s = wall_s()
        logical = merge({query.name: query.traced.plan for query in queries})
        verify(logical)
        sources = {query.rows.source: query.rows.rows for query in queries}
        models = {op.model for op in logical.walk_all() if isinstance(op, ModelOp)}
        workers = {model: self._workers(model) for model in sorted(models)}
        context = PlanContext(
            rows=sources,
            count_tokens=_estimated_tokens,
            learnt=self._learnt() + learnt,
            query_rows=_counted(logical, count_rows),
            enforces_choice=all(worker.choice for those in workers.values() for worker in those),
            cache_tokens=_smallest_cache(workers.values()),
        )
        rewritten = rewrite(logical, context, off=self.config.off, on=self.config.on)
        logical = rewritten.plan
        stats = context.stats(logical, orders=True)
        plan = place(logical, stats, {model: those[0] for model, those in workers.items()})
        if not self.config.prefix_order:
            in_order = {name: tuple(range(len(order))) for name, order in plan.row_order.items()}
            plan = replace(plan, row_order=in_order, stage_order={})
        scheduled = self._schedule(plan, stats, workers, tools)
        if scheduled is not None:
            plan = scheduled.physical
        if self.config.attention:
            from halo.attention import with_attention

            plan = with_attention(plan, stats, context, self.config)
        bound = tuple(q.traced.plan for q in queries)
        took_s = wall_s() - began_s
        return Prepared(queries, bound, rewritten, plan, stats, tools, scheduled, took_s)

    def _cache_setting(self, prepared: Prepared, directory: Path | None) -> CacheSetting | None:
        """The answer cache of a run, if there is to be one. Whose answers it keeps: those of these
        engines, as they are set up."""
        directory = directory or self.config.cache
        if directory is None:
            return None
        engines = sorted({worker.engine for worker in prepared.plan.workers})
        scope = " ".join(
            f"{engine} seed={self.config.seed}" if engine == "simulated" else engine
            for engine in engines
        )
        scope += " exact" if self.config.exact else ""
        scope += "".join(sorted({f" {w.attention}" for w in prepared.plan.workers if w.attention}))
        return CacheSetting(directory, scope, int(self.config.cache_mb * 1e6))

    def _learnt(self) -> Learnt:
        """What the runs named in the configuration have taught; read once."""
        if self._lessons is None:
            from halo.learn import learnt_from

            self._lessons = learnt_from(self.config.learn) if self.config.learn else NOTHING_LEARNT
        return self._lessons

    def _schedule(
        self,
        plan: PhysicalPlan,
        stats: PlanStats,
        workers: Mapping[str, Sequence[Worker]],
        tools: Mapping[str, ToolSpec],
    ) -> ScheduledPlan | None:
        """The rows split over workers, where a model has several; None where it has not."""
        if not any(len(those) > 1 for those in workers.values()):
            return None
        from halo.profiles import calibrated_timers
        from planner.schedule.assign import schedule_plan
        from planner.schedule.objective import Goal, Objective

        each = [worker for those in workers.values() for worker in those]
        return schedule_plan(
            plan,
            stats,
            _estimated_tokens,
            workers,
            now=wall_s,
            method=self.config.scheduler,
            budget_s=self.config.planning_s,
            seed=self.config.seed,
            max_steps=PLANNING_STEPS,
            objective=Objective(cast("Goal", self.config.objective)),
            timers=calibrated_timers(each, self.config.models_dir),
            tool_limits={name: spec.max_concurrency for name, spec in tools.items()},
        )

    def learn(self, prepared: Prepared, n_rows: int, announce: Announce | None = None) -> Prepared:
        """The batch planned again with what a run over `n_rows` of its rows has taught: answer
        lengths and pass rates. Makes the calls of those rows; their answers are not kept. Raises
        `WorkflowError` for a batch that writes."""
        writes = [op for op in prepared.plan.logical.walk_all() if op.effect is Effect.WRITE]
        if writes:
            raise WorkflowError(
                f"a sample would run {writes[0].label or writes[0].kind!r}, which writes; plan "
                "without a sample"
            )
        some = self.sampled(prepared, n_rows)
        result = self.run_prepared(some, announce=announce)
        runs = [(some.plan.logical, result.metrics)]
        return self._plan(prepared.queries, Learnt.from_runs(runs, "sampled"))

    def sampled(self, prepared: Prepared, n_rows: int) -> Prepared:
        """The same batch over `n_rows` of its rows, spread evenly: its operators are those of the
        whole batch, so that what they do tells about the whole."""
        queries = tuple(
            replace(query, rows=query.rows.spread(n_rows)) for query in prepared.queries
        )
        return self._plan(queries)

    def explain(
        self,
        flow: Flow | Batch,
        rows: Any = None,
        *,
        stage: str = "physical",
        format: str = "text",
        verbose: bool = False,
    ) -> str:
        """The plan at a stage: bound (each query alone), merged, optimized or physical."""
        prepared = self.prepare(flow, rows)
        return self.explain_prepared(prepared, stage=stage, format=format, verbose=verbose)

    def explain_prepared(
        self,
        prepared: Prepared,
        *,
        stage: str = "physical",
        format: str = "text",
        verbose: bool = False,
    ) -> str:
        """The same for a batch that `prepare` made."""
        if stage == "bound":
            parts = [explain(plan, format=format, verbose=verbose) for plan in prepared.bound]
            return "\n".join(parts)
        rewritten = prepared.rewritten
        if stage == "merged":
            merged = rewritten.merged
            stats = rewritten.context.stats(merged)
            return explain(merged, stats=stats, format=format, verbose=verbose)
        if stage == "optimized":
            return explain(
                prepared.plan.logical,
                stats=prepared.stats,
                format=format,
                verbose=verbose,
                rewritten=rewritten,
            )
        if stage == "physical" and is_gantt(format):
            return explain_schedule(prepared.plan, prepared.stats, format)
        if stage == "physical":
            return explain_physical(
                prepared.plan,
                prepared.stats,
                format=format,
                verbose=verbose,
                rewritten=rewritten,
            )
        raise WorkflowError(
            f"no stage {stage!r}; the stages are: bound, merged, optimized, physical"
        )

    def explain_prefixes(self, prepared: Prepared, capacity_tokens: int) -> str:
        """The static prefixes of a batch, and what a KV cache of `capacity_tokens` would hit."""
        from planner.explain_prefixes import prefix_report

        blocks = [worker.prefix_block_tokens for worker in prepared.plan.workers]
        return prefix_report(
            prepared.plan.logical,
            prepared.rewritten.context,
            prepared.plan.row_order,
            capacity_tokens=capacity_tokens,
            block_tokens=max(16, *blocks) if blocks else 16,
        )

    # --- running ---------------------------------------------------------------------------------

    def run(
        self,
        flow: Flow | Batch,
        rows: Any = None,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        on_progress: OnProgress | None = None,
        announce: Announce | None = None,
        asked: Mapping[str, Json] | None = None,
    ) -> RunResult:
        """Run a workflow over rows, or a batch of several. See `halo.run`.

        `asked` is kept in the run directory so that `halo resume` can rebuild the batch.
        Interrupting (Ctrl-C) drains the calls in flight; the run can be resumed.
        """
        prepared = self.prepare(flow, rows)
        return self.run_prepared(
            prepared,
            out=out,
            resume=resume,
            on_progress=on_progress,
            announce=announce,
            asked=asked,
        )

    def run_prepared(
        self,
        prepared: Prepared,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        on_progress: OnProgress | None = None,
        announce: Announce | None = None,
        asked: Mapping[str, Json] | None = None,
        sql: SqlSession | None = None,
        cache: Path | None = None,
    ) -> RunResult:
        """Run what `prepare` made. `sql` is the database of a SQL batch (`halo.ai_sql.batch`);
        `cache` is the directory of answers, in place of the configured one."""
        inputs = RunInputs(
            plan=prepared.plan,
            stats=prepared.stats,
            rows=prepared.rows_by_source,
            tools=prepared.tools,
            database=self.config.db,
            seed=self.config.seed,
            tenant=self.config.tenant,
            prime=self.config.prime,
            share=self.config.share,
            warm=self.config.warm,
            overlap=self.config.overlap,
            budget=self.config.limits,
            cache=self._cache_setting(prepared, cache),
            out=Path(out) if out is not None else None,
            resume=resume,
            sql=sql,
            manifest={"config": self._manifest_config(), **(asked or {})},
            replan=(replan := self._replanner(prepared)),
        )
        handle = RunHandle(inputs)
        say = announce or logging.getLogger("halo").info
        finished = self._wait(self._run(handle, prepared, say), handle, on_progress)
        for note in replan.notes if replan is not None else ():
            say(note)
        return RunResult(
            outcomes=finished.outcomes,
            plan=prepared.plan,
            stats=prepared.stats,
            metrics=finished.metrics,
            rows_total=finished.rows_total,
            elapsed_s=finished.elapsed_s,
            run_clock_s=finished.run_clock_s,
            cpu_s=finished.cpu_s,
            warmed_tokens=finished.warmed_tokens,
            out=inputs.out,
            stopped=finished.stopped,
            budget_reached=finished.budget_reached,
            engine_requests=finished.engine_requests,
            recovered=finished.recovered,
            cached_answers=finished.cached_answers,
        )

    def evaluate(self, plan: LogicalPlan, tools: Mapping[str, ToolSpec]) -> Json:
        """The value of a plan over one row without columns: how a call outside a trace runs.
        Raises the row's error."""
        query = Query(plan.outputs[0][0], Traced(plan, tools), RowSet.single(plan))
        result = self.run_prepared(self._plan((query,)))
        outcome = next(iter(result))
        if outcome.error is not None:
            raise HaloError(f"{outcome.error.type}: {outcome.error.message}")
        return outcome.value

    async def _run(self, handle: RunHandle, prepared: Prepared, announce: Announce) -> Finished:
        plan = prepared.plan
        engines: dict[str, Backend] = {}
        if self._choice_warning:
            announce(self._choice_warning)
            self._choice_warning = ""
        for worker in plan.workers:
            # An engine serves with one technique: another one is another engine.
            opened = f"{worker.name} {worker.attention}".rstrip()
            if opened not in self._engines:
                options = replace(self._engine_options(announce), attention=worker.attention)
                try:
                    self._engines[opened] = await create_backend(
                        worker.engine, worker.model, handle.clock, options
                    )
                except BackendError as error:
                    if not plan.shares:
                        raise
                    plan = self._go_on_without(plan, worker, error, announce)
                    continue
            engines[worker.name] = self._engines[opened]
        if plan is not prepared.plan:
            handle.use(plan)
        return await handle.run(engines)

    def _go_on_without(
        self, plan: PhysicalPlan, worker: Worker, error: BackendError, announce: Announce
    ) -> PhysicalPlan:
        """The plan of the workers that are left. Raises `PlanError` when that is none."""
        from planner.schedule.to_plan import without_worker

        plan, given_up = without_worker(plan, worker.name, str(error))
        announce(given_up)
        return plan

    def _replanner(self, prepared: Prepared) -> Replanner | None:
        if prepared.scheduled is None:
            return None
        from planner.schedule.adapt import Replanner

        return Replanner(prepared.scheduled, wall_s, max_steps=PLANNING_STEPS)

    def _wait(
        self,
        work: Coroutine[Any, Any, T],
        handle: RunHandle,
        on_progress: OnProgress | None,
    ) -> T:
        future = self._submit(work)
        try:
            while True:
                try:
                    return future.result(timeout=0.2)
                except TimeoutError:
                    if future.done():
                        raise
                    if on_progress and handle.progress:
                        on_progress(handle.progress)
        except KeyboardInterrupt:
            self._ensure_loop().call_soon_threadsafe(handle.stop)
            try:
                return future.result(timeout=DRAIN_SECONDS)
            except TimeoutError:
                future.cancel()
                with suppress(BaseException):
                    future.result(timeout=DRAIN_SECONDS)
                raise KeyboardInterrupt from None

    # --- engines ---------------------------------------------------------------------------------

    def _model(self, name: str) -> str:
        name = name or self.config.model or self._default_model
        if not name and self.config.engine == "local":
            from runtime.models.choice import choose_default

            name, self._choice_warning = choose_default()
        elif not name:
            name = default_model(self.config.engine, self._engine_options())
        self._default_model = self._default_model or name
        return name

    def _workers(self, model: str) -> list[Worker]:
        """The workers of a model: one for each engine that the session has."""
        workers: list[Worker] = []
        names: set[str] = set()
        for engine in self.config.workers or (self.config.engine,):
            worker = self._worker(model, engine)
            name, n = worker.name, 2
            while worker.name in names:
                worker, n = replace(worker, name=f"{name}#{n}"), n + 1
            names.add(worker.name)
            workers.append(worker)
        return workers

    def why_not_model(self, name: str) -> str:
        """Why the session's engines cannot serve a model of this name; empty when they can."""
        try:
            self._workers(name)
        except HaloError as error:
            return str(error)
        return ""

    def context_tokens(self, model: str) -> int | None:
        """The context of a model, "" for the default one: the smallest where engines differ."""
        known = [worker.context_tokens for worker in self._workers(model)]
        return min((each for each in known if each is not None), default=None)

    def _worker(self, model: str, engine: str) -> Worker:
        name = self._model(model)
        worker = f"{engine}:{name}"
        opened = self._engines.get(worker)
        offered = (
            describe_backend(engine, name, self._engine_options())
            if opened is None
            else opened.capabilities
        )
        return Worker(
            name=worker,
            engine=engine,
            model=name,
            max_in_flight=offered.max_in_flight,
            context_tokens=offered.context_tokens,
            prefix_cache=offered.prefix_cache,
            prime_prefix=offered.prime_prefix,
            choice=offered.choice,
            cache_tokens=offered.cache_tokens,
            techniques=offered.techniques,
        )

    def _engine_options(self, announce: Announce | None = None) -> EngineOptions:
        return engine_options(self.config, announce)

    def _manifest_config(self) -> dict[str, Json]:
        config = cast("dict[str, Json]", self.config.model_dump(mode="json"))
        config["model"] = self._model("") if config["engine"] == "local" else config["model"]
        return config

    # --- the loop --------------------------------------------------------------------------------

    def _ensure_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            engines = self.config.workers or (self.config.engine,)
            loop = new_event_loop(virtual=all(engine == "simulated" for engine in engines))
            self._thread = threading.Thread(target=loop.run_forever, name="halo", daemon=True)
            self._thread.start()
            self._loop = loop
        return self._loop

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._ensure_loop())

    def close(self) -> None:
        """Close the engines and the loop. Safe to call twice."""
        if self._loop is None:
            return
        for engine in self._engines.values():
            self._submit(engine.close()).result()
        self._engines.clear()
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None:
            self._thread.join()
        self._loop.close()
        self._loop = None


def engine_options(config: Config, announce: Announce | None = None) -> EngineOptions:
    """What an engine is told, out of the settings."""
    return EngineOptions(
        seed=config.seed,
        models_dir=config.models_dir,
        threads=config.threads,
        max_in_flight=config.max_in_flight,
        exact=config.exact,
        announce=announce,
        api_key=config.api_key.get_secret_value(),
        tokenizer=config.tokenizer,
        tenant=config.tenant,
        steer=config.steer,
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
    )


@cache
def default_session() -> Session:
    """The session of calls outside any run (eager mode), made on first use from the environment
    and `halo.toml`, closed when the interpreter ends."""
    session = Session()
    atexit.register(session.close)
    return session


def _pairs(flow: Flow | Batch, rows: Any) -> list[tuple[Flow, Any]]:
    if isinstance(flow, Sequence):
        if rows is not None:
            raise WorkflowError("a batch of (workflow, rows) pairs takes no rows of its own")
        return list(flow)
    if rows is None:
        raise WorkflowError(f"workflow {flow.name!r} needs rows: a path, a glob or a list")
    return [(flow, rows)]


def _row_set(rows: Any) -> RowSet:
    return read_rows(str(rows)) if isinstance(rows, str | Path) else rows_from(rows)


def _merge_tools(queries: Sequence[Query]) -> dict[str, ToolSpec]:
    tools: dict[str, ToolSpec] = {}
    for query in queries:
        for name, spec in query.traced.tools.items():
            known = tools.setdefault(name, spec)
            if known.digest != spec.digest:
                raise WorkflowError(
                    f"two different tools are named {name!r} (the second in {query.name!r}); "
                    "rename one of them"
                )
    return tools


def _counted(plan: LogicalPlan, count_rows: CountRows | None) -> dict[str, int]:
    if count_rows is None:
        return {}
    found: dict[str, int] = {}
    for op in plan.walk():
        if isinstance(op, SqlRows) and (count := count_rows(op)) is not None:
            found[op.fingerprint] = count
    return found


def _smallest_cache(workers: Iterable[Sequence[Worker]]) -> int | None:
    known = [worker.cache_tokens for those in workers for worker in those]
    return min((each for each in known if each is not None), default=None)


def _estimated_tokens(text: str) -> int:
    from costmodel.tokens import estimate_tokens

    return estimate_tokens(text)
