"""One call per key: sharing in flight and afterwards, replay, errors and cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import pytest

from costmodel.usage import OpMetrics, Usage
from planner.logical import Effect
from runtime.clock import new_event_loop
from runtime.errors import BackendError, DrainingError
from runtime.phases import Phases
from runtime.records import CallRecord, CallSite, Outcome
from runtime.sharing import CallTable

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(100_000):  # of simulated time: what hangs fails
            return await main()

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        return runner.run(bounded())


class RecordedCalls:
    """A store that remembers what an earlier process recorded."""

    def __init__(self, *records: CallRecord) -> None:
        self.records = {r.key: r for r in records}

    def recorded_call(self, key: str) -> CallRecord | None:
        return self.records.get(key)

    def record_call(self, record: CallRecord) -> asyncio.Future[None]:
        raise NotImplementedError("the table does not record")

    def record_outcome(self, outcome: Outcome) -> asyncio.Future[None]:
        raise NotImplementedError

    def recorded_outcomes(self) -> Iterable[tuple[str, str]]:
        return ()

    def record_metrics(self, metrics: Mapping[str, OpMetrics]) -> None: ...

    def durable(self) -> asyncio.Future[None]:
        raise NotImplementedError


def site(op: str = "op", row: int = 0, effect: Effect = Effect.PURE) -> CallSite:
    return CallSite(op=op, query="q", row_index=row, row_key=str(row), effect=effect)


def record(key: str, **changes: Any) -> CallRecord:
    fields: dict[str, Any] = {
        "key": key, "kind": "model", "name": "m", "op": "op", "query": "q", "row_key": "0",
        "value": f"answer to {key}",
    }  # fmt: skip
    return CallRecord(**(fields | changes))


class Maker:
    """Makes records after some time, and counts how often it was asked and cancelled."""

    def __init__(self, answer: CallRecord | Exception, *, seconds: float = 1.0) -> None:
        self.answer = answer
        self.seconds = seconds
        self.calls = 0
        self.cancelled = 0

    def __call__(self) -> Awaitable[CallRecord]:
        self.calls += 1
        return self._make()

    async def _make(self) -> CallRecord:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_equal_calls_of_many_rows_are_made_once() -> None:
    async def main() -> None:
        metrics: dict[str, OpMetrics] = {}
        table = CallTable(RecordedCalls(), metrics)
        make = Maker(record("k", usage=Usage(7, 3), start_s=1.0, end_s=3.5, attempts=3))
        answers = await asyncio.gather(*(table.once("k", site(row=i), make) for i in range(5)))
        answers.append(await table.once("k", site("other"), make))
        assert make.calls == 1
        assert all(a is answers[0] for a in answers)
        assert metrics["op"] == OpMetrics(
            requested=5, made=1, shared=4, retries=2, busy_s=2.5, usage=Usage(7, 3)
        )
        assert metrics["other"] == OpMetrics(requested=1, shared=1)
        assert table.in_flight == 0

    run(main)


@pytest.mark.parametrize("effect", [Effect.SAMPLED, Effect.WRITE])
def test_finished_calls_of_other_effects_are_not_kept(effect: Effect) -> None:
    async def main() -> int:
        table = CallTable(RecordedCalls(), {})
        make = Maker(record("k"))
        for _ in range(2):
            await table.once("k", site(effect=effect), make)
        return make.calls

    assert run(main) == 2


def test_what_an_earlier_process_recorded_is_replayed() -> None:
    async def main() -> None:
        metrics: dict[str, OpMetrics] = {}
        recorded = record("k", usage=Usage(100, 10))
        table = CallTable(RecordedCalls(recorded), metrics)
        make = Maker(record("k"))
        for _ in range(2):
            assert await table.once("k", site(), make) is recorded
        assert make.calls == 0
        assert metrics["op"] == OpMetrics(requested=2, replayed=2)

    run(main)


def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    async def main() -> None:
        metrics: dict[str, OpMetrics] = {}
        table = CallTable(RecordedCalls(), metrics)
        error = BackendError("no answer", backend="b")
        error.attempts = 4
        make = Maker(error)
        raised = await asyncio.gather(
            *(table.once("k", site(row=i), make) for i in range(3)), return_exceptions=True
        )
        assert all(e is error for e in raised)
        assert metrics["op"] == OpMetrics(requested=3, made=1, shared=2, retries=3, errors=3)
        make.answer = record("k")
        assert await table.once("k", site(), make) is make.answer
        assert make.calls == 2

    run(main)


def test_calls_refused_while_draining_are_not_counted() -> None:
    async def main() -> None:
        metrics: dict[str, OpMetrics] = {}
        table = CallTable(RecordedCalls(), metrics)
        make = Maker(DrainingError("stopping"))
        raised = await asyncio.gather(
            *(table.once("k", site(), make) for _ in range(2)), return_exceptions=True
        )
        assert [type(e) for e in raised] == [DrainingError, DrainingError]
        assert metrics == {}

    run(main)


@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_a_waiter_that_leaves_does_not_cancel_the_call_of_the_others(leaver: int) -> None:
    async def main() -> None:
        metrics: dict[str, OpMetrics] = {}
        table = CallTable(RecordedCalls(), metrics)
        make = Maker(record("k"))
        tasks = [asyncio.create_task(table.once("k", site(), make)) for _ in range(3)]
        await asyncio.sleep(0.5)
        tasks[leaver].cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(e, asyncio.CancelledError) for e in ended].count(True) == 1
        assert [e for e in ended if e is make.answer] == [make.answer] * 2
        assert (make.calls, make.cancelled) == (1, 0)
        m = metrics["op"]
        assert m.requested == m.made + m.shared

    run(main)


def test_the_call_ends_when_nobody_waits_and_the_key_is_free_at_once() -> None:
    async def main() -> None:
        table = CallTable(RecordedCalls(), {})
        make = Maker(record("k"))
        tasks = [asyncio.create_task(table.once("k", site(), make)) for _ in range(2)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        again = asyncio.create_task(table.once("k", site(), make))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await again is make.answer
        assert (make.calls, make.cancelled) == (2, 1)
        assert table.in_flight == 0

    run(main)


def test_different_keys_run_side_by_side() -> None:
    async def main() -> float:
        table = CallTable(RecordedCalls(), {})
        await asyncio.gather(*(table.once(f"{i}", site(), Maker(record(f"{i}"))) for i in range(9)))
        return asyncio.get_running_loop().time()

    assert run(main) == pytest.approx(1.0)


def test_a_made_call_waits_for_its_turn_and_a_shared_one_does_not() -> None:
    async def main() -> None:
        phases = Phases()
        models = CallTable(RecordedCalls(), {}, partial(phases.turn, "models"))
        tools = CallTable(RecordedCalls(), {}, partial(phases.turn, "tools"))
        clock = asyncio.get_running_loop().time
        began_s = clock()

        async def ended_s(table: CallTable, key: str) -> float:
            await table.once(key, site(), Maker(record(key)))
            return clock() - began_s

        uses = [(models, "a"), (tools, "b"), (models, "c"), (models, "a"), (tools, "d")]
        ends = await asyncio.gather(*(ended_s(*use) for use in uses))
        # The tools wait for the model call in flight; a model call that comes later waits for them.
        assert ends == pytest.approx([1, 2, 3, 1, 2])

    run(main)
