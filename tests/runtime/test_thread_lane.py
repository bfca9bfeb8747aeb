"""Functions in a queue in front of threads: order, limits, time limits, and what is given up."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tool_desk import Desk, pure, run

from runtime import threads
from runtime.thread_lane import NoThreadError, ThreadLane
from runtime.tool_slots import MOST_AHEAD, ToolSlots


def late() -> Exception:
    return TimeoutError("late")


def test_functions_run_in_order_and_as_many_at_once_as_there_are_threads() -> None:
    running = peak = 0
    lock = threading.Lock()
    order: list[int] = []
    both = threading.Barrier(2, timeout=10)

    def work(i: int) -> int:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
            order.append(i)
        both.wait()
        with lock:
            running -= 1
        return i

    async def main() -> list[int]:
        lane = ThreadLane(2, "lane")
        return await asyncio.gather(*(lane.run(lambda i=i: work(i), 30, late) for i in range(6)))

    assert run(main, virtual=False) == list(range(6))
    assert peak == 2
    assert [sorted(order[i : i + 2]) for i in (0, 2, 4)] == [[0, 1], [2, 3], [4, 5]]


def test_one_thread_does_what_waits_without_the_loop_in_between() -> None:
    gate, last = threading.Event(), threading.Event()
    seen: set[int] = set()

    def note() -> None:
        seen.add(threading.get_ident())

    async def main() -> None:
        lane = ThreadLane(1, "lane")
        functions = [lambda: gate.wait(10), *[note] * 50, last.set]
        waits = [asyncio.ensure_future(lane.run(each, 30, late)) for each in functions]
        await asyncio.sleep(0)
        gate.set()
        assert last.wait(10)  # the loop stands still meanwhile
        await asyncio.gather(*waits)

    run(main, virtual=False)
    assert len(seen) == 1


@pytest.mark.parametrize("virtual", [False, True])
def test_time_in_the_queue_does_not_count_and_a_hung_function_gives_its_place_up(
    virtual: bool,
) -> None:
    forever = threading.Event()

    async def main() -> None:
        lane = ThreadLane(1, "lane")
        clock = asyncio.get_running_loop()
        hung = asyncio.ensure_future(lane.run(forever.wait, 0.1, late))
        # It starts only when the hung one has been given up, after its own limit has passed.
        after = asyncio.ensure_future(lane.run(lambda: 7, 0.05, late))
        if virtual:
            clock.hold()  # type: ignore[attr-defined]
        with pytest.raises(TimeoutError, match="late"):
            await hung
        assert await after == 7
        if virtual:
            clock.release()  # type: ignore[attr-defined]

    run(main, virtual)
    forever.set()


def test_a_cancelled_wait_leaves_the_queue_or_its_thread() -> None:
    begun, gate = threading.Event(), threading.Event()
    ran: list[str] = []

    def wait() -> None:
        begun.set()
        gate.wait(10)

    async def main() -> None:
        lane = ThreadLane(1, "lane")
        started = asyncio.ensure_future(lane.run(wait, 30, late))
        queued = asyncio.ensure_future(lane.run(lambda: ran.append("queued"), 30, late))
        await asyncio.sleep(0)
        assert begun.wait(10)
        queued.cancel()
        started.cancel()
        for each in (queued, started):
            with pytest.raises(asyncio.CancelledError):
                await each
        assert await lane.run(lambda: "next", 30, late) == "next"

    run(main, virtual=False)
    gate.set()
    assert not ran


def test_what_a_function_raises_is_raised() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def main() -> None:
        with pytest.raises(ValueError, match="no"):
            await ThreadLane(1, "lane").run(fail, 30, late)

    run(main, virtual=False)


def test_without_threads_all_that_wait_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        lane = ThreadLane(1, "lane")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            patch.setattr(threads, "_idle", [])
            for _ in range(2):
                with pytest.raises(NoThreadError):
                    await lane.run(lambda: 1, 30, late)
        assert await lane.run(lambda: 2, 30, late) == 2

    run(main, virtual=False)


def test_short_calls_get_more_places_and_lose_them_when_they_become_long() -> None:
    async def taken(slots: ToolSlots) -> int:
        """How many calls find a place at once."""
        calls = [asyncio.ensure_future(slots.acquire()) for _ in range(2 * MOST_AHEAD)]
        await asyncio.sleep(0)
        n = sum(call.done() for call in calls)
        for call in calls[n:]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return n

    async def main() -> None:
        slots = ToolSlots(4)
        slots.took(1e-6)
        assert await taken(slots) == 4 + MOST_AHEAD
        for _ in range(64):
            slots.took(1.0)
        for _ in range(4 + MOST_AHEAD):
            slots.release()
        assert await taken(slots) == 4

    run(main)


def test_a_thousand_short_calls_are_recorded_with_their_own_times() -> None:
    async def main() -> None:
        desk = Desk(pure(lambda x: x + 1, max_concurrency=2))
        records = await asyncio.gather(*(desk.call("f", x=x) for x in range(1000)))
        assert [r.value for r in records] == [x + 1 for x in range(1000)]
        assert all(r.queued_s <= r.start_s <= r.end_s for r in records)

    run(main, virtual=False)
