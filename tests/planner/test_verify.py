"""The promises of a plan: each broken one is refused, and the message says which."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sample_plans import (
    LOOKUP,
    PUBLISH,
    ask,
    chain,
    column,
    everything,
    headline,
    objection,
    query,
    scan,
)

from planner.errors import InvariantError, PlanError
from planner.logical import (
    Agent,
    Body,
    Column,
    Compare,
    Const,
    Effect,
    Field,
    Format,
    LogicalPlan,
    Loop,
    Map,
    Op,
    Param,
    Project,
    Prompt,
    Reduce,
    Ref,
    Result,
    Sql,
    Tool,
    When,
)
from planner.merge import merge
from planner.verify import verify

ROWS = scan()
QUESTION = column(ROWS)


def plan_of(value: Op) -> LogicalPlan:
    return query("q", value, ROWS)


@pytest.mark.parametrize("plan", [headline(), objection(), everything(), chain(5000)])
def test_legal_plans_pass_alone_and_merged(plan: LogicalPlan) -> None:
    verify(merge({"q": plan}))


def test_a_legal_batch_passes() -> None:
    verify(merge({"a": headline(), "b": objection(), "c": everything(), "d": everything()}))


def test_bodies_nested_80_deep_pass() -> None:
    inner: Op = ask("At the bottom: ", Param((), 0))
    for _ in range(80):
        inner = Map((Param((), 0),), Body(1, inner))
    verify(plan_of(Map((QUESTION,), Body(1, inner))))


# --- the author's mistakes -----------------------------------------------------------------------


def test_no_output_is_refused() -> None:
    with pytest.raises(PlanError, match="no output"):
        verify(LogicalPlan(()))


@pytest.mark.parametrize("names", [("",), ("a", "a")])
def test_output_names_are_unique_and_not_empty(names: tuple[str, ...]) -> None:
    result = plan_of(QUESTION).outputs[0][1]
    with pytest.raises(PlanError, match="empty or used twice"):
        verify(LogicalPlan(tuple((name, result) for name in names)))


def test_a_query_over_two_inputs_names_both() -> None:
    other = column(scan(source="other"))
    with pytest.raises(PlanError, match=r"'q'.*'other', 'rows'"):
        verify(plan_of(ask(QUESTION, " and ", other)))


def test_a_write_over_another_input_counts_too() -> None:
    other = column(scan(source="other"))
    write = Tool((other,), tool=PUBLISH, params=("x",), call_id="w")
    with pytest.raises(PlanError, match="2 inputs"):
        verify(plan_of(Format((QUESTION,), Prompt((Ref(0),)), after=(write,))))


@pytest.mark.parametrize(
    "second", [replace(LOOKUP, digest="d9"), replace(LOOKUP, effect=Effect.SAMPLED)]
)
def test_two_tools_of_one_name_are_refused(second: object) -> None:
    first = Tool((QUESTION,), tool=LOOKUP, params=("q",))
    agent = Agent((first,), "m", Prompt((Ref(0),)), tools=(second,), call_id="a")  # type: ignore[arg-type]
    agent = replace(agent, call_id="a" if agent.effect is not Effect.PURE else "")
    with pytest.raises(PlanError, match="two different tools are named 'lookup'"):
        verify(plan_of(agent))


# --- defects of a front end or a rule ------------------------------------------------------------

ONE = Body(1, Param((), 0))
TWO = Body(2, Param((), 1))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Param((), 0), "outside any body"),
        (Map((QUESTION,), Body(1, Param((), 0, "traced"))), "tracing scope 'traced'"),
        (Map((QUESTION,), Body(1, Param((), 1))), "parameter 1 of a body that has 1"),
        (Map((QUESTION,), Body(1, ask(QUESTION))), "inside a body"),
        (Map((QUESTION,), TWO), "2 parameters and binds 1"),
        (Map((), Body(0, Const.of(1))), "binds 0"),
        (Reduce((QUESTION, QUESTION), ONE), "1 parameters and binds 2"),
        (Loop((QUESTION, QUESTION), TWO, ONE), "1 parameters and binds 2"),
        (Loop((QUESTION, QUESTION), ONE, TWO), "1 parameters and binds 2"),
        (When((QUESTION, QUESTION), ONE, Body(0, Const.of(1))), "0 parameters and binds 1"),
        (When((QUESTION, QUESTION), TWO, ONE), "2 parameters and binds 1"),
        (Project((QUESTION, QUESTION), names=("a", "a")), "name twice"),
        (Project((QUESTION,), names=("a", "b")), "2 names and 1 inputs"),
        (Tool((QUESTION,), tool=LOOKUP), "0 parameters and 1 inputs"),
        (Sql((QUESTION,), text="SELECT 1"), "takes 0 inputs"),
        (Sql((QUESTION,), params=("a",)), "takes 2 inputs"),
        (Format((QUESTION,), Prompt((Ref(1),))), "missing input"),
        (Compare((QUESTION,), "=="), "takes 2 inputs"),
        (Compare((QUESTION, QUESTION), "not"), "takes 1 inputs"),
        (Compare((QUESTION, QUESTION), "like"), "unknown operator 'like'"),
        (Field((), "a"), "takes 1 input"),
        (Column((QUESTION,), "question"), "takes the relation"),
        (ask(QUESTION, call_id="x"), "is pure and has call_id 'x'"),
        (Tool((QUESTION,), tool=LOOKUP, params=("q",), call_id="x"), "is pure"),
        (Tool((QUESTION,), tool=PUBLISH, params=("q",)), "is write and has no call_id"),
        (Agent((), "m", Prompt(("x",)), tools=(PUBLISH,)), "is write and has no call_id"),
        (Sql((), text="DROP TABLE t", read_only=False), "is write and has no call_id"),
    ],
)
def test_a_broken_promise_is_named(value: Op, words: str) -> None:
    with pytest.raises(InvariantError, match=words):
        verify(plan_of(value))


def test_a_promise_broken_inside_nested_bodies_is_found() -> None:
    inner = Map((Param((), 0),), Body(1, Param((), 3)))
    with pytest.raises(InvariantError, match="parameter 3 of a body that has 1"):
        verify(plan_of(Map((QUESTION,), Body(1, inner))))


def test_two_different_calls_of_one_call_id_are_refused() -> None:
    calls = [
        ask(text, QUESTION, temperature=1.0, call_id="same", label=text) for text in ("A", "B")
    ]
    with pytest.raises(InvariantError, match="different calls with call_id 'same'"):
        verify(plan_of(Project(tuple(calls), names=("a", "b"))))


def test_an_output_is_a_result() -> None:
    with pytest.raises(InvariantError, match="no Result"):
        verify(LogicalPlan((("q", ROWS),)))  # type: ignore[arg-type]
    with pytest.raises(InvariantError, match="no operator"):
        verify(LogicalPlan((("q", Result((Op(), ROWS))),)))
