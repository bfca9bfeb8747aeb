"""When calls of a small model wait for each other, and when they do not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from runtime.backends.base import Capabilities, Message, Request
from runtime.backends.simulated import SimulatedBackend
from runtime.clock import LoopClock, new_event_loop
from runtime.gathering import FULL, MOST_S, SHARE, Gathering
from runtime.lane import Lane

T = TypeVar("T")
LARGE_S, SMALL_S = 10.0, 0.01
WAIT_S = SHARE * SMALL_S


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        return runner.run(main())


def lane(slots: int = 256, *, gathers: bool = True) -> Lane:
    clock = LoopClock()
    engine = SimulatedBackend("m", clock, capabilities=Capabilities(slots, gathers=gathers))
    return Lane(engine, clock, prime=False)


def beside(*lanes: Lane) -> None:
    for one in lanes:
        gathering_of(one).beside([gathering_of(o) for o in lanes if o is not one])


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
    if way.gathering is not None:
        way.gathering.took(takes_s)
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
    in_large: int, large_s: float = LARGE_S, *, slots: int = 256, gathers: bool = True
) -> list[float]:
    """Of the small model's calls, while the large one has `in_large` of its own; since then."""
    large, small = lane(), lane(slots, gathers=gathers)
    if gathers:
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
        pytest.param(lambda: starts(FULL, gathers=False), id="the engine gains nothing by it"),
    ],
)
def test_they_go_at_once_otherwise(alone: Callable[[], Coroutine[Any, Any, list[float]]]) -> None:
    assert run(alone) == AT_ONCE


def test_before_both_models_are_known_nobody_waits() -> None:
    async def main() -> list[float]:
        large, small = lane(), lane()
        beside(large, small)
        busy = [asyncio.ensure_future(call(large, LARGE_S)) for _ in range(FULL)]
        await asyncio.sleep(0)
        begun = await trickle(small)
        await asyncio.gather(*busy)
        return begun

    assert run(main) == AT_ONCE


def test_they_go_as_soon_as_the_large_model_has_little_to_do() -> None:
    async def main() -> float:
        large, small = lane(), lane()
        beside(large, small)
        origin_s = await known(large, small)
        busy = [call(large, 0.03)] + [call(large, LARGE_S) for _ in range(FULL - 1)]
        tasks = [asyncio.ensure_future(each) for each in busy]
        await asyncio.sleep(0)
        gathering_of(large).shortest_s = LARGE_S
        start_s = await call(small, SMALL_S, 0.01)
        await asyncio.gather(*tasks)
        return start_s - origin_s

    assert run(main) == pytest.approx(0.03)


def test_a_small_model_with_calls_enough_takes_more_at_once() -> None:
    async def main() -> list[float]:
        large, small = lane(), lane()
        beside(large, small)
        origin_s = await known(large, small)
        busy = [asyncio.ensure_future(call(large, LARGE_S)) for _ in range(FULL)]
        await asyncio.sleep(0)
        # They wait, and then go together: from now on the small model is busy.
        burst = [asyncio.ensure_future(call(small, 1.0)) for _ in range(FULL)]
        begun = [
            start_s - origin_s
            for start_s in await asyncio.gather(
                *(call(small, SMALL_S, WAIT_S + 0.02 * (i + 1)) for i in range(10))
            )
        ]
        await asyncio.gather(*busy, *burst)
        return begun

    assert run(main) == [pytest.approx(WAIT_S + 0.02 * (i + 1)) for i in range(10)]


def test_nobody_waits_longer_than_is_allowed() -> None:
    async def main() -> float:
        large, small = lane(), lane()
        beside(large, small)
        origin_s = await known(large, small, 100.0)
        gathering_of(small).shortest_s = 1.0
        busy = [asyncio.ensure_future(call(large, 100.0)) for _ in range(FULL)]
        await asyncio.sleep(0)
        start_s = await call(small, SMALL_S)
        await asyncio.gather(*busy)
        return start_s - origin_s

    assert run(main) == pytest.approx(MOST_S)


def test_what_waits_for_a_slot_goes_on_when_the_slot_is_free() -> None:
    """With fewer slots than calls in a burst, the rest of it does not gather once more."""

    async def main() -> list[float]:
        large, small = lane(), lane(2)
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
        large, small = lane(), lane()
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
