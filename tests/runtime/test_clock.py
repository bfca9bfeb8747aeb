"""Virtual time: waits cost nothing, real work holds it, order is the order of the timers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from runtime.clock import LoopClock, new_event_loop

T = TypeVar("T")
Main = Callable[[LoopClock], Coroutine[Any, Any, T]]


def run(main: Main[T], *, virtual: bool = True) -> T:
    with asyncio.Runner(loop_factory=lambda: new_event_loop(virtual)) as runner:
        return runner.run(main(LoopClock()))


def test_an_hour_of_waiting_takes_no_real_time() -> None:
    async def main(clock: LoopClock) -> tuple[float, float]:
        real = asyncio.new_event_loop()
        start_s = real.time()
        for _ in range(3700):
            await clock.sleep_s(1.0)
        elapsed_s = real.time() - start_s
        real.close()
        return clock.now_s(), elapsed_s

    simulated_s, real_s = run(main)
    assert simulated_s == pytest.approx(3700)
    assert real_s < 10


def test_waits_end_in_the_order_of_their_times_every_time() -> None:
    async def main(clock: LoopClock) -> list[tuple[float, int]]:
        ended: list[tuple[float, int]] = []

        async def wait(number: int) -> None:
            for step in range(3):
                await clock.sleep_s((number * 7 + step * 3) % 5)
                ended.append((clock.now_s(), number))

        await asyncio.gather(*(wait(n) for n in range(20)))
        return ended

    first = run(main)
    assert first == sorted(first, key=lambda e: e[0])
    assert first == run(main)


def test_time_stands_still_while_outside_work_is_held() -> None:
    async def main(clock: LoopClock) -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        other = asyncio.create_task(clock.sleep_s(50.0))

        def work() -> None:
            loop.call_soon_threadsafe(told.set)

        with clock.outside():
            timer = asyncio.create_task(clock.sleep_s(5.0))
            thread = threading.Thread(target=work)
            thread.start()
            await told.wait()
            thread.join()
            during_s = clock.now_s()
        await timer
        await other
        return during_s, clock.now_s()

    assert run(main) == (0.0, 50.0)


def test_a_call_in_an_executor_holds_time_by_itself() -> None:
    release = threading.Event()

    async def main(clock: LoopClock) -> float:
        wait = asyncio.create_task(clock.sleep_s(1.0))
        call = asyncio.create_task(asyncio.to_thread(release.wait))
        for _ in range(5):
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(release.set)
        await call
        at_s = clock.now_s()
        await wait
        return at_s

    assert run(main) == 0.0


def test_timeouts_follow_virtual_time() -> None:
    async def main(clock: LoopClock) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return clock.now_s()

    assert run(main) == pytest.approx(3600)


def test_nested_holds_release_one_by_one() -> None:
    async def main(clock: LoopClock) -> list[float]:
        seen: list[float] = []
        loop = asyncio.get_running_loop()
        with clock.outside():
            with clock.outside():
                pass
            timer = asyncio.create_task(clock.sleep_s(9.0))
            done = asyncio.Event()
            threading.Timer(0.0, lambda: loop.call_soon_threadsafe(done.set)).start()
            await done.wait()
            seen.append(clock.now_s())
        await timer
        seen.append(clock.now_s())
        return seen

    assert run(main) == [0.0, 9.0]


def test_the_real_loop_keeps_the_real_clock() -> None:
    async def main(clock: LoopClock) -> bool:
        before_s = clock.now_s()
        with clock.outside():
            await clock.sleep_s(0)
        return before_s > 0 and clock.now_s() >= before_s

    assert run(main, virtual=False)
