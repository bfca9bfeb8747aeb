"""Warming shared instructions, turns of tools and models, and a lane whose limit moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from costmodel.usage import Usage
from planner.logical import Column, Generate, LogicalPlan, Prompt, Ref, Result, Scan
from planner.physical import Worker, place
from planner.stats import estimate
from runtime.backends.base import Backend, Capabilities, Completion, Message, Request
from runtime.clock import new_event_loop
from runtime.lane import Lane
from runtime.phases import Phases
from runtime.warmup import shared_prefixes

LONG = "You are careful. " * 60
ROWS = [{"q": f"question {i}"} for i in range(9)]


def plan_of(*, system: str = LONG, rows: int = 9):  # type: ignore[no-untyped-def]
    scan = Scan((), "s", ("q",))
    q = Column((scan,), "q")
    first = Generate((q,), "m", Prompt((f"{LONG}First: ", Ref(0))), label="first")
    second = Generate(
        (first,), "m", Prompt(("Second: ", Ref(0))), system=Prompt((system,)), label="second"
    )
    logical = LogicalPlan((("out", Result((second, scan))),))
    stats = estimate(logical, {"s": ROWS[:rows]}, lambda text: len(text) // 4)
    worker = Worker("w", "e", "m", max_in_flight=8, prefix_cache=True)
    return place(logical, stats, {"m": worker}), stats


def test_instructions_that_rows_reach_later_are_warmed() -> None:
    plan, stats = plan_of()
    warmed = shared_prefixes(plan, stats, {"w": 500})
    # Not those of the first calls: the first row is no later than a warm-up.
    assert [(worker, [m.content for m in r.messages]) for worker, r in warmed] == [
        ("w", [LONG, "Second: "])
    ]


def test_what_does_not_pay_is_not_warmed() -> None:
    plan, stats = plan_of(system="Short.")
    assert shared_prefixes(plan, stats, {"w": 500}) == []
    plan, stats = plan_of(rows=2)
    assert shared_prefixes(plan, stats, {"w": 500}) == []
    plan, stats = plan_of()
    assert shared_prefixes(plan, stats, {}) == []


class Moving(Backend):
    """An engine whose limit the test moves."""

    name = "moving"

    def __init__(self) -> None:
        self.limit = 1
        self.changed: list[Callable[[], None]] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(max_in_flight=10)

    @property
    def in_flight_limit(self) -> int:
        return self.limit

    def on_limit_change(self, changed: Callable[[], None]) -> None:
        self.changed.append(changed)

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        return Completion("", "stop", Usage())


def test_a_lane_lets_in_as_many_as_the_engine_takes_now() -> None:
    async def main() -> None:
        engine = Moving()
        lane = Lane(engine, prime=True)
        request = Request("k", "m", (Message("user", "x"),))
        tasks = [asyncio.create_task(lane.enter(request)) for _ in range(6)]
        await asyncio.sleep(0)
        assert lane.in_flight == 1 and lane.waiting == 5
        engine.limit = 4
        engine.changed[0]()
        assert lane.in_flight == 4
        engine.limit = 2
        engine.changed[0]()
        lane.leave(await tasks[0])
        lane.release()
        assert lane.in_flight == 3 and lane.waiting == 2  # above the limit: nobody follows
        for task in tasks[1:4]:
            lane.leave(await task)
            lane.release()
        await asyncio.gather(*tasks[4:])
        assert lane.in_flight == 2

    asyncio.run(main())


def test_tools_and_models_never_overlap_and_none_starves() -> None:
    async def main() -> None:
        phases = Phases()
        inside: list[str] = []
        order: list[str] = []

        async def call(group: str) -> None:
            async with phases.turn(group):  # type: ignore[arg-type]
                inside.append(group)
                assert set(inside) == {group}
                await asyncio.sleep(1)
                inside.remove(group)
                order.append(group)

        async def many(group: str) -> None:
            for _ in range(5):
                await asyncio.gather(*(call(group) for _ in range(3)))

        await asyncio.gather(many("models"), many("tools"))
        assert order.count("tools") == order.count("models") == 15
        assert order[:6] == ["models"] * 3 + ["tools"] * 3

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        runner.run(main())
