"""The simulator against the runtime: the executor on virtual time, engines that take single steps.

The engines admit, prefill and decode step by step on the run's clock, with the simulator's timer;
dispatch, priorities, sharing of rows and back-pressure are the runtime's own. Makespans agree
within 8 %: the runtime hands its calls over one at a time, the simulator a batch at a time.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from costmodel.simulator import (
    AffineTimer,
    Assignment,
    EngineSpec,
    Machine,
    ModelWork,
    Operation,
    PromptPart,
    WorkerSpec,
    Workload,
    simulate,
)
from costmodel.usage import OpMetrics
from planner.errors import InvariantError
from planner.logical import Column, Generate, LogicalPlan, Op, Prompt, Ref, Result, Scan
from planner.physical import PhysicalPlan, Worker, place
from planner.stats import estimate
from runtime.backends.base import Completion, Request
from runtime.backends.simulated import SimulatedBackend, describe
from runtime.clock import Clock, LoopClock, new_event_loop
from runtime.dispatch import Dispatcher
from runtime.executor import Executor
from runtime.memory_store import MemoryStore
from runtime.placement import Observed, Placement
from runtime.sharing import CallTable
from runtime.sql_tool import Databases
from runtime.tool_runner import ToolRunner

T = TypeVar("T")
TIMER = AffineTimer(per_prefill_token_s=2e-4, decode_s=0.02, per_request_s=2e-4)
SLOTS = 8
ROWS = 48
ANSWER_TOKENS = 12
TOLERANCE = 0.08


class SteppedBackend(SimulatedBackend):
    """The simulated engine's answers at the pace of a batching engine."""

    def __init__(self, clock: Clock, timer: AffineTimer = TIMER) -> None:
        offered = describe(SLOTS, prefix_cache=False)
        super().__init__("m", clock, capabilities=offered, latency=False)
        self._own_clock = clock
        self._timer = timer
        self._waiting: list[tuple[int, int, int, int, asyncio.Future[None]]] = []
        self._loop_task: asyncio.Task[None] | None = None
        self._number = 0

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        completion = await super().generate(request, on_prefilled)
        done = asyncio.get_running_loop().create_future()
        self._number += 1
        usage = completion.usage
        heapq.heappush(
            self._waiting,
            (request.priority, self._number, usage.input_tokens, usage.output_tokens, done),
        )
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.ensure_future(self._steps())
        await done
        return completion

    async def _steps(self) -> None:
        running: list[tuple[int, asyncio.Future[None]]] = []
        await self._own_clock.sleep_s(0)
        while self._waiting or running:
            tokens = 0
            admitted: list[tuple[int, asyncio.Future[None]]] = []
            while self._waiting and len(running) + len(admitted) < SLOTS:
                _, _, prompt, answer, done = heapq.heappop(self._waiting)
                tokens += prompt
                admitted.append((answer, done))
            if admitted:
                await self._own_clock.sleep_s(self._timer.step_s(tokens, 0, 0, 0))
                running += admitted
            else:
                await self._own_clock.sleep_s(self._timer.step_s(0, 0, len(running), 0))
                running = [(left - 1, done) for left, done in running]
            for left, done in running:
                if left <= 0 and not done.done():
                    done.set_result(None)
            running = [(left, done) for left, done in running if left > 0]
            # Whoever was answered may ask again before the next step.
            for _ in range(12):
                await self._own_clock.sleep_s(0)


def diamond() -> LogicalPlan:
    """Four calls: one, two that read it, one that reads both."""
    scan = Scan((), "rows", ("q",))
    q = Column((scan,), "q")
    first = _gen("first", q)
    left, right = _gen("left", first, q), _gen("right", first, q)
    return LogicalPlan((("query", Result((_gen("last", left, right), scan))),))


def _gen(name: str, *inputs: Op) -> Generate:
    segments = (f"{name} ", *(Ref(i) for i in range(len(inputs))))
    return Generate(inputs, "m", Prompt(segments), label=name, max_tokens=ANSWER_TOKENS)


def rows(n: int) -> list[dict[str, Any]]:
    return [{"q": f"question {i:04d} about something that takes a few words to say"}
            for i in range(n)]  # fmt: skip


def workers(n: int) -> dict[str, Worker]:
    return {f"w{i}": Worker(f"w{i}", "simulated", "m", SLOTS) for i in range(n)}


def plan_for(logical: LogicalPlan, n_rows: int, names: Mapping[str, Worker]) -> PhysicalPlan:
    """Rows in equal runs over the workers."""
    stats = estimate(logical, {"rows": rows(n_rows)}, lambda text: len(text) // 4)
    physical = place(logical, stats, {"m": names["w0"]})
    n = len(names)
    runs = tuple((name, n_rows * (i + 1) // n - n_rows * i // n) for i, name in enumerate(names))
    shares = dict.fromkeys(physical.placements, runs) if n > 1 else {}
    return replace(
        physical, shares=shares, workers=tuple(names.values()), rows_in_flight=10 * n_rows
    )


def virtually(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        return runner.run(main())


def execute(
    physical: PhysicalPlan,
    n_rows: int,
    *,
    slow: Mapping[str, float] | None = None,
    steal: bool = False,
    replan: Callable[[Observed], PhysicalPlan | None] | None = None,
) -> tuple[float, dict[str, OpMetrics], dict[str, int], list[Any]]:
    """Makespan, metrics, requests by worker and outcomes of a run on virtual time."""

    async def main() -> tuple[float, dict[str, OpMetrics], dict[str, int], list[Any]]:
        clock = LoopClock()
        engines = {
            w.name: SteppedBackend(clock, TIMER.scaled((slow or {}).get(w.name, 1.0)))
            for w in physical.workers
        }
        store, metrics = MemoryStore(), dict[str, OpMetrics]()
        table = CallTable(store, metrics)
        databases = Databases(None)
        dispatcher = Dispatcher(engines, table, store, clock)
        tools = ToolRunner({}, databases, table, store, clock)
        executor = Executor(
            physical,
            dispatcher=dispatcher,
            tools=tools,
            tool_schemas={},
            store=store,
            clock=clock,
            metrics=metrics,
            replan=replan,
            load=dispatcher.load if steal else None,
        )
        outcomes = await executor.run({"rows": rows(n_rows)})
        seen = {name: engine.requests_seen for name, engine in engines.items()}
        return clock.now_s(), metrics, seen, outcomes["query"]

    return virtually(main)


def simulated(physical: PhysicalPlan, metrics: Mapping[str, OpMetrics], n_rows: int) -> float:
    """The same run in the simulator, with the mean lengths that were measured."""
    ops = [op for op in physical.logical.walk() if isinstance(op, Generate)]
    index = {op: i for i, op in enumerate(ops)}
    operations: list[Operation] = []
    for op in ops:
        m = metrics[op.fingerprint]
        part = PromptPart(op.label, round(m.usage.input_tokens / m.made), True)
        work = ModelWork("m", (part,), round(m.usage.output_tokens / m.made))
        inputs = tuple(index[i] for i in op.inputs if isinstance(i, Generate))
        operations.append(Operation(op.label, work, inputs))
    workload = Workload(tuple(operations), (1,) * n_rows)
    spec = EngineSpec(TIMER, 0.0, 0.0, max_running=SLOTS, chunk_tokens=10**6)
    machine = Machine(tuple(WorkerSpec(w.name, {"m": spec}, 1.0, ("m",)) for w in physical.workers))
    n = len(machine.workers)
    worker = [row * n // n_rows for _ in operations for row in range(n_rows)]
    stride = max(physical.priority.values()) + 1
    priority = [
        float(row * stride + physical.priority[op.fingerprint])
        for op in ops
        for row in range(n_rows)
    ]
    return simulate(workload, machine, Assignment(worker, priority)).makespan_s


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_makespans_agree(n_workers: int) -> None:
    physical = plan_for(diamond(), ROWS, workers(n_workers))
    makespan_s, metrics, requests, outcomes = execute(physical, ROWS)
    assert len(outcomes) == ROWS
    assert all(outcome.error is None for outcome in outcomes)
    assert sum(requests.values()) == 4 * ROWS
    assert all(n >= ROWS for n in requests.values())
    assert simulated(physical, metrics, ROWS) == pytest.approx(makespan_s, rel=TOLERANCE)


def test_answers_do_not_depend_on_the_placement() -> None:
    one = execute(plan_for(diamond(), 24, workers(1)), 24)[3]
    three = execute(plan_for(diamond(), 24, workers(3)), 24, steal=True)[3]
    assert [o.value for o in one] == [o.value for o in three]


def test_rows_of_a_straggler_go_to_idle_workers() -> None:
    physical = plan_for(diamond(), ROWS, workers(2))
    # Rows under way are few enough that the workers' queues stay short.
    physical = replace(physical, rows_in_flight=4 * SLOTS)
    alone_s, _, before, _ = execute(physical, ROWS, slow={"w1": 5.0})
    helped_s, _, after, outcomes = execute(physical, ROWS, slow={"w1": 5.0}, steal=True)
    assert len(outcomes) == ROWS
    assert after["w1"] < before["w1"]
    assert sum(after.values()) == sum(before.values())
    assert helped_s < 0.8 * alone_s


def test_a_new_plan_moves_the_rows_that_have_not_started() -> None:
    physical = plan_for(diamond(), ROWS, workers(2))
    first = dict.fromkeys(physical.placements, (("w0", ROWS), ("w1", 0)))
    physical = replace(physical, shares=first, rows_in_flight=SLOTS)
    looks: list[Observed] = []

    def replan(seen: Observed) -> PhysicalPlan | None:
        looks.append(seen)
        if len(looks) > 1:
            return None
        later = dict.fromkeys(physical.placements, (("w0", seen.rows_started), ("w1", ROWS)))
        return replace(physical, shares=later)

    _, _, requests, outcomes = execute(physical, ROWS, replan=replan)
    assert len(outcomes) == ROWS
    assert [o.row_index for o in outcomes] == list(range(ROWS))
    assert looks[0].rows_ended == 32
    assert looks[0].rows_total == ROWS
    assert requests["w0"] == 4 * looks[0].rows_started
    assert requests["w1"] == 4 * (ROWS - looks[0].rows_started)


def test_a_block_of_rows_goes_operator_by_operator() -> None:
    physical = plan_for(diamond(), 24, workers(1))
    ops = sorted(physical.placements, key=lambda op: physical.priority[op])
    for block, by_operator in ((1, False), (24, True), (4, True)):
        placement = Placement(replace(physical, row_block=block))

        def key(op: str, row: int, placement: Placement = placement) -> int:
            return placement.row_priority(row) + placement.priority(op)

        # Within a block the first operator of row 3 goes before the last one of row 0, or not.
        assert (key(ops[0], 3) < key(ops[-1], 0)) is by_operator
        keys = [key(op, row) for op in ops for row in range(24)]
        ranks = len({physical.priority[op] for op in ops})
        assert len(set(keys)) == ranks * 24
        assert key(ops[0], 23) > key(ops[0], 0)


def test_a_placement_refuses_the_plan_of_other_operators_and_unknown_workers() -> None:
    physical = plan_for(diamond(), 24, workers(2))
    placement = Placement(physical)
    scan = Scan((), "rows", ("q",))
    other = LogicalPlan((("query", Result((_gen("x", Column((scan,), "q")), scan))),))
    with pytest.raises(InvariantError, match="other operators"):
        placement.update(plan_for(other, 24, workers(2)))
    with pytest.raises(InvariantError, match="not open"):
        placement.update(plan_for(diamond(), 24, workers(3)))
