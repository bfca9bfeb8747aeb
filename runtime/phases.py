"""Tools and models by turns: what a runtime without overlap does. For measuring what overlap
gives."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Literal

Group = Literal["models", "tools"]


class Phases:
    """Lets calls of one group in at a time. As soon as the other group waits, nobody of the current
    one enters any more, and the turn changes when the last has left."""

    def __init__(self) -> None:
        self._turn: Group = "models"
        self._inside = 0
        self._waiting: dict[Group, deque[asyncio.Future[None]]] = {
            "models": deque(),
            "tools": deque(),
        }

    @asynccontextmanager
    async def turn(self, group: Group) -> AsyncGenerator[None, None]:
        """Inside while it is the group's turn."""
        other: Group = "tools" if group == "models" else "models"
        if self._inside and (self._turn != group or self._waiting[other]):
            ready = asyncio.get_running_loop().create_future()
            self._waiting[group].append(ready)
            try:
                await ready
            except BaseException:
                if ready.done() and not ready.cancelled():
                    self._leave()
                raise
        else:
            self._turn = group
            self._inside += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._inside -= 1
        if self._inside:
            return
        other: Group = "tools" if self._turn == "models" else "models"
        self._turn = other if self._waiting[other] else self._turn
        queue = self._waiting[self._turn]
        while queue:
            ready = queue.popleft()
            if not ready.done():
                self._inside += 1
                ready.set_result(None)
