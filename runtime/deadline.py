"""Limits in real time for work outside the event loop: threads and sockets.

Virtual time stands still while such work is under way (`Clock.outside`), so a limit on it is always
a limit in real time, under either loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from runtime.clock import Clock, VirtualEventLoop

T = TypeVar("T")


@contextlib.contextmanager
def real_timer(seconds: float, expire: Callable[[], float | None]) -> Generator[None, None, None]:
    """Call `expire` in the loop's thread when the block lasts more than `seconds` of real time, and
    again after as many seconds as it returns, if it does."""
    loop = asyncio.get_running_loop()
    over = False
    cancel: list[Callable[[], object]] = []  # the timer that runs

    def fire() -> None:
        if not over and (more_s := expire()) is not None:
            start(more_s)

    def fire_from_thread() -> None:
        # The loop may have been closed since.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(fire)

    def start(seconds: float) -> None:
        if isinstance(loop, VirtualEventLoop):
            timer = threading.Timer(seconds, fire_from_thread)
            timer.daemon = True
            timer.start()
            cancel[:] = [timer.cancel]
        else:
            cancel[:] = [loop.call_later(seconds, fire).cancel]

    start(seconds)
    try:
        yield
    finally:
        over = True
        for each in cancel:
            each()


async def finish_within(
    work: Coroutine[Any, Any, T], seconds: float, clock: Clock, late: Callable[[], Exception]
) -> T:
    """The result of `work`, which waits for something outside the loop; after `seconds` of real
    time `work` is cancelled and `late()` raised."""
    task = asyncio.ensure_future(work)
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = task.cancel()

    with clock.outside(), real_timer(seconds, expire):
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if expired and not (current and current.cancelling()):
                raise late() from None
            raise
