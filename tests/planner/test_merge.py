"""Merging: equal pure work becomes one operator, what must stay apart stays apart."""

from __future__ import annotations

import pytest
import strategies
from hypothesis import given, settings
from sample_plans import ask, chain, column, everything, headline, objection, query, scan

from planner.errors import PlanError
from planner.logical import (
    Body,
    Const,
    Effect,
    Format,
    Generate,
    LogicalPlan,
    Map,
    ModelOp,
    Op,
    Ordered,
    Param,
    Prompt,
    Ref,
    Sql,
    Tool,
    ToolRef,
)
from planner.merge import MergeReport, merge
from planner.verify import verify

WRITE = ToolRef("publish", "d", Effect.WRITE)


def call_ids(plan: LogicalPlan) -> list[str]:
    """Of the calls that must stay apart, every scope."""
    calls = (op for op in plan.walk_all() if isinstance(op, ModelOp | Tool | Sql))
    return [op.call_id for op in calls if op.effect is not Effect.PURE]


def sampled(name: str) -> LogicalPlan:
    rows = scan()
    return query(name, ask("Draw ", column(rows), temperature=1.0, call_id="draw"), rows)


def test_equal_greedy_calls_of_two_workflows_become_one_object() -> None:
    plan = merge({"a": headline(), "b": objection()})
    assert sum(isinstance(op, Generate) for op in plan.walk()) == 4
    [facts] = [op for op in plan.walk() if op.label == "facts"]
    assert plan.users[facts] == ("a", "b")
    assert len({id(op) for op in plan.walk()}) == len({op.fingerprint for op in plan.walk()})


def test_outputs_take_the_names_and_the_order_of_the_batch() -> None:
    plan = merge({"z": headline(), "a": objection(), "m": headline()})
    assert [name for name, _ in plan.outputs] == ["z", "a", "m"]
    assert plan.outputs[0][1] is plan.outputs[2][1]


def test_equal_sampled_calls_of_two_queries_stay_apart() -> None:
    plan = merge({"a": sampled("x"), "b": sampled("x")})
    assert sorted(call_ids(plan)) == ["a/draw", "b/draw"]


def test_sampled_calls_inside_bodies_stay_apart_and_take_what_follows_with_them() -> None:
    rows = scan()
    drawn = ask("Draw ", Param((), 0), temperature=1.0, call_id="draw")
    nested = Map((Param((), 0),), Body(1, drawn))
    outer = Map((column(rows),), Body(1, nested))
    one = query("x", ask("Join ", outer), rows)
    plan = merge({"a": one, "b": one})
    assert sorted(call_ids(plan)) == ["a/draw", "b/draw"]
    assert len([op for op in plan.walk() if isinstance(op, Map)]) == 2
    assert len([op for op in plan.walk() if isinstance(op, Generate)]) == 2
    verify(plan)


def test_writes_without_an_identity_get_one() -> None:
    rows = scan()
    first = Tool((column(rows),), tool=WRITE, params=("x",))
    second = Sql((), text="DELETE FROM t", read_only=False, after=(first,))
    one = query("x", Ordered((column(rows),), after=(second,)), rows)
    plan = merge({"a": one, "b": one})
    assert call_ids(plan) == ["a/#1", "a/#2", "b/#1", "b/#2"]
    verify(plan)


def test_one_body_used_twice_holds_two_writes() -> None:
    rows = scan()
    body = Body(1, Tool((Param((), 0),), tool=WRITE, params=("x",), call_id="note"))
    maps = [Map((Const.of(items),), body) for items in (["a"], ["b"])]
    both = Format(tuple(maps), Prompt((Ref(0), Ref(1))))
    plan = merge({"q": query("x", both, rows)})
    assert sorted(call_ids(plan)) == ["q/note", "q/note~2"]
    verify(plan)


def test_a_query_has_the_same_operators_alone_and_in_a_batch() -> None:
    alone = merge({"b": everything()})
    batch = merge({"a": headline(), "b": everything(), "c": everything()})
    assert dict(batch.outputs)["b"] == dict(alone.outputs)["b"]
    assert dict(batch.outputs)["c"] != dict(alone.outputs)["b"]


def test_writes_keep_their_order_through_the_merge() -> None:
    plan = merge({"q": everything()})
    first, second = (op for op in plan.walk() if op.label in ("first", "second"))
    assert second.after == (first,)
    assert second.after[0] is first


def test_different_rows_are_not_shared() -> None:
    def over(source: str) -> LogicalPlan:
        rows = scan(source=source)
        return query("x", ask("Hi ", column(rows)), rows)

    plan = merge({"a": over("rows-1"), "b": over("rows-2")})
    assert len([op for op in plan.walk() if isinstance(op, Generate)]) == 2


def test_merging_1000_workflows_shares_all_but_their_last_steps() -> None:
    plans: dict[str, LogicalPlan] = {}
    for i in range(1000):
        shared = chain(9).outputs[0][1]
        plans[f"q{i}"] = query("x", ask(f"Finish {i}: ", shared.value), shared.scan)
    plan = merge(plans)
    assert sum(isinstance(op, Generate) for op in plan.walk()) == 9 + 1000
    report = MergeReport.of(plan)
    assert (report.ops_before, report.ops_after) == (13 * 1000, 2 + 9 + 1000 + 1000)
    assert all(len(queries) == 1000 for _, queries in report.shared)
    assert len(report.shared) == 9


def test_a_chain_of_5000_calls_merges() -> None:
    plan = merge({"a": chain(5000), "b": chain(5000)})
    assert sum(isinstance(op, Generate) for op in plan.walk()) == 5000


@pytest.mark.parametrize(
    ("plans", "words"),
    [
        ({}, "at least one"),
        ({"": headline()}, "name"),
        ({"q": LogicalPlan((*headline().outputs, *objection().outputs))}, "2 outputs"),
    ],
)
def test_what_is_no_batch_is_refused(plans: dict[str, LogicalPlan], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        merge(plans)


def shape(plan: LogicalPlan, name: str) -> list[tuple[str, Effect]]:
    root: Op = dict(plan.outputs)[name]
    return [(op.kind, op.effect) for op in LogicalPlan(((name, root),)).walk()]  # type: ignore[arg-type]


@settings(max_examples=60)
@given(strategies.plans(), strategies.plans())
def test_merging_loses_and_repeats_nothing_of_any_two_plans(
    left: LogicalPlan, right: LogicalPlan
) -> None:
    plans = {
        "l": LogicalPlan(left.outputs[:1]),
        "r": LogicalPlan(right.outputs[:1]),
    }
    merged = merge(plans)
    for name, plan in plans.items():
        renamed = LogicalPlan(((name, plan.outputs[0][1]),))
        assert shape(merged, name) == shape(renamed, name)
    apart = [i for i in call_ids(merged) if i]
    assert len(apart) == len(set(apart))
    users = merged.users
    for op in merged.walk():
        if op.effect is not Effect.PURE and isinstance(op, ModelOp | Tool | Sql):
            assert len(users[op]) == 1
