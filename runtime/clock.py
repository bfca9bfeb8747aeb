"""Time behind one seam: the loop's clock, real or virtual. Nothing else reads a clock.

Under the virtual loop a wait costs no real time: when every task waits for a timer, the loop moves
its clock to the next timer. It stands still while real work is under way (`Clock.outside`, and any
call in an executor), because how long that takes is no property of the simulation.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar, TypeVarTuple

_Ts = TypeVarTuple("_Ts")
_T = TypeVar("_T")


class Clock(Protocol):
    """Seconds of a run. Virtual time stands still while real work (`outside`) is under way."""

    def now_s(self) -> float:
        """Seconds on a monotonic clock."""
        ...

    def sleep_s(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Wait; under virtual time this takes no real time."""
        ...

    def outside(self) -> AbstractContextManager[None]:
        """Hold while a thread or socket works for us, so that virtual time waits for it."""
        ...


class LoopClock:
    """The clock of an event loop: of `loop`, or of the running one when it is not given.

    Enter and leave `outside` in the loop's thread: around the await, not inside the thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop

    def now_s(self) -> float:
        return (self._loop or asyncio.get_running_loop()).time()

    def sleep_s(self, seconds: float) -> Coroutine[Any, Any, None]:
        return asyncio.sleep(seconds)

    def outside(self) -> AbstractContextManager[None]:
        loop = self._loop or asyncio.get_running_loop()
        return _Held(loop) if isinstance(loop, VirtualEventLoop) else contextlib.nullcontext()


class _Held(AbstractContextManager[None]):
    """Virtual time stands still inside."""

    def __init__(self, loop: VirtualEventLoop) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        self._loop.hold()

    def __exit__(self, *exception: object) -> None:
        self._loop.release()


class VirtualEventLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and moves only when every task waits for a timer.

    While work is held (`hold`), timers do not fire: a timeout on a thread that never answers needs
    the real loop. With neither timers nor work left, the loop blocks as asyncio's own does.
    """

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    def hold(self) -> None:
        """Stop time until as many calls of `release`; call it in the loop's thread."""
        self._virtual.held += 1

    def release(self) -> None:
        """Undo one `hold`; call it in the loop's thread."""
        self._virtual.held -= 1

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*_Ts], _T],
        *args: *_Ts,
    ) -> asyncio.Future[_T]:
        future = super().run_in_executor(executor, func, *args)
        self.hold()
        future.add_done_callback(lambda _: self.release())
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        # Threads end in real time, so a limit in virtual time would pass at once.
        self.hold()
        try:
            await super().shutdown_default_executor()
        finally:
            self.release()


class _VirtualSelector(selectors.DefaultSelector):
    """A selector that takes waiting for a timer as the sign to move time to that timer."""

    now_s = 0.0
    held = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select()
        if timeout <= 0:
            # Callbacks are ready. If the loop's own pipe is all that it watches, the system has
            # nothing to tell: what wakes the loop up is among those callbacks already. Most turns
            # of a simulation are like this, so the system call is worth leaving out.
            return [] if len(self.get_map()) == 1 else super().select(timeout)
        if self.held:
            return super().select(None)
        events = super().select(0)
        if not events:
            self.now_s += timeout
        return events


def new_event_loop(virtual: bool) -> asyncio.AbstractEventLoop:
    """A loop on virtual time (starting at 0), or the platform's own."""
    return VirtualEventLoop() if virtual else asyncio.new_event_loop()


def utc_now() -> str:
    """The time of day as ISO 8601 text, for people; nothing computes with it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def wall_s() -> float:
    """Seconds on the machine's monotonic clock, whatever clock the run is on."""
    return time.perf_counter()


def process_cpu_s() -> float:
    """Processor seconds that this process has used so far, all threads together."""
    return time.process_time()
