"""Eager mode: a workflow called with plain values runs at once and reads as in a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

import halo
from halo.dsl import eager
from halo.dsl.readable import readable
from halo.errors import OutputTypeError, WorkflowError
from planner.logical import Agent, Choose, Generate, Json, LogicalPlan, Tool
from planner.verify import verify
from runtime.tools import ToolSpec

lm = halo.Model("m")


class Part(BaseModel):
    name: str


class Verdict(BaseModel):
    model_config = ConfigDict(frozen=True)

    winner: Literal["for", "against"]
    parts: list[Part] = []


class Engine:
    """Answers every plan with the next of `answers`, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Json] = []
        self.plans: list[LogicalPlan] = []
        self.tools: list[Mapping[str, ToolSpec]] = []

    def __call__(self, plan: LogicalPlan, tools: Mapping[str, ToolSpec]) -> Json:
        verify(plan)
        self.plans.append(plan)
        self.tools.append(tools)
        return self.answers.pop(0) if self.answers else f"answer {len(self.plans)}"

    @property
    def prompts(self) -> list[str]:
        ops = (plan.outputs[0][1].value for plan in self.plans)
        return [op.prompt.render(()) for op in ops if isinstance(op, Generate | Choose | Agent)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(eager, "run_plan", made)
    return made


@halo.tool(pure=True)
def search(query: str, k: int = 2) -> list[Part]:
    """Searches."""
    return [Part(name=query)] * k


@halo.workflow
def judge(question: str, rounds: int = 2) -> Verdict:
    facts = search(question)
    text = "(nothing)"
    for _ in range(rounds):
        text = lm.gen(f"Facts: {facts}\nFirst: {facts[0]}\nSo far: {text}")
    return lm.gen(f"{text}: who won?", out=Verdict)


def test_a_workflow_runs_at_once_with_plain_values(engine: Engine) -> None:
    engine.answers = ["a1", "a2", {"winner": "for", "parts": [{"name": "p"}]}]
    verdict = judge(question="Q?")
    assert verdict == Verdict(winner="for", parts=[Part(name="p")])
    assert isinstance(verdict, Verdict) and verdict.parts[0].name == "p"
    assert engine.prompts == [
        'Facts: [{"name": "Q?"}, {"name": "Q?"}]\nFirst: {"name": "Q?"}\nSo far: (nothing)',
        'Facts: [{"name": "Q?"}, {"name": "Q?"}]\nFirst: {"name": "Q?"}\nSo far: a1',
        "a2: who won?",
    ]


def test_plain_control_flow_works_at_once(engine: Engine) -> None:
    engine.answers = ["yes"]

    @halo.workflow
    def flow(q: str) -> str:
        answer = lm.choose(q, ["yes", "no"])
        return answer.upper() if answer == "yes" else ""

    assert flow("q") == "YES"


def test_values_read_in_prompts_as_json(engine: Engine) -> None:
    @halo.workflow
    def flow(row: dict[str, Any], part: Part) -> str:
        return lm.gen(f"{row} {row['list']} {part} {row['nothing']!s} ü")

    flow({"list": [1, "é"], "nothing": {}}, Part(name="x"))
    assert engine.prompts == [
        '{"list": [1, "é"], "nothing": {}} [1, "é"] {"name": "x"} {} ü',
    ]


def test_readable_values_equal_the_plain_ones() -> None:
    verdict = Verdict(winner="for", parts=[Part(name="x")])
    copy: Any = readable(verdict)
    assert copy["winner"] == "for"
    assert copy == verdict and verdict == copy and copy != Verdict(winner="against")
    assert copy != Part(name="x")
    assert type(copy).__name__ == "Verdict" and isinstance(copy, Verdict)
    assert f"{copy.parts[0]}" == '{"name": "x"}'
    assert copy.model_dump() == verdict.model_dump()
    assert readable(copy) is copy
    table = readable({"a": [1, {"b": None}]})
    assert table == {"a": [1, {"b": None}]} and json.dumps(table) == '{"a": [1, {"b": null}]}'
    assert f"{table.a}" == '[1, {"b": null}]'
    with pytest.raises(AttributeError):
        _ = table.missing


def test_typed_answers_are_checked(engine: Engine) -> None:
    engine.answers = [3, True, ["a"], {"winner": "nobody"}]
    assert lm.gen("n", out=int) == 3
    assert lm.gen("b", out=bool) is True
    assert lm.gen("l", out=list[str]) == ["a"]
    with pytest.raises(OutputTypeError, match="Verdict"):
        lm.gen("v", out=Verdict)


def test_calls_outside_a_workflow_run_at_once_too(engine: Engine) -> None:
    engine.answers = ["text", "a", "found"]
    assert lm.gen("p") == "text"
    assert lm.choose("p", ["a", "b"]) == "a"
    assert halo.agent(lm, "find", tools=[search]) == "found"
    assert set(engine.tools[2]) == {"search"}


def test_sql_outside_a_workflow_is_a_batch() -> None:
    assert list(halo.sql("SELECT $x AS n", x=1)) == [{"n": 1}]


def test_an_http_tool_runs_through_the_runtime(engine: Engine) -> None:
    engine.answers = [[{"name": "x"}]]
    look = halo.tool.http("look", url="http://127.0.0.1:9", params={"q": str}, returns=list[Part])
    assert look(q="x") == [Part(name="x")]
    call = engine.plans[0].outputs[0][1].value
    assert isinstance(call, Tool) and call.params == ("q",) and set(engine.tools[0]) == {"look"}


def test_data_that_looks_like_a_marker_is_text(engine: Engine) -> None:
    text = "\ufdd0bCdF\ufdd1 {x} ${y} <|im_start|>"
    lm.gen(text)
    assert engine.prompts == [text]


def test_a_text_of_an_ended_trace_is_never_sent(engine: Engine) -> None:
    kept: list[str] = []
    halo.workflow(lambda q: kept.append(f"{q}")).trace("rows", ["q"])
    with pytest.raises(WorkflowError, match="ended"):
        lm.gen(f"Say {kept[0]}")
    assert engine.plans == []


def test_sampled_calls_keep_their_identities(engine: Engine) -> None:
    @halo.workflow
    def flow(q: str) -> str:
        return lm.gen(q, temperature=1.0) + lm.gen(q, temperature=1.0)

    def call_ids() -> list[str]:
        ops = [plan.outputs[0][1].value for plan in engine.plans]
        return [op.call_id for op in ops if isinstance(op, Generate)]

    flow("q")
    assert call_ids() == ["flow/1", "flow/2"]
    lm.gen("q", temperature=1.0)
    lm.gen("q", temperature=1.0)
    assert len(set(call_ids())) == 4


def test_an_async_tool_in_an_eager_workflow(engine: Engine) -> None:
    @halo.tool(pure=True)
    async def fetch(q: str) -> list[str]:
        """Fetches."""
        return [q]

    @halo.workflow
    def flow(q: str) -> str:
        return lm.gen(f"{fetch(q)}")

    flow("x")
    assert engine.prompts == ['["x"]']


def test_a_tool_may_call_a_model_at_once(engine: Engine) -> None:
    @halo.tool(pure=True)
    def ask(q: str) -> str:
        """Asks."""
        return lm.gen(q)

    @halo.workflow
    def flow(q: str) -> str:
        return lm.gen(f"<{ask(q)}>")

    flow("x")
    assert engine.prompts == ["x", "<answer 1>"]


def test_the_default_session_evaluates_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType, SimpleNamespace

    def evaluate(plan: LogicalPlan, tools: Mapping[str, ToolSpec]) -> Json:
        return "from the session"

    session = ModuleType("halo.session")
    session.default_session = lambda: SimpleNamespace(evaluate=evaluate)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "halo.session", session)
    assert lm.gen("p") == "from the session"
