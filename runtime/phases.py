"""Tools and models by turns: what a runtime without overlap does. For measuring what overlap
gives."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Literal

from planner.logical import Json, Sql
from runtime.agent_loop import ToolCaller
from runtime.answers import ModelCaller
from runtime.backends.base import Request
from runtime.records import CallRecord, CallSite
from runtime.streaming import Listener, OpenCall

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


class PhasedModels:
    """Model calls that wait for their turn."""

    def __init__(self, models: ModelCaller, phases: Phases) -> None:
        self._models = models
        self._phases = phases

    @property
    def in_flight(self) -> int:
        return self._models.in_flight

    def stop(self) -> None:
        self._models.stop()

    async def complete(
        self,
        worker: str,
        request: Request,
        site: CallSite,
        *,
        priority: int = 0,
        early: OpenCall | None = None,
    ) -> CallRecord:
        async with self._phases.turn("models"):
            return await self._models.complete(
                worker, request, site, priority=priority, early=early
            )


class PhasedTools:
    """Tool calls and queries that wait for their turn."""

    def __init__(self, tools: ToolCaller, phases: Phases) -> None:
        self._tools = tools
        self._phases = phases

    def stop(self) -> None:
        self._tools.stop()

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Json],
        site: CallSite,
        listener: Listener | None = None,
    ) -> CallRecord:
        async with self._phases.turn("tools"):
            return await self._tools.call(name, arguments, site, listener)

    async def query(
        self,
        op: Sql,
        text: str,
        params: Mapping[str, Json],
        site: CallSite,
        listener: Listener | None = None,
    ) -> CallRecord:
        async with self._phases.turn("tools"):
            return await self._tools.query(op, text, params, site, listener)
