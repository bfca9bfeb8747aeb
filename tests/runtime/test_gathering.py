"""When calls of a small model wait for each other, and when they do not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from runtime.backends.base import Capabilities, Message, Request
from runtime.backends.simulated import SimulatedBackend
from runtime.clock import LoopClock, new_event_loop
from runtime.dispatch import Dispatcher
from runtime.gathering import FULL, MOST_S, SHARE, Gathering
from runtime.lane import Lane
from runtime.memory_store import MemoryStore
from runtime.records import CallRecord, CallSite
from runtime.sharing import CallTable

T = TypeVar("T")
ANSWER = 10
"""Tokens of every answer."""
LARGE_S, SMALL_S = 10.0, 0.01
WAIT_S = SHARE * SMALL_S


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        return runner.run(main())


def lane(model: str, slots: int = 1024) -> Lane:
    clock = LoopClock()
    name, _, machine = model.partition("@")
    offered = Capabilities(slots, machine=machine or "here")
    way = Lane(SimulatedBackend(name, clock, capabilities=offered), prime=False)
    way.gather(name, clock)
    return way


def beside(*lanes: Lane) -> None:
    for one in lanes:
        gathering_of(one).beside([gathering_of(other) for other in lanes])


def gathering_of(one: Lane) -> Gathering:
    assert one.gathering is not None
    return one.gathering


async def call(way: Lane, takes_s: float, after_s: float = 0.0) -> float:
    """A call that comes `after_s`. When it went into the engine."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(after_s)
    ticket = await way.enter(Request("", "m", (Message("user", "q"),)))
    start_s = loop.time()
    await asyncio.sleep(takes_s)
    gathering_of(way).took(takes_s, ANSWER)
    way.leave(ticket)
    way.release()
    return start_s


async def known(large: Lane, small: Lane, large_s: float = LARGE_S) -> float:
    """Both models have answered once. What time it is."""
    await asyncio.gather(call(large, large_s), call(small, SMALL_S))
    return asyncio.get_running_loop().time()


async def trickle(small: Lane, count: int = 60, every_s: float = 0.02) -> list[float]:
    """When calls that come one by one went into the engine."""
    return await asyncio.gather(*(call(small, SMALL_S, i * every_s) for i in range(count)))


async def starts(
    in_large: int, large_s: float = LARGE_S, *, models: tuple[str, str] = ("large", "small")
) -> list[float]:
    """Of the small model's calls, while the large one has `in_large` of its own; since then."""
    large, small = map(lane, models)
    beside(large, small)
    origin_s = await known(large, small, large_s)
    busy = [asyncio.ensure_future(call(large, large_s)) for _ in range(in_large)]
    await asyncio.sleep(0)
    begun = [start_s - origin_s for start_s in await trickle(small)]
    await asyncio.gather(*busy)
    return begun


AT_ONCE = [pytest.approx(i * 0.02) for i in range(60)]


def test_they_go_in_bursts_while_a_large_model_is_busy() -> None:
    begun = run(lambda: starts(FULL))
    bursts = sorted({round(start_s, 6) for start_s in begun})
    # A burst has what came within the wait: 0.1 s at one call every 0.02 s.
    assert len(bursts) == pytest.approx(60 / (WAIT_S / 0.02), abs=2)
    waits = [start_s - i * 0.02 for i, start_s in enumerate(begun)]
    assert max(waits) == pytest.approx(WAIT_S) and min(waits) >= 0


@pytest.mark.parametrize(
    "alone",
    [
        pytest.param(lambda: starts(FULL - 1), id="the large model has few calls"),
        pytest.param(lambda: starts(FULL, SMALL_S * 1.5), id="the other model is no larger"),
        pytest.param(lambda: starts(FULL, models=("m", "m")), id="it is the same model"),
        pytest.param(lambda: starts(FULL, models=("l@a", "s@b")), id="it is on another machine"),
    ],
)
def test_they_go_at_once_otherwise(alone: Callable[[], Coroutine[Any, Any, list[float]]]) -> None:
    assert run(alone) == AT_ONCE


def test_before_both_models_are_known_nobody_waits() -> None:
    async def main() -> list[float]:
        large, small = lane("large"), lane("small")
        beside(large, small)
        busy = [asyncio.ensure_future(call(large, LARGE_S)) for _ in range(FULL)]
        await asyncio.sleep(0)
        begun = await trickle(small)
        await asyncio.gather(*busy)
        return begun

    assert run(main) == AT_ONCE


def test_they_go_as_soon_as_the_large_model_has_little_to_do() -> None:
    async def main() -> float:
        large, small = lane("large"), lane("small")
        beside(large, small)
        origin_s = await known(large, small)
        busy = [call(large, LARGE_S / 5)] + [call(large, LARGE_S) for _ in range(FULL - 1)]
        tasks = [asyncio.ensure_future(each) for each in busy]
        await asyncio.sleep(0)
        start_s = await call(small, SMALL_S, LARGE_S / 5 - WAIT_S / 2)
        await asyncio.gather(*tasks)
        return start_s - origin_s

    assert run(main) == pytest.approx(LARGE_S / 5)


@pytest.mark.parametrize("in_engine", [0, FULL // 2])
def test_they_go_when_there_are_enough_of_them(in_engine: int) -> None:
    async def main() -> list[float]:
        large, small = lane("large"), lane("small")
        beside(large, small)
        await known(large, small)
        under_way = [asyncio.ensure_future(call(small, LARGE_S)) for _ in range(in_engine)]
        await asyncio.sleep(0)
        busy = [asyncio.ensure_future(call(large, LARGE_S)) for _ in range(FULL)]
        await asyncio.sleep(0)
        origin_s = asyncio.get_running_loop().time()
        enough = FULL - in_engine
        first = [asyncio.ensure_future(call(small, SMALL_S)) for _ in range(enough - 1)]
        last = asyncio.ensure_future(call(small, SMALL_S, WAIT_S / 2))
        begun = await asyncio.gather(*first, last)
        await asyncio.gather(*busy, *under_way)
        return [start_s - origin_s for start_s in begun]

    assert run(main) == [pytest.approx(WAIT_S / 2)] * (FULL - in_engine)


def test_nobody_waits_longer_than_is_allowed() -> None:
    async def main() -> float:
        large, small = lane("large"), lane("small")
        beside(large, small)
        origin_s = await known(large, small, 100.0)
        # Answers are long on the mean.
        gathering_of(small).took(1e6, 1000 * ANSWER)
        busy = [asyncio.ensure_future(call(large, 100.0)) for _ in range(FULL)]
        await asyncio.sleep(0)
        start_s = await call(small, SMALL_S)
        await asyncio.gather(*busy)
        return start_s - origin_s

    assert run(main) == pytest.approx(MOST_S)


def test_what_waits_for_a_slot_goes_on_when_the_slot_is_free() -> None:
    """With fewer slots than calls in a burst, the rest of it does not gather once more."""

    async def main() -> list[float]:
        large, small = lane("large"), lane("small", 2)
        beside(large, small)
        origin_s = await known(large, small)
        busy = [asyncio.ensure_future(call(large, LARGE_S)) for _ in range(FULL)]
        await asyncio.sleep(0)
        begun = await asyncio.gather(*(call(small, SMALL_S) for _ in range(6)))
        await asyncio.gather(*busy)
        return [start_s - origin_s for start_s in begun]

    expected = [WAIT_S + SMALL_S * (i // 2) for i in range(6)]
    assert run(main) == [pytest.approx(start_s) for start_s in expected]


def test_closing_ends_the_wait() -> None:
    async def main() -> None:
        large, small = lane("large"), lane("small")
        beside(large, small)
        await known(large, small)
        busy = [asyncio.ensure_future(call(large, LARGE_S)) for _ in range(FULL)]
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(call(small, SMALL_S))
        await asyncio.sleep(0)
        small.refuse(lambda: RuntimeError("over"))
        await gathering_of(small).close()
        with pytest.raises(RuntimeError, match="over"):
            await waiting
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


def engine(takes_s: float, machine: str) -> SimulatedBackend:
    """Its calls take about `takes_s` each."""
    return SimulatedBackend(
        "m", LoopClock(), capabilities=Capabilities(1024, machine=machine),
        prefill_s_per_token=0.0, decode_s_per_step=takes_s / ANSWER, answer_tokens=ANSWER,
    )  # fmt: skip


@pytest.mark.parametrize(("asked", "machine"), [(True, "here"), (False, "here"), (True, "")])
def test_a_run_gathers_where_that_is_wanted_and_the_engine_gains_by_it(
    asked: bool, machine: str
) -> None:
    async def main() -> list[CallRecord]:
        engines = {"large": engine(LARGE_S, machine), "small": engine(SMALL_S, machine)}
        store = MemoryStore()
        dispatcher = Dispatcher(
            engines, CallTable(store, {}), store, LoopClock(),
            gather={"large": "l", "small": "s"} if asked else None,
        )  # fmt: skip

        async def ask(worker: str, number: int, after_s: float = 0.0) -> None:
            await asyncio.sleep(after_s)
            request = Request("", worker, (Message("user", f"{worker} {number}"),))
            site = CallSite(worker, "q", number, f"row{number}", label="step")
            await dispatcher.complete(worker, request, site)

        await asyncio.gather(ask("large", 0), ask("small", 0))
        await asyncio.gather(
            *(ask("large", i + 1) for i in range(FULL)),
            *(ask("small", i + 1, 0.02 * i) for i in range(60)),
        )
        await dispatcher.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return [record for record in store.calls if record.op == "small"]

    known_call, *calls = run(main)
    assert len(calls) == 60
    waits = [record.start_s - record.queued_s for record in calls]
    wait_s = SHARE * (known_call.end_s - known_call.start_s) if asked and machine else 0.0
    assert max(waits) == pytest.approx(wait_s)
    # A burst has what comes within the wait, one call every 0.02 s.
    bursts = len({round(record.start_s, 6) for record in calls})
    assert bursts == pytest.approx(60 / max(1.0, wait_s / 0.02), abs=2)
