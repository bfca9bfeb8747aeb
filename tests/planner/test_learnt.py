"""What runs teach: found again over other rows, in other batches, and marked as what it is."""

from __future__ import annotations

from itertools import permutations
from typing import cast

import pytest
from sample_plans import ask, column, headline, query, scan
from simulated_run import run_plan

from costmodel.tokens import estimate_tokens
from planner.context import PlanContext
from planner.explain import explain
from planner.learnt import Learnt, Measured, pass_key, wilson
from planner.logical import (
    Choose,
    Compare,
    Const,
    Filter,
    LogicalPlan,
    Op,
    Prompt,
    Ref,
    Relation,
    Result,
    Scan,
)
from planner.merge import merge
from planner.rewrite import rewrite
from planner.shape import shapes
from planner.verify import verify


def filtered(source: str, name: str = "q") -> LogicalPlan:
    rows = scan(source=source)
    question = column(rows)
    keep = Choose((question,), "m", Prompt(("Keep? ", Ref(0))), options=("yes", "no", "maybe"))
    kept = Filter((rows, Compare((keep, Const.of("yes")), "==")))
    return LogicalPlan(((name, Result((ask("Answer ", question, max_tokens=500), kept))),))


def rows_of(source: str, count: int) -> dict[str, list[dict[str, object]]]:
    return {source: [{"question": f"{source} {i}?"} for i in range(count)]}


def test_a_shape_is_the_same_over_other_rows_and_in_other_batches() -> None:
    first = merge({"a": filtered("monday")})
    second = merge({"b": filtered("tuesday"), "h": headline()})
    one, two = (set(shapes(plan).values()) for plan in (first, second))
    assert one <= two
    assert len(shapes(second)) > len(shapes(first))


def test_shapes_tell_different_work_apart() -> None:
    rows = scan()
    ops: list[Op] = [ask("a ", column(rows)), ask("b ", column(rows)), ask(ask("a ", column(rows)))]
    found = shapes(query("q", ask(*ops), rows))
    assert len(set(found.values())) == len(found)


def test_a_run_teaches_lengths_and_pass_rates() -> None:
    past = merge({"q": filtered("monday")})
    ran = run_plan(past, rows_of("monday", 60))  # type: ignore[arg-type]
    learnt = Learnt.from_runs([(past, ran.metrics)])
    assert Learnt.from_json(learnt.to_json()) == learnt
    plan = merge({"other": filtered("tuesday")})
    context = PlanContext(rows=rows_of("tuesday", 100), learnt=learnt)  # type: ignore[arg-type]
    stats = context.stats(plan)
    kept = next(op for op in plan.walk() if isinstance(op, Filter))
    answer = plan.outputs[0][1].value
    relation = stats.relations[kept.fingerprint]
    kept_before = len(ran.outcomes["q"])
    assert relation.pass_rate == kept_before / 60
    assert relation.pass_low < relation.pass_rate < relation.pass_high
    assert relation.pass_from == "learnt"
    assert stats.of(answer).output_from == "learnt"
    # The simulated engine answers with about 24 tokens, half of 500 was assumed.
    assert stats.of(answer).output_tokens / stats.of(answer).calls < 60
    text = explain(plan, stats=stats)
    assert "* learnt from earlier runs" in text
    assert f"pass *{relation.pass_rate:.2f} ±" in text


def test_measured_rates_order_predicates_and_the_rows_stay() -> None:
    rows = scan()
    question = column(rows)

    def keeps(words: str, operator: str, *options: str) -> Op:
        answer = Choose((question,), "m", Prompt((words, Ref(0))), options=options)
        return Compare((answer, Const.of(options[0])), operator)

    most = keeps("Any? ", "!=", "a", "b", "c", "d", "e")
    kept = Filter((Filter((rows, most)), keeps("Is it short? ", "==", "yes", "yes ", "yes  ")))
    plan = merge({"q": LogicalPlan((("q", Result((question, kept))),))})
    verify(plan)
    data = rows_of("rows", 80)
    sampled = rewrite(plan, PlanContext(rows=rows_of("rows", 40))).plan  # type: ignore[arg-type]
    sample = run_plan(sampled, rows_of("rows", 40))  # type: ignore[arg-type]
    learnt = Learnt.from_runs([(sampled, sample.metrics)], "sampled")
    found = rewrite(plan, PlanContext(rows=data, learnt=learnt))  # type: ignore[arg-type]
    before, after = run_plan(plan, data), run_plan(found.plan, data)  # type: ignore[arg-type]
    assert after.answers == before.answers
    assert "order_model_predicates" in found.changed
    assert after.requests < before.requests


@pytest.mark.parametrize("kept", list(permutations((10, 40, 70, 95))))
def test_of_several_predicates_the_one_that_drops_most_comes_first(kept: tuple[int, ...]) -> None:
    whole = scan()
    question, rows = column(whole), cast("Relation", whole)
    predicates: list[Op] = [
        Choose((question,), "m", Prompt((f"Question {i}? ", Ref(0))), options=("yes", ""))
        for i in range(len(kept))
    ]
    for predicate in predicates:
        rows = Filter((rows, predicate))
    plan = merge({"q": LogicalPlan((("q", Result((question, rows))),))})
    shape_of = shapes(plan)
    rates = dict(zip(predicates, kept, strict=True))
    learnt = Learnt(
        {pass_key(shape_of[p.fingerprint]): Measured(seen=100, kept=n) for p, n in rates.items()}
    )
    found = rewrite(plan, PlanContext(rows=rows_of("rows", 20), learnt=learnt))  # type: ignore[arg-type]
    ordered: list[int] = []
    rows = found.plan.outputs[0][1].rows
    while isinstance(rows, Filter):
        ordered.append(rates[rows.predicate])
        rows = rows.rows
    assert ordered == sorted(kept, reverse=True)


def test_later_lessons_win() -> None:
    old, new = Learnt({"a": Measured(kept=1, seen=2)}), Learnt({"a": Measured(kept=9, seen=9)})
    assert (old + new).of("a") == Measured(kept=9, seen=9)
    assert (old + Learnt()).of("a") == Measured(kept=1, seen=2)
    assert (old + Learnt(source="sampled")).source == "learnt"


def test_intervals_hold_the_rate_and_shrink() -> None:
    for kept, seen in ((0, 5), (5, 5), (3, 10), (300, 1000)):
        low, high = wilson(kept, seen)
        assert 0 <= low <= kept / seen <= high <= 1
    few, many = wilson(3, 10), wilson(300, 1000)
    assert many[1] - many[0] < (few[1] - few[0]) / 5


def test_counts_on_the_rows_stay_exact() -> None:
    plan = merge({"q": filtered("monday")})
    context = PlanContext(
        rows=rows_of("monday", 10),  # type: ignore[arg-type]
        count_tokens=estimate_tokens,
        learnt=Learnt({key: Measured(9, 9, 9, 9, 9, 9) for key in shapes(plan).values()}),
    )
    keep = next(op for op in plan.walk() if isinstance(op, Choose))
    assert context.stats(plan).of(keep).calls_from == "exact"
    assert isinstance(plan.outputs[0][1].scan, Scan)
