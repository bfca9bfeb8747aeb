"""A tool runner for tests, with a store that they can look into."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from costmodel.usage import OpMetrics
from planner.logical import Effect, Json
from runtime.clock import LoopClock, new_event_loop
from runtime.memory_store import MemoryStore
from runtime.records import CallRecord, CallSite
from runtime.sharing import CallTable
from runtime.sql_tool import Databases
from runtime.tool_runner import ToolRunner
from runtime.tools import ToolSpec

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]], virtual: bool = True) -> T:
    with asyncio.Runner(loop_factory=lambda: new_event_loop(virtual)) as runner:
        return runner.run(main())


class Desk:
    """A runner with a store that a test can look into. Make it inside the loop."""

    def __init__(
        self,
        *specs: ToolSpec,
        store: MemoryStore | None = None,
        databases: Databases | None = None,
        tenant: str = "",
    ) -> None:
        self.store = store or MemoryStore()
        self.metrics: dict[str, OpMetrics] = {}
        self.runner = ToolRunner(
            {spec.name: spec for spec in specs},
            databases or Databases(),
            CallTable(self.store, self.metrics),
            self.store,
            LoopClock(),
            tenant=tenant,
        )

    def call(self, name: str, row: int = 0, /, **arguments: Json) -> Awaitable[CallRecord]:
        return self.runner.call(name, arguments, site(row))


def site(row: int = 0, path: str = "", effect: Effect = Effect.PURE) -> CallSite:
    return CallSite("op", "q", row, f"r{row}", path, effect=effect, call_id="c1")


def pure(function: Callable[..., Any], name: str = "f", **options: Any) -> ToolSpec:
    return ToolSpec(name, function, effect=Effect.PURE, **options)


def write(function: Callable[..., Any], name: str = "f", **options: Any) -> ToolSpec:
    return ToolSpec(name, function, effect=Effect.WRITE, **options)


def once(spec: ToolSpec, **arguments: Json) -> Json:
    async def main() -> Json:
        return (await Desk(spec).call(spec.name, **arguments)).value

    return run(main)
