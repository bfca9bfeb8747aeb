"""Daemon threads for functions that block, used again when a function has ended.

No pool with a number of places: a function that never ends cannot be killed, and keeps its thread;
it must keep nobody else waiting, and must not keep the process from ending. Starting a thread makes
the starter wait until the new one runs, which costs an event loop milliseconds while others want
the interpreter, so threads that are done wait for the next function.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

Job: TypeAlias = "tuple[Callable[[], None], str]"

MOST_IDLE = 32
IDLE_NAME = "halo-idle"

_idle: list[SimpleQueue[Job]] = []
_lock = threading.Lock()


def start_in_thread(function: Callable[[], None], name: str) -> None:
    """Run `function`, which must not raise, in a daemon thread that has this name meanwhile. Raises
    `RuntimeError` when no thread could be started."""
    with _lock:
        waiting = _idle.pop() if _idle else None
    if waiting is not None:
        waiting.put((function, name))
        return
    inbox: SimpleQueue[Job] = SimpleQueue()
    threading.Thread(target=_work, args=(inbox, function), name=name, daemon=True).start()


def _work(inbox: SimpleQueue[Job], function: Callable[[], None]) -> None:
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
