"""The event loop of a session, in a thread of its own, and the synchronous wait for a run on it.

The thread outlives a run, so that engines stay loaded between runs, and it lets the synchronous
door work the same from a script, a notebook or a tool.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from runtime.clock import new_event_loop
from runtime.executor import Progress
from runtime.run import RunHandle

T = TypeVar("T")
OnProgress = Callable[[Progress], None]

DRAIN_SECONDS = 5.0
"""How long an interrupted run waits for the calls in flight before it gives them up."""


class LoopThread:
    """A running event loop; `virtual` puts it on virtual time."""

    def __init__(self, *, virtual: bool) -> None:
        self._loop = new_event_loop(virtual=virtual)
        self._thread = threading.Thread(target=self._loop.run_forever, name="halo", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, or raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def run(
        self, work: Coroutine[Any, Any, T], handle: RunHandle, on_progress: OnProgress | None
    ) -> T:
        """The same for the work of a run. Ctrl-C drains the run, then gives up; `on_progress` is
        told a few times a second."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                try:
                    return future.result(timeout=0.2)
                except TimeoutError:
                    if future.done():
                        raise
                    if on_progress and handle.progress:
                        on_progress(handle.progress)
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(handle.stop)
            try:
                return future.result(timeout=DRAIN_SECONDS)
            except TimeoutError:
                future.cancel()
                with suppress(BaseException):
                    future.result(timeout=DRAIN_SECONDS)
                raise KeyboardInterrupt from None

    def close(self) -> None:
        """Stop the loop and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
