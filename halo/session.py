"""The session: the one place that wires front ends, planner, engines, tools and the journal.

The runtime is asynchronous and lives on an event loop in a thread of the session; `run` is the
synchronous door to it.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from halo import __version__
from halo.config import Config, load_config
from halo.engines import Announce, Engines
from halo.errors import HaloError, WorkflowError
from halo.explain_stages import explain_prefixes, explain_stage
from halo.flow import Flow, Traced
from halo.loop_thread import LoopThread, OnProgress
from halo.planning import CountRows, Prepared, plan_batch
from halo.queries import Batch, Query, trace_queries
from halo.result import RunResult
from halo.rows import RowSet
from planner.learnt import NOTHING_LEARNT, Learnt
from planner.logical import Effect, Json, LogicalPlan
from runtime.kept_plan import KeptPlan, read_plan
from runtime.run import CacheSetting, Finished, RunHandle, RunInputs
from runtime.run_directory import RunDirectory
from runtime.sql_session import SqlSession
from runtime.tools import ToolSpec


class Session:
    """Configuration, engines and caches that several runs share. A context manager."""

    def __init__(self, config: Config | None = None, **settings: Any) -> None:
        """`settings` are those of `halo.config.Config` and win over environment and files."""
        if config is None:
            config, _ = load_config(settings)
        elif settings:
            config = config.model_copy(update=settings)
        self.config = config
        self._lessons: Learnt | None = None
        self._engines = Engines()
        self._loop: LoopThread | None = None

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
        return self._plan(trace_queries(flow, rows), learnt, count_rows)

    def _plan(
        self,
        queries: tuple[Query, ...],
        learnt: Learnt = NOTHING_LEARNT,
        count_rows: CountRows | None = None,
        begun: KeptPlan | None = None,
    ) -> Prepared:
        return plan_batch(
            queries,
            self.config,
            lambda model: self._engines.workers(self.config, model),
            learnt=self._learnt() + learnt,
            count_rows=count_rows,
            begun=begun,
        )

    def _as_begun(self, prepared: Prepared, path: Path) -> Prepared:
        """The same batch with the operators of its run in `path`, where the rules have made others
        of them since: they go by what is known, such as the pass rates that a sample measured. What
        is not the same batch is left as it is, to be refused."""
        if not (path / "manifest.json").exists():
            return prepared
        directory = RunDirectory.open(path)
        begun = read_plan(directory) if directory.plan.exists() else None
        logical = prepared.plan.logical
        if begun is None or begun.plan.logical == logical:
            return prepared
        if not begun.is_of(prepared.rewritten.merged, logical):
            return prepared
        return self._plan(prepared.queries, begun=begun)

    def _learnt(self) -> Learnt:
        """What the runs named in the configuration have taught; read once."""
        if self._lessons is None:
            from halo.learn import learnt_from

            self._lessons = learnt_from(self.config.learn) if self.config.learn else NOTHING_LEARNT
        return self._lessons

    def learn(self, prepared: Prepared, n_rows: int, announce: Announce | None = None) -> Prepared:
        """The batch planned again with what a run over `n_rows` of its rows has taught: answer
        lengths and pass rates. Raises as `run_sample` does."""
        some, result = self.run_sample(prepared, n_rows, announce=announce)
        runs = [(some.plan.logical, result.metrics)]
        return self._plan(prepared.queries, Learnt.from_runs(runs, "sampled"))

    def run_sample(
        self,
        prepared: Prepared,
        n_rows: int,
        *,
        on_progress: OnProgress | None = None,
        announce: Announce | None = None,
    ) -> tuple[Prepared, RunResult]:
        """The same batch over `n_rows` of its rows, spread evenly, and its run. Its operators are
        those of the whole batch, so that what they do tells about the whole. Makes the calls of
        those rows; their answers are not kept. Raises `WorkflowError` for a batch that writes."""
        writes = [op for op in prepared.plan.logical.walk_all() if op.effect is Effect.WRITE]
        if writes:
            raise WorkflowError(
                f"a sample would run {writes[0].label or writes[0].kind!r}, which writes; do "
                "without a sample"
            )
        some = self._plan(
            tuple(replace(query, rows=query.rows.spread(n_rows)) for query in prepared.queries)
        )
        return some, self.run_prepared(some, on_progress=on_progress, announce=announce)

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
        return explain_stage(prepared, stage=stage, format=format, verbose=verbose)

    def explain_prefixes(self, prepared: Prepared, capacity_tokens: int) -> str:
        """The static prefixes of a batch, and what a KV cache of `capacity_tokens` would hit."""
        return explain_prefixes(prepared, capacity_tokens)

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
        """Run what `prepare` made; with `resume`, what is left of its run in `out`, by the plan
        that it began with. `sql` is the database of a SQL batch (`halo.ai_sql.batch`); `cache` is
        the directory of answers, in place of the configured one."""
        if resume and out is not None:
            prepared = self._as_begun(prepared, Path(out))
        inputs = RunInputs(
            plan=prepared.plan,
            stats=prepared.stats,
            rows=prepared.rows_by_source,
            tools=prepared.tools,
            database=self.config.db,
            seed=self.config.seed,
            tenant=self.config.tenant,
            prime=self.config.prime,
            gather=self.config.gather,
            share=self.config.share,
            warm=self.config.warm,
            overlap=self.config.overlap,
            budget=self.config.limits,
            cache=self._cache_setting(prepared, cache),
            out=Path(out) if out is not None else None,
            resume=resume,
            sql=sql,
            manifest={"halo": __version__, "config": self._manifest_config(), **(asked or {})},
            merged=prepared.rewritten.merged,
            replan=(replan := prepared.replanner()),
        )
        handle = RunHandle(inputs)
        say = announce or logging.getLogger("halo").info
        work = self._run(handle, prepared, say)
        finished = self._started_loop().run(work, handle, on_progress)
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
        plan, engines = await self._engines.open(self.config, prepared.plan, handle.clock, announce)
        if plan is not prepared.plan:
            handle.use(plan)
        return await handle.run(engines)

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

    def _manifest_config(self) -> dict[str, Json]:
        config = cast("dict[str, Json]", self.config.model_dump(mode="json"))
        if config["engine"] == "local":
            config["model"] = self._engines.model(self.config)
        return config

    # --- engines ---------------------------------------------------------------------------------

    def why_not_model(self, name: str) -> str:
        """Why the session's engines cannot serve a model of this name; empty when they can."""
        return self._engines.why_not_model(self.config, name)

    def context_tokens(self, model: str) -> int | None:
        """The context of a model, "" for the default one: the smallest where engines differ."""
        return self._engines.context_tokens(self.config, model)

    def _started_loop(self) -> LoopThread:
        if self._loop is None:
            engines = self.config.workers or (self.config.engine,)
            self._loop = LoopThread(virtual=all(engine == "simulated" for engine in engines))
        return self._loop

    def close(self) -> None:
        """Close the engines and the loop. Safe to call twice."""
        if self._loop is None:
            return
        self._loop.call(self._engines.close())
        self._loop.close()
        self._loop = None


@cache
def default_session() -> Session:
    """The session of calls outside any run (eager mode), made on first use from the environment
    and `halo.toml`, closed when the interpreter ends."""
    session = Session()
    atexit.register(session.close)
    return session
