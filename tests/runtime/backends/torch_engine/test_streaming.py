"""A prompt that is prefilled while a tool still gives rows: the executor on the real engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from costmodel.usage import OpMetrics
from planner.logical import (
    Choose,
    Column,
    Effect,
    Generate,
    Json,
    LogicalPlan,
    ModelOp,
    Op,
    Prompt,
    Ref,
    Result,
    Scan,
    Sql,
    Tool,
)
from planner.physical import PhysicalPlan, Worker
from runtime.backends.create import EngineOptions
from runtime.backends.torch_engine.backend import TorchBackend, open_backend
from runtime.clock import LoopClock, new_event_loop
from runtime.dispatch import Dispatcher
from runtime.executor import Executor
from runtime.memory_store import MemoryStore
from runtime.records import CallRecord, Outcome
from runtime.sharing import CallTable
from runtime.sql_tool import Databases
from runtime.tool_runner import ToolRunner
from runtime.tools import ToolSpec

SCAN = Scan((), "rows", ("q",))
Q = Column((SCAN,), "q")
PAGES = [f"page {i}: the river rises in the hills and falls into the sea" for i in range(12)]


class Records(MemoryStore):
    """A store that replays what `earlier` recorded, as a resumed run finds it."""

    def __init__(self, earlier: Iterable[CallRecord] = ()) -> None:
        super().__init__()
        self._earlier = {record.key: record for record in earlier}

    def recorded_call(self, key: str) -> CallRecord | None:
        return self._earlier.get(key)


@dataclass
class Bench:
    """Runs of plans on a real engine, and what it left behind."""

    backend: TorchBackend
    store: Records = field(default_factory=Records)
    prefilled: int = 0

    def __post_init__(self) -> None:
        self.backend.on_metrics = self._count

    def _count(self, metrics: Any) -> None:
        self.prefilled += metrics.prefilled_tokens

    async def run(
        self,
        root: Op,
        rows: int = 1,
        *specs: ToolSpec,
        streaming: bool = True,
        database: Path | None = None,
        stop: Callable[[Executor], None] | None = None,
    ) -> list[Outcome]:
        clock, metrics = LoopClock(), dict[str, OpMetrics]()
        table = CallTable(self.store, metrics)
        databases = Databases(database)
        tools = ToolRunner({s.name: s for s in specs}, databases, table, self.store, clock)
        dispatcher = Dispatcher({"w": self.backend}, table, self.store, clock)
        plan = LogicalPlan((("main", Result((root, SCAN))),))
        everything = list(plan.walk_all())
        physical = PhysicalPlan(
            plan,
            {op.fingerprint: "w" for op in everything if isinstance(op, ModelOp)},
            (Worker("w", "torch", "m", 64),),
            {op.fingerprint: i for i, op in enumerate(everything)},
            {},
            64,
        )
        executor = Executor(
            physical,
            dispatcher=dispatcher,
            tools=tools,
            tool_schemas={},
            store=self.store,
            clock=clock,
            metrics=metrics,
            opener=dispatcher if streaming else None,
        )
        if stop is not None:
            stop(executor)
        try:
            outcomes = await executor.run({"rows": [{"q": f"q{i}"} for i in range(rows)]})
        finally:
            await dispatcher.close()
            await tools.close()
            await databases.close()
        assert await self.backend.call(lambda e: e.scheduler.idle)
        return outcomes["main"]

    def model_calls(self) -> dict[str, tuple[Json, Any, str]]:
        """What is recorded of model calls, but for times."""
        records = [r for r in self.store.calls if r.kind == "model"]
        return {r.key: (r.value, r.usage, r.finish_reason) for r in records}


@pytest.fixture
def on_engine(checkpoint: Path) -> Callable[..., Any]:
    """Runs a coroutine function on a bench with an engine of its own, on virtual time."""

    def run(check: Callable[[Bench], Any]) -> Any:
        async def main() -> Any:
            options = EngineOptions(exact=True, threads=1)
            backend = await open_backend(str(checkpoint), LoopClock(), options)
            try:
                return await check(Bench(backend))
            finally:
                backend.engine.check()
                await backend.close()

        with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
            return runner.run(main())

    return run


def pure(function: Callable[..., Any], **options: Any) -> ToolSpec:
    parameters = {"type": "object", "properties": {"q": {}}}
    return ToolSpec("search", function, "", parameters, Effect.PURE, **options)


def search(spec: ToolSpec, *inputs: Op) -> Tool:
    return Tool(inputs, spec.ref, ("q",)[: len(inputs)], label="search")


def ask(found: Op, **options: Any) -> Generate:
    prompt = Prompt(("Question: ", Ref(1), "\nPages: ", Ref(0), "\nAnswer briefly."))
    return Generate((found, Q), "m", prompt, max_tokens=8, **options)


def paged(q: str = "") -> Iterator[str]:
    yield from PAGES


def values(outcomes: list[Outcome]) -> list[Json]:
    assert [o.error for o in outcomes] == [None] * len(outcomes)
    return [o.value for o in outcomes]


@pytest.mark.parametrize("kind", ["greedy", "sampled", "schema", "system"])
def test_rows_are_prefilled_while_the_tool_runs_and_nothing_else_differs(
    on_engine: Any, kind: str
) -> None:
    options: dict[str, Any] = {
        "greedy": {},
        "sampled": {"temperature": 1.0, "call_id": "c"},
        "schema": {"schema_json": '{"enum": ["yes", "no"]}'},
        "system": {"system": Prompt(("You read about rivers.",))},
    }[kind]

    async def streamed(bench: Bench) -> Any:
        enough = threading.Event()
        seen: list[int] = []

        def watch(metrics: Any) -> None:
            bench._count(metrics)
            if bench.prefilled > 200:
                enough.set()

        bench.backend.on_metrics = watch

        def slow(q: str) -> Iterator[str]:
            yield from PAGES[:-1]
            assert enough.wait(60), "nothing was prefilled while the tool ran"
            seen.append(bench.prefilled)
            yield PAGES[-1]

        spec = pure(slow)
        answers = values(await bench.run(ask(search(spec, Q), **options), 1, spec))
        assert seen[0] > 200
        return answers, bench.model_calls(), bench.prefilled

    async def plain(bench: Bench) -> Any:
        spec = pure(paged)
        outcomes = await bench.run(ask(search(spec, Q), **options), 1, spec, streaming=False)
        return values(outcomes), bench.model_calls(), bench.prefilled

    (answer, calls, prefilled), (expected, calls_before, prefilled_before) = (
        on_engine(streamed),
        on_engine(plain),
    )
    assert (answer, calls) == (expected, calls_before)
    assert len(calls) == 1
    # Of each growth at most the token at the seam is computed twice.
    assert prefilled_before <= prefilled <= prefilled_before + len(PAGES)


def test_a_tool_that_many_rows_share_feeds_the_prompt_of_each(on_engine: Any) -> None:
    async def check(bench: Bench, streaming: bool) -> list[Json]:
        opened: list[str] = []
        open_prompt = bench.backend.open_prompt

        async def opening(request: Any) -> Any:
            opened.append(request.messages[-1].content)
            return await open_prompt(request)

        bench.backend.open_prompt = opening  # type: ignore[method-assign]
        spec = pure(paged)
        outcomes = await bench.run(ask(search(spec)), 3, spec, streaming=streaming)
        assert len(opened) == (3 if streaming else 0)
        assert len(bench.model_calls()) == 3
        return values(outcomes)

    assert on_engine(lambda b: check(b, True)) == on_engine(lambda b: check(b, False))


def test_a_tool_that_fails_midway_fails_its_row_alone(on_engine: Any) -> None:
    def breaks(q: str) -> Iterator[str]:
        yield from PAGES
        if q == "q1":
            raise OSError("the index is gone")

    async def check(bench: Bench) -> None:
        spec = pure(breaks, retries=0)
        good, bad = await bench.run(ask(search(spec, Q)), 2, spec)
        assert good.error is None
        assert bad.error is not None and "the index is gone" in bad.error.message
        assert len(bench.model_calls()) == 1

    on_engine(check)


def test_rows_of_a_failed_attempt_do_not_count(on_engine: Any) -> None:
    attempts: list[int] = []

    def flaky(q: str) -> Iterator[str]:
        attempts.append(1)
        if len(attempts) % 2:
            yield from (f"a stale {page}" for page in PAGES)
            raise OSError("once")
        yield from PAGES

    async def check(bench: Bench, spec: ToolSpec) -> Any:
        answer = values(await bench.run(ask(search(spec, Q)), 1, spec))
        (call,) = bench.model_calls().values()
        return answer, call[0], call[1].input_tokens

    assert on_engine(lambda b: check(b, pure(flaky))) == on_engine(lambda b: check(b, pure(paged)))
    assert len(attempts) == 2


def test_a_prompt_that_outgrows_the_model_is_the_error_of_its_row(on_engine: Any) -> None:
    def endless(q: str) -> Iterator[str]:
        yield from PAGES * 6

    async def check(bench: Bench) -> None:
        spec = pure(endless)
        (outcome,) = await bench.run(ask(search(spec, Q)), 1, spec)
        assert outcome.error is not None and outcome.error.type == "ContextOverflowError"

    on_engine(check)


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
def test_a_run_that_ends_early_leaves_no_prompt_open(on_engine: Any, how: str) -> None:
    async def check(bench: Bench) -> None:
        loop, grown, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        executors: list[Executor] = []

        def hangs(q: str) -> Iterator[str]:
            yield from PAGES
            release.wait(60)

        def tell(metrics: Any) -> None:
            bench._count(metrics)
            if bench.prefilled > 100:
                loop.call_soon_threadsafe(grown.set)

        bench.backend.on_metrics = tell
        spec = pure(hangs, timeout_s=600.0)
        run = asyncio.create_task(bench.run(ask(search(spec, Q)), 2, spec, stop=executors.append))
        with LoopClock().outside():
            await grown.wait()
        if how == "cancelled":
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        else:
            executors[0].stop()
            release.set()
            assert await run == []  # left for a resume
        release.set()
        assert not bench.model_calls()
        assert await bench.backend.call(lambda e: e.scheduler.idle)
        held = await bench.backend.call(lambda e: e.tree.tokens - e.tree.evictable_tokens)
        assert held == 0, "what was prefilled is cache that can be dropped"

    on_engine(check)


def test_a_run_that_is_cancelled_while_it_answers_frees_its_prompt(on_engine: Any) -> None:
    async def check(bench: Bench) -> None:
        loop, answering = asyncio.get_running_loop(), asyncio.Event()

        def tell(metrics: Any) -> None:
            if metrics.decoded_tokens:
                loop.call_soon_threadsafe(answering.set)

        bench.backend.on_metrics = tell
        spec = pure(paged)
        root = replace(ask(search(spec, Q)), max_tokens=700)
        run = asyncio.create_task(bench.run(root, 1, spec))
        with LoopClock().outside():
            await answering.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert not bench.model_calls()
        assert await bench.backend.call(lambda e: e.scheduler.idle)

    on_engine(check)


def test_what_is_recorded_is_not_asked_again(on_engine: Any) -> None:
    async def check(bench: Bench) -> None:
        spec = pure(paged)
        root = ask(search(spec, Q))
        first = values(await bench.run(root, 2, spec))
        calls, prefilled = bench.store.calls, bench.prefilled
        assert len(calls) == 4
        bench.store = Records(calls)
        assert values(await bench.run(root, 2, spec)) == first
        assert (bench.store.calls, bench.prefilled) == ([], prefilled)
        # Where the model's answers alone are recorded, the tool's rows come again for nothing.
        bench.store = Records(c for c in calls if c.kind == "model")
        assert values(await bench.run(root, 2, spec)) == first
        assert [c.kind for c in bench.store.calls] == ["tool", "tool"]

    on_engine(check)


def test_a_query_streams_its_rows(on_engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "pages.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS n FROM range(140)")
    query = Sql((), "", "SELECT n FROM t ORDER BY n", (), max_rows=140)

    async def check(bench: Bench, streaming: bool) -> Any:
        grown: list[str] = []
        open_prompt = bench.backend.open_prompt

        async def opening(request: Any) -> Any:
            session = await open_prompt(request)
            grow = session.replace

            async def growing(text: str) -> None:
                grown.append(text)
                await grow(text)

            grown.append(request.messages[-1].content)
            session.replace = growing  # type: ignore[method-assign]
            return session

        bench.backend.open_prompt = opening  # type: ignore[method-assign]
        answers = values(await bench.run(ask(query), 1, streaming=streaming, database=path))
        assert bool(grown) == streaming
        assert all('"n": 63}' in text and "Answer" not in text for text in grown)
        return answers, bench.model_calls()

    assert on_engine(lambda b: check(b, True)) == on_engine(lambda b: check(b, False))


def test_choices_and_system_prompts_wait_for_the_whole(on_engine: Any) -> None:
    async def check(bench: Bench) -> None:
        async def never(request: Any) -> Any:
            raise AssertionError("opened")

        bench.backend.open_prompt = never  # type: ignore[method-assign]
        spec = pure(paged)
        found = search(spec, Q)
        chosen = Choose((found,), "m", Prompt(("Pick: ", Ref(0))), options=("a", "b"))
        ruled = Generate((found,), "m", Prompt(("Go.",)), system=Prompt((Ref(0),)), max_tokens=4)
        assert values(await bench.run(chosen, 1, spec))[0] in ("a", "b")
        values(await bench.run(ruled, 1, spec))

    on_engine(check)


def test_an_async_generator_streams_too(on_engine: Any) -> None:
    async def rows(q: str) -> Any:
        for page in PAGES:
            yield page
            await asyncio.sleep(1)

    async def check(bench: Bench) -> None:
        opened: list[str] = []
        open_prompt = bench.backend.open_prompt

        async def opening(request: Any) -> Any:
            opened.append(request.messages[-1].content)
            return await open_prompt(request)

        bench.backend.open_prompt = opening  # type: ignore[method-assign]
        spec = pure(rows)
        values(await bench.run(ask(search(spec, Q)), 1, spec))
        assert [PAGES[0] in text and PAGES[1] not in text for text in opened] == [True]

    on_engine(check)
