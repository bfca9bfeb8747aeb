"""Daemon threads for functions that block, used again when a function has ended.

No pool with a number of places: a function that never ends cannot be killed, and keeps its thread;
it must keep nobody else waiting, and must not keep the process from ending. Starting a thread makes
the starter wait until the new one runs, which costs an event loop milliseconds while others want
the interpreter, so threads that are done wait for the next function.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
Named: TypeAlias = "tuple[Callable[[], None], str]"

MOST_IDLE = 32
IDLE_NAME = "halo-idle"

_idle: list[SimpleQueue[Named]] = []
_lock = threading.Lock()


class ThreadJob(Generic[T]):
    """A function that a thread runs for the running loop. A wait that is given up drops the
    result."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[tuple[T | None, BaseException | None]] = (
            self.loop.create_future()
        )
        self._context = contextvars.copy_context()
        self._function = function

    def run(self) -> None:
        """In a thread: run the function and hand its outcome to the loop."""
        result: T | None = None
        error: BaseException | None = None
        try:
            result = self._context.run(self._function)
        except BaseException as raised:
            error = raised
        self.end(result, error)

    def end(self, result: T | None, error: BaseException | None) -> None:
        """Hand an outcome to the loop, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self.loop.call_soon_threadsafe(self._deliver, result, error)

    async def outcome(self) -> T:
        """What the function returns or raises."""
        result, error = await self.future
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _deliver(self, result: T | None, error: BaseException | None) -> None:
        # As a value: a future refuses StopIteration as an exception.
        if not self.future.done():
            self.future.set_result((result, error))


def start_in_thread(function: Callable[[], None], name: str) -> None:
    """Run `function`, which must not raise, in a daemon thread that has this name meanwhile. Raises
    `RuntimeError` when no thread could be started."""
    with _lock:
        waiting = _idle.pop() if _idle else None
    if waiting is not None:
        waiting.put((function, name))
        return
    inbox: SimpleQueue[Named] = SimpleQueue()
    threading.Thread(target=_work, args=(inbox, function), name=name, daemon=True).start()


def _work(inbox: SimpleQueue[Named], function: Callable[[], None]) -> None:
    thread = threading.current_thread()
    while True:
        function()
        # What the function holds must not live until the next one comes.
        del function
        thread.name = IDLE_NAME
        with _lock:
            if len(_idle) >= MOST_IDLE:
                return
            _idle.append(inbox)
        function, thread.name = inbox.get()


def _forget() -> None:
    """In a forked child, where those threads do not exist."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
