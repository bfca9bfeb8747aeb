"""An executor for tests, with an engine, tools and a store that they can look into."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from costmodel.usage import OpMetrics, Usage
from planner.logical import (
    Column,
    Effect,
    Generate,
    Json,
    LogicalPlan,
    ModelOp,
    Op,
    Prompt,
    Ref,
    Result,
    Scan,
    Sql,
    Tool,
    ToolRef,
)
from planner.physical import PhysicalPlan, Worker
from runtime.backends.base import Backend, Capabilities, Completion, Request
from runtime.clock import LoopClock, new_event_loop
from runtime.dispatch import Dispatcher
from runtime.errors import BackendError, ToolError
from runtime.executor import Executor
from runtime.records import CallRecord, CallSite, Outcome
from runtime.sharing import CallTable

T = TypeVar("T")
SCAN = Scan((), "rows", ("q",))
Q = Column((SCAN,), "q")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        return runner.run(main())


def gen(text: str, *inputs: Op, **options: Any) -> Generate:
    segments = (text, *(Ref(i) for i in range(len(inputs))))
    return Generate(tuple(inputs), "m", Prompt(segments), label=text, **options)


def write(name: str, *inputs: Op, after: tuple[Op, ...] = (), call_id: str = "w") -> Tool:
    params = tuple(f"p{i}" for i in range(len(inputs)))
    return Tool(tuple(inputs), ToolRef(name), params, call_id, label=name, after=after)


def pure(name: str, *inputs: Op) -> Tool:
    params = tuple(f"p{i}" for i in range(len(inputs)))
    return Tool(tuple(inputs), ToolRef(name, "", Effect.PURE), params, label=name)


def rows(n: int) -> list[dict[str, Json]]:
    return [{"q": f"q{i}"} for i in range(n)]


class Records:
    """A store that lives as long as the test."""

    def __init__(self) -> None:
        self.calls: dict[str, CallRecord] = {}
        self.outcomes: dict[tuple[str, str], Outcome] = {}

    def recorded_call(self, key: str) -> CallRecord | None:
        return self.calls.get(key)

    def record_call(self, record: CallRecord) -> asyncio.Future[None]:
        self.calls[record.key] = record
        return self.durable()

    def record_outcome(self, outcome: Outcome) -> asyncio.Future[None]:
        assert (outcome.query, outcome.row_key) not in self.outcomes
        self.outcomes[outcome.query, outcome.row_key] = outcome
        return self.durable()

    def recorded_outcomes(self) -> Iterable[tuple[str, str]]:
        return list(self.outcomes)

    def record_metrics(self, metrics: Mapping[str, OpMetrics]) -> None: ...

    def durable(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


class Engine(Backend):
    """Answers with its prompt in capitals after `latency_s` of it."""

    name = "test"

    def __init__(self, latency_s: Callable[[str], float], slots: int) -> None:
        self._latency_s = latency_s
        self._slots = slots
        self.asked: list[str] = []
        self.started_s: dict[str, float] = {}
        self.busy = self.most_busy = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(self._slots)

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        text = request.messages[-1].content
        self.asked.append(text)
        self.started_s[text] = asyncio.get_running_loop().time()
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            await asyncio.sleep(self._latency_s(text))
        finally:
            self.busy -= 1
        if "FAIL" in text:
            raise BackendError(f"cannot answer {text}", backend="test")
        return Completion(text.upper(), "stop", Usage(1, 1))


class Tools:
    """Notes each call when it begins, takes its time, and answers with the arguments."""

    def __init__(self, latency_s: Callable[[], float]) -> None:
        self._latency_s = latency_s
        self.begun: list[tuple[str, int, list[Json]]] = []
        self.sites: list[CallSite] = []
        self.writing = 0

    async def call(
        self, name: str, arguments: Mapping[str, Json], site: CallSite, listener: object = None
    ) -> CallRecord:
        values = list(arguments.values())
        self.begun.append((name, site.row_index, values))
        self.sites.append(site)
        if site.effect is Effect.WRITE:
            self.writing += 1
        await asyncio.sleep(self._latency_s())
        if site.effect is Effect.WRITE:
            self.writing -= 1
        if "bad" in values:
            raise ToolError(f"{name} cannot", tool=name)
        value: Json = {"nan": float("nan")} if "nan" in values else values
        return CallRecord("", "tool", name, site.op, site.query, site.row_key, value)

    async def query(
        self,
        op: Sql,
        text: str,
        params: Mapping[str, Json],
        site: CallSite,
        listener: object = None,
    ) -> CallRecord:
        raise NotImplementedError

    def stop(self) -> None: ...


@dataclass
class Setup:
    """An executor over a plan, and what it was wired with. Make it inside a loop."""

    queries: Mapping[str, Op]
    store: Any = field(default_factory=Records)
    latency_s: Callable[[str], float] = lambda _: 1.0
    tool_latency_s: Callable[[], float] = lambda: 0.1
    slots: int = 64
    window: int = 64
    row_order: tuple[int, ...] | None = None
    engine: Backend | None = None

    def __post_init__(self) -> None:
        clock = LoopClock()
        self.metrics: dict[str, OpMetrics] = {}
        outputs = [(name, _result(root)) for name, root in self.queries.items()]
        self.plan = LogicalPlan(tuple(outputs))
        self.ours = Engine(self.latency_s, self.slots)
        table = CallTable(self.store, self.metrics)
        dispatcher = self.dispatcher = Dispatcher(
            {"w": self.engine or self.ours}, table, self.store, clock, max_attempts=1
        )
        self.tools = Tools(self.tool_latency_s)
        everything = list(self.plan.walk_all())
        physical = self.physical = PhysicalPlan(
            self.plan,
            {op.fingerprint: "w" for op in everything if isinstance(op, ModelOp)},
            (Worker("w", "test", "m", self.slots),),
            {op.fingerprint: i for i, op in enumerate(everything)},
            {} if self.row_order is None else {"rows": self.row_order},
            self.window,
        )
        self.executor = Executor(
            physical,
            dispatcher=dispatcher,
            tools=self.tools,
            tool_schemas={},
            store=self.store,
            clock=clock,
            metrics=self.metrics,
        )

    async def run(self, data: Sequence[Mapping[str, Json]]) -> dict[str, list[Outcome]]:
        return await self.executor.run({"rows": data})

    async def values(self, data: Sequence[Mapping[str, Json]]) -> list[Json]:
        """Values of the only query; fails the test on an error."""
        (outcomes,) = (await self.run(data)).values()
        assert [o.error for o in outcomes] == [None] * len(outcomes)
        return [o.value for o in outcomes]


def _result(root: Op) -> Result:
    return root if isinstance(root, Result) else Result((root, SCAN))
