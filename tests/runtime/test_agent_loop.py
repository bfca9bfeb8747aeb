"""The agent's loop: turns, tools, what is told to the model, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from executor_setup import SCAN, Q, Records, run

from costmodel.usage import OpMetrics, Usage
from planner.errors import InvariantError
from planner.logical import (
    Agent,
    Effect,
    Json,
    LogicalPlan,
    Prompt,
    Ref,
    Result,
    Sql,
    ToolRef,
)
from planner.physical import PhysicalPlan, Worker
from runtime.backends.base import (
    Backend,
    Capabilities,
    Completion,
    Message,
    Request,
    ToolCall,
    ToolSchema,
)
from runtime.backends.simulated import SimulatedBackend
from runtime.clock import LoopClock
from runtime.dispatch import Dispatcher
from runtime.errors import ToolError
from runtime.executor import Executor
from runtime.records import CallRecord, CallSite, Outcome
from runtime.sharing import CallTable

ADD = (
    '{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"}},'
    '"required":["a","b"],"additionalProperties":false}'
)
NOTE = '{"type":"object","properties":{"text":{"type":"string"}}}'
SCHEMAS = {
    "add": ToolSchema("add", "Adds.", ADD),
    "note": ToolSchema("note", "Writes down.", NOTE),
}
PURE_ADD = ToolRef("add", "", Effect.PURE)
NOTING = ToolRef("note", "", Effect.WRITE)


def agent(*tools: ToolRef, **options: Any) -> Agent:
    options = {"call_id": "main/agent", **options}
    return Agent((Q,), "m", Prompt(("Solve ", Ref(0))), tools=tools, label="solver", **options)


def asks(*calls: tuple[str, str], text: str = "") -> Completion:
    """An answer that calls tools: (name, arguments) each."""
    made = tuple(ToolCall(f"id{i}", name, args) for i, (name, args) in enumerate(calls))
    return Completion(text, "tool_calls", Usage(1, 1), made)


class Engine(Backend):
    name = "test"

    def __init__(self, script: Iterable[Completion | str]) -> None:
        self._script = list(script)
        self.requests: list[Request] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(8)

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        self.requests.append(request)
        answer = self._script.pop(0)
        return Completion(answer, "stop", Usage(1, 1)) if isinstance(answer, str) else answer


class Tools:
    """`add` takes a second; `note` takes less the later it is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Mapping[str, Json]]] = []
        self.ended: list[Json] = []
        self.sites: list[CallSite] = []

    async def call(
        self, name: str, arguments: Mapping[str, Json], site: CallSite, listener: object = None
    ) -> CallRecord:
        self.calls.append((name, arguments))
        self.sites.append(site)
        values: dict[str, Any] = dict(arguments)
        await asyncio.sleep(1 if name == "add" else 1 / len(self.calls))
        if values.get("a") == 13:
            raise ToolError("add does not like 13", tool="add")
        value: Json = {"sum": values["a"] + values["b"]} if name == "add" else "noted"
        self.ended.append(value if name == "add" else values["text"])
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


class Ran:
    """An agent over rows, run."""

    def __init__(
        self,
        op: Agent,
        script: Iterable[Completion | str] = (),
        *,
        n_rows: int = 1,
        simulated: bool = False,
        stop_after_s: float | None = None,
    ) -> None:
        self.engine = Engine(script)
        self.tools = Tools()
        self.metrics: dict[str, OpMetrics] = {}
        self._simulated = simulated
        self._stop_after_s = stop_after_s
        self.outcomes = run(lambda: self._run(op, n_rows))

    async def _run(self, op: Agent, n_rows: int) -> list[Outcome]:
        clock, store = LoopClock(), Records()
        plan = LogicalPlan((("main", Result((op, SCAN))),))
        table = CallTable(store, self.metrics)
        engine = SimulatedBackend("m", clock) if self._simulated else self.engine
        executor = Executor(
            PhysicalPlan(plan, {op.fingerprint: "w"}, (Worker("w", "test", "m"),), {}, {}, 4),
            dispatcher=Dispatcher({"w": engine}, table, store, clock),
            tools=self.tools,
            tool_schemas=SCHEMAS,
            store=store,
            clock=clock,
            metrics=self.metrics,
        )
        if self._stop_after_s is not None:
            asyncio.get_running_loop().call_later(self._stop_after_s, executor.stop)
        outcomes = await executor.run({"rows": [{"q": f"q{i}"} for i in range(n_rows)]})
        self.seconds = clock.now_s()
        return outcomes["main"]

    @property
    def value(self) -> Json:
        (outcome,) = self.outcomes
        assert outcome.error is None, outcome.error
        return outcome.value

    def told(self, turn: int) -> list[str]:
        """What the model was told by tools before `turn`, its last exchange alone."""
        messages = self.engine.requests[turn].messages
        last = max(i for i, m in enumerate(messages) if m.role == "assistant")
        return [m.content for m in messages[last + 1 :] if m.role == "tool"]


def test_a_tool_is_called_and_its_answer_read() -> None:
    call = ("add", '{"a": 2, "b": 3}')
    ran = Ran(agent(PURE_ADD), [asks(call, text="Let me add."), "It is 5."])
    assert ran.value == "It is 5."
    first, second = ran.engine.requests
    assert first.messages == (Message("user", "Solve q0"),)
    assert first.tools == second.tools == (SCHEMAS["add"],)
    assert second.messages[1:] == (
        Message("assistant", "Let me add.", (ToolCall("id0", *call),)),
        Message("tool", '{"sum": 5}', (), "id0", "add"),
    )
    assert ran.tools.calls == [("add", {"a": 2, "b": 3})]


def test_pure_tools_of_a_turn_run_at_once_and_answers_keep_their_order() -> None:
    calls = [("add", f'{{"a": {i}, "b": 0}}') for i in range(4)]
    ran = Ran(agent(PURE_ADD), [asks(*calls), "done"])
    assert ran.seconds == 1
    assert ran.told(1) == [f'{{"sum": {i}}}' for i in range(4)]


def test_tools_that_write_run_in_order() -> None:
    calls = [("note", f'{{"text": "{i}"}}') for i in range(4)]
    ran = Ran(agent(NOTING, PURE_ADD), [asks(*calls), "done"])
    assert ran.tools.ended == ["0", "1", "2", "3"]
    assert [site.path for site in ran.tools.sites] == [f"agent[0]/tool[{i}]" for i in range(4)]
    assert len({site.identity for site in ran.tools.sites}) == 4


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("add", '{"a": 2}'), '"b" is a required property'),
        (("add", '{"a": "2", "b": 3}'), 'is not of type "integer" (at /a)'),
        (("add", "{a: 2}"), "they are not JSON"),
        (("add", "[]"), "is not of type"),
        (("sub", "{}"), "there is no tool 'sub'; the tools are: add"),
        (("add", '{"a": 13, "b": 1}'), "add does not like 13"),
    ],
)
def test_what_goes_wrong_with_a_tool_is_told_to_the_model(call: tuple[str, str], told: str) -> None:
    ran = Ran(agent(PURE_ADD), [asks(call), asks(("add", '{"a": 1, "b": 1}')), "2"])
    assert ran.value == "2"
    (error,) = ran.told(1)
    assert error.startswith("Error: ") and told in error
    assert ran.told(2) == ['{"sum": 2}']


def test_no_arguments_may_be_written_as_nothing() -> None:
    op = agent(ToolRef("note", "", Effect.PURE))
    ran = Ran(op, [asks(("note", "")), "done"])
    assert ran.tools.calls == [("note", {})]


def test_after_its_turns_an_agent_is_asked_for_its_answer_without_tools() -> None:
    again = asks(("add", '{"a": 1, "b": 1}'))
    ran = Ran(agent(PURE_ADD, max_turns=3), [again, again, again, "so be it"])
    assert ran.value == "so be it"
    assert [bool(r.tools) for r in ran.engine.requests] == [True, True, True, False]
    assert ran.engine.requests[-1].messages[-1].role == "user"


def test_an_agent_without_tools_is_one_call() -> None:
    ran = Ran(agent(), ["hello"])
    assert ran.value == "hello"
    assert ran.engine.requests[0].messages == (Message("user", "Solve q0"),)


def test_a_typed_answer_that_fits_needs_no_further_turn() -> None:
    ran = Ran(agent(PURE_ADD, schema_json='{"type":"integer"}'), ["5"])
    assert ran.value == 5
    assert ran.engine.requests[0].schema_json is None, "a schema would keep it from calling tools"


def test_a_typed_answer_is_asked_for_in_a_constrained_turn() -> None:
    op = agent(PURE_ADD, schema_json='{"type":"integer"}')
    ran = Ran(op, ["It is five.", "nope", "5"])
    assert ran.value == 5
    _, constrained, corrected = ran.engine.requests
    assert constrained.schema_json == corrected.schema_json == '{"type":"integer"}'
    assert constrained.tools == ()
    assert "It is five." in [m.content for m in constrained.messages]
    assert "it is not JSON" in corrected.messages[-1].content


def test_a_typed_answer_after_the_last_turn_is_constrained_at_once() -> None:
    op = agent(PURE_ADD, max_turns=1, schema_json='{"type":"integer"}')
    ran = Ran(op, [asks(("add", '{"a": 1, "b": 1}')), "2"])
    assert ran.value == 2
    assert [r.schema_json for r in ran.engine.requests] == [None, '{"type":"integer"}']


def test_model_turns_are_counted_as_calls_of_the_agent() -> None:
    op = agent(PURE_ADD)
    ran = Ran(op, [asks(("add", '{"a": 1, "b": 1}')), "2"])
    metrics = ran.metrics[op.fingerprint]
    assert (metrics.requested, metrics.made) == (2, 2)


def test_agents_that_write_take_turns_by_row_and_others_do_not() -> None:
    writing = Ran(agent(NOTING), simulated=True, n_rows=3)
    rows = [site.row_index for site in writing.tools.sites]
    assert rows == sorted(rows) == [0, 1, 2]
    assert all(o.error is None for o in writing.outcomes)
    adding = Ran(agent(PURE_ADD), simulated=True, n_rows=3)
    assert adding.seconds < writing.seconds


def test_a_stopped_agent_calls_no_further_tool_and_has_no_outcome() -> None:
    calls = [("note", f'{{"text": "{i}"}}') for i in range(4)]
    ran = Ran(agent(NOTING), [asks(*calls), "done"], stop_after_s=1.2)
    assert ran.outcomes == []
    assert ran.tools.ended == ["0", "1"], "the call in flight ended, the next did not begin"


def test_an_agent_whose_tool_has_no_schema_is_a_defect_of_the_plan() -> None:
    with pytest.raises(InvariantError, match="uses tool 'missing'; the run has: add, note"):
        Ran(agent(ToolRef("missing")), ["x"])
