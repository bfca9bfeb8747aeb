"""map, reduce, when, loop and agent: bodies, captures, scopes, and what they do to plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

import halo
from halo.errors import PlanError, WorkflowError
from planner.logical import (
    Agent,
    Column,
    Compare,
    Const,
    Effect,
    Field,
    Format,
    Generate,
    Loop,
    Map,
    Op,
    Param,
    Project,
    Reduce,
    Ref,
    When,
)
from planner.verify import verify

lm = halo.Model("m")


class Draft(BaseModel):
    text: str
    good: bool


@halo.tool(pure=True)
def search(query: str) -> list[str]:
    """Searches."""
    return [query]


def value_of(function: Callable[..., Any], *columns: str) -> Op:
    plan = halo.workflow(function).trace("rows", columns).plan
    verify(plan)
    return plan.outputs[0][1].value


def refused(function: Callable[..., Any], *columns: str) -> str:
    with pytest.raises(WorkflowError) as caught:
        value_of(function, *columns)
    return str(caught.value)


# --- map ------------------------------------------------------------------------------------------


def test_a_map_body_is_traced_once_and_captures_what_it_reads() -> None:
    def flow(q: str, xs: list[str]) -> list[str]:
        return halo.map(lambda x: lm.gen(f"{q}: {x} {q}"), xs)

    op = value_of(flow, "q", "xs")
    assert isinstance(op, Map)
    assert [i.label for i in op.inputs] == ["xs", "q"]
    body = op.body.result
    assert isinstance(body, Generate) and body.prompt.segments == (
        Ref(0),
        ": ",
        Ref(1),
        " ",
        Ref(0),
    )
    assert [i.index for i in body.inputs if isinstance(i, Param)] == [1, 0]


def test_nested_maps_capture_values_of_every_scope_outside() -> None:
    def flow(q: str, groups: list[list[str]]) -> list[list[str]]:
        def of_group(group: list[str]) -> list[str]:
            title = lm.gen(f"Title of {group}")
            return halo.map(lambda x: lm.gen(f"{q} / {title} / {group} / {x}"), group)

        return halo.map(of_group, groups)

    outer = value_of(flow, "q", "groups")
    assert isinstance(outer, Map) and [i.label for i in outer.inputs] == ["groups", "q"]
    inner = outer.body.result
    assert isinstance(inner, Map)
    group, q, title = inner.inputs[0], *inner.inputs[1:3]
    assert isinstance(group, Param) and group.index == 0
    assert isinstance(q, Param) and q.index == 1
    assert isinstance(title, Generate)
    assert len(inner.inputs) == 4 and inner.body.n_params == 4


def test_a_body_that_does_not_use_its_element() -> None:
    op = value_of(lambda q, xs: halo.map(lambda x: q, xs), "q", "xs")
    assert isinstance(op, Map)
    assert isinstance(op.body.result, Param) and op.body.result.index == 1


def test_equal_bodies_are_equal_whatever_their_names() -> None:
    one = value_of(lambda q, xs: halo.map(lambda x: lm.gen(f"{q} {x}"), xs, name="a"), "q", "xs")
    two = value_of(lambda q, xs: halo.map(lambda y: lm.gen(f"{q} {y}"), xs), "q", "xs")
    assert one == two


def test_an_operator_that_the_outside_has_already_is_captured() -> None:
    def flow(q: str, xs: list[str]) -> dict[str, Any]:
        fact = lm.gen(f"Fact: {q}")
        return {"fact": fact, "all": halo.map(lambda x: lm.gen(f"{lm.gen(f'Fact: {q}')} {x}"), xs)}

    record = value_of(flow, "q", "xs")
    fact, mapped = record.inputs
    assert fact in mapped.inputs


def test_a_text_that_was_built_before_an_equal_value_inside_a_body_still_works() -> None:
    def flow(q: str, xs: list[str]) -> str:
        text = f"{lm.gen(f'{q}')}!"
        halo.map(lambda x: f"{lm.gen(f'{q}')}!", xs)
        return lm.gen(text)

    assert isinstance(value_of(flow, "q", "xs"), Generate)


def test_values_do_not_leave_their_body() -> None:
    def flow(xs: list[str]) -> str:
        kept: list[str] = []

        def keep(x: str) -> str:
            kept.append(x)
            return ""

        halo.map(keep, xs)
        return lm.gen(f"{kept[0]}")

    assert "inside the body" in refused(flow, "xs")


def test_a_text_with_an_inner_value_does_not_leave_the_body_either() -> None:
    def flow(xs: list[str]) -> str:
        kept: list[str] = []

        def keep(x: str) -> str:
            kept.append(f"{x}")
            return ""

        halo.map(keep, xs)
        return lm.gen(kept[0])

    assert "inside the body" in refused(flow, "xs")


def test_typed_elements_and_results() -> None:
    def flow(q: str) -> list[str]:
        drafts = lm.gen(q, out=list[Draft])
        texts = halo.map(lambda draft: {"t": draft.text}, drafts)
        return halo.map(lambda record: lm.gen(f"{record['t']}"), texts)

    assert isinstance(value_of(flow, "q"), Map)

    def wrong(q: str) -> list[Any]:
        return halo.map(lambda draft: draft.txt, lm.gen(q, out=list[Draft]))  # type: ignore[attr-defined]

    assert "text, good" in refused(wrong, "q")


def test_map_over_what_is_no_list() -> None:
    def flow(q: str) -> list[str]:
        return halo.map(lambda x: x, q)

    assert "takes a list" in refused(flow, "q")
    assert "takes a list" in refused(lambda q: halo.map(lambda x: x, 5), "q")  # type: ignore[arg-type]


def test_map_over_a_plain_list_in_a_trace() -> None:
    op = value_of(lambda q: halo.map(lambda x: lm.gen(f"{q} {x}"), ["a", "b"]), "q")
    assert isinstance(op, Map) and op.inputs[0] == Const.of(["a", "b"])


# --- reduce ---------------------------------------------------------------------------------------


def test_reduce() -> None:
    def flow(q: str, xs: list[str]) -> str:
        return halo.reduce(lambda group: lm.gen(f"Merge for {q}: {group}"), xs, fan_in=4)

    op = value_of(flow, "q", "xs")
    assert isinstance(op, Reduce) and op.fan_in == 4
    assert [i.label for i in op.inputs] == ["xs", "q"]
    with pytest.raises(PlanError, match=r"test_control\.py:\d+: fan_in"):
        value_of(lambda xs: halo.reduce(lambda g: lm.gen(f"{g}"), xs, fan_in=1), "xs")


# --- when -----------------------------------------------------------------------------------------


def test_the_calls_of_a_branch_are_in_the_branch() -> None:
    def flow(q: str, k: str) -> str:
        kind = lm.choose(f"Kind of {q}?", ["easy", "hard"])
        return halo.when(
            kind == "hard",
            lambda: lm.gen(f"Think about {q} and {k}"),
            lambda: lm.gen(f"Answer {k}"),
        )

    op = value_of(flow, "q", "k")
    assert isinstance(op, When) and isinstance(op.inputs[0], Compare)
    assert [i.label for i in op.inputs[1:]] == ["q", "k"]
    assert op.then.n_params == op.otherwise.n_params == 2
    then, otherwise = op.then.result, op.otherwise.result
    assert [i.index for i in then.inputs if isinstance(i, Param)] == [0, 1]
    assert [i.index for i in otherwise.inputs if isinstance(i, Param)] == [1]


def test_plain_and_lazy_branches() -> None:
    op = value_of(lambda q: halo.when(q == "x", q, {"none": None}), "q")
    assert isinstance(op, When)
    assert isinstance(op.then.result, Param)
    assert op.otherwise.result == Const.of({"none": None})
    bare = value_of(lambda q: halo.when(q, lambda: "yes"), "q")
    assert isinstance(bare, When) and bare.otherwise.result == Const.of(None)


def test_a_condition_that_is_known_takes_its_branch_while_tracing() -> None:
    assert isinstance(value_of(lambda q: halo.when(True, lambda: q, lambda: 1 / 0), "q"), Column)


def test_branches_with_branches_inside() -> None:
    def flow(q: str, k: str) -> str:
        return halo.when(
            q == "a",
            lambda: halo.when(k == "b", lambda: f"{q}{k}", lambda: k),
            lambda: q,
        )

    op = value_of(flow, "q", "k")
    assert isinstance(op, When) and isinstance(op.then.result, When)
    assert isinstance(op.then.result.then.result, Format)


# --- loop -----------------------------------------------------------------------------------------


def test_a_loop_over_a_text() -> None:
    def flow(q: str) -> str:
        return halo.loop(
            lambda draft: lm.gen(f"Improve for {q}: {draft}"),
            lm.gen(q),
            until=lambda draft: lm.choose(f"Good? {draft}", ["yes", "no"]) == "yes",
            max_rounds=3,
        )

    op = value_of(flow, "q")
    assert isinstance(op, Loop) and op.max_rounds == 3
    assert isinstance(op.inputs[0], Generate) and op.inputs[1].label == "q"
    negated = op.condition.result
    assert isinstance(negated, Compare) and negated.operator == "not"
    assert op.condition.n_params == op.step.n_params == 2


def test_a_loop_over_a_dict() -> None:
    def step(state: dict[str, Any]) -> dict[str, Any]:
        draft = lm.gen(f"Improve {state['draft']['text']}", out=Draft)
        return {"draft": draft, "log": f"{state['log']}|{draft.text}"}

    def flow(q: str) -> str:
        start: dict[str, Any] = {"draft": lm.gen(q, out=Draft), "log": ""}
        end = halo.loop(step, start, until=lambda s: s["draft"].good, max_rounds=2)
        return lm.gen(f"{end['draft'].text} {end['log']}")

    op = value_of(flow, "q")
    text, log = op.inputs
    assert isinstance(text, Field) and text.key == "text"
    assert isinstance(log, Field) and isinstance(log.inputs[0], Loop)
    assert isinstance(log.inputs[0].inputs[0], Project)


def test_a_state_keeps_its_keys() -> None:
    def flow(q: str) -> Any:
        return halo.loop(lambda s: {"a": q}, {"a": q, "b": 1}, until=lambda s: s["a"] == "x")

    assert "a, b" in refused(flow, "q")

    def typo(q: str) -> Any:
        return halo.loop(lambda s: {"a": s["aa"]}, {"a": q}, until=lambda s: True)

    assert "no field 'aa'" in refused(typo, "q")


def test_a_loop_needs_a_bound() -> None:
    with pytest.raises(WorkflowError, match="at least 1"):
        value_of(lambda q: halo.loop(lambda s: s, q, until=lambda s: True, max_rounds=0), "q")


# --- agent ----------------------------------------------------------------------------------------


def test_an_agent_is_one_node_as_strong_as_its_tools() -> None:
    @halo.tool
    def send(text: str) -> None:
        """Sends."""

    def flow(q: str) -> dict[str, Any]:
        reads = halo.agent(lm, f"Find {q}", tools=[search], max_turns=4, out=Draft)
        writes = halo.agent(lm, f"Send {q}", tools=[search, send], system="Be brief.")
        return {"reads": reads.text, "writes": writes}

    traced = halo.workflow(flow).trace("rows", ["q"])
    verify(traced.plan)
    assert set(traced.tools) == {"search", "send"}
    agents = [op for op in traced.plan.walk() if isinstance(op, Agent)]
    assert {a.effect for a in agents} == {Effect.PURE, Effect.WRITE}
    reader = next(a for a in agents if a.effect is Effect.PURE)
    assert (reader.max_turns, reader.call_id) == (4, "") and '"good"' in (reader.schema_json or "")
    with pytest.raises(WorkflowError, match=r"@halo\.tool"):
        value_of(lambda q: halo.agent(lm, q, tools=[len]), "q")  # type: ignore[list-item]


# --- over plain values ----------------------------------------------------------------------------


def test_over_plain_values_they_are_plain_python() -> None:
    assert halo.map(lambda x: x + 1, [1, 2]) == [2, 3]
    assert halo.when([], lambda: "yes", lambda: "no") == "no"
    # What `~` makes of a plain boolean (a bool itself warns from Python 3.12 on).
    assert halo.when(~1, "yes", "no") == "no"
    assert halo.when(~0, "yes", "no") == "yes"
    assert halo.loop(lambda n: n + 1, 0, until=lambda n: n >= 3) == 3
    assert halo.loop(lambda n: n + 1, 0, until=lambda n: False, max_rounds=5) == 5
    assert halo.loop(lambda n: n + 1, 7, until=lambda n: n >= 3) == 7
    with pytest.raises(WorkflowError, match="empty list"):
        halo.reduce(lambda g: g[0], [])
    with pytest.raises(WorkflowError, match="takes a list"):
        halo.map(lambda x: x, "text")


def test_an_eager_reduction_groups_as_a_batch_does() -> None:
    groups: list[list[str]] = []

    def merge(group: list[str]) -> str:
        groups.append(list(group))
        return "".join(group)

    assert halo.reduce(merge, ["a", "b", "c", "d", "e"], fan_in=2) == "abcde"
    # A group of one goes through the body at the first level, and is passed on above it.
    assert groups == [["a", "b"], ["c", "d"], ["e"], ["ab", "cd"], ["abcd", "e"]]
