"""The rule driver, and what holds for any plan, rows and set of rules."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_harness import cases, check_case, compare_runs
from running_plans import running_plans, some_rows
from sample_plans import ask, chain, column, everything, headline, objection, query, scan
from simulated_run import run_plan

from planner.context import PlanContext
from planner.errors import InvariantError, PlanError
from planner.learnt import Learnt, Measured
from planner.logical import (
    Column,
    Effect,
    Format,
    Generate,
    LogicalPlan,
    Op,
    Prompt,
    Result,
    Scan,
    Tool,
    ToolRef,
)
from planner.merge import merge
from planner.rewrite import Rule, check_rewrite, rewrite
from planner.rules import RULES
from planner.surgery import transform_plan, transform_rows
from planner.verify import verify

SAFE = [rule.name for rule in RULES if rule.default]
CONTEXT = PlanContext(enforces_choice=True)


def drawn() -> LogicalPlan:
    """Two equal sampled calls and a greedy one."""
    rows = scan()
    question = column(rows)
    one = ask("Draw ", question, temperature=1.0, call_id="one", label="one")
    two = ask("Draw ", question, temperature=1.0, call_id="two", label="two")
    return query("q", ask("Compare ", one, " and ", two, " on ", question), rows)


QUESTIONS = {"rows": [{"question": f"q{i % 2}"} for i in range(4)]}


# --- the driver ----------------------------------------------------------------------------------


def test_rules_apply_until_none_changes_anything() -> None:
    found = rewrite(merge({"e": everything()}), CONTEXT)
    again = rewrite(found.plan, CONTEXT)
    assert again.plan.fingerprint == found.plan.fingerprint
    assert not again.changed
    assert "exit_loops_early" in found.changed
    assert {step.rule for step in found.steps} == set(SAFE)
    assert found.off == tuple(rule.name for rule in RULES if not rule.default)


def test_rules_are_switched_by_name() -> None:
    plan = merge({"e": everything()})
    assert rewrite(plan, off=SAFE).plan is plan
    off = rewrite(plan, CONTEXT, off=["exit_loops_early"])
    assert "exit_loops_early" not in off.changed
    assert "exit_loops_early" in off.off
    on = rewrite(plan, CONTEXT, on=["unsafe_hoist_stable_parts"])
    assert "unsafe_hoist_stable_parts" not in on.off
    for names in ({"off": ["shorten"]}, {"on": ["shorten"]}):
        with pytest.raises(PlanError, match=r"no rule is named 'shorten'.*fold_constants"):
            rewrite(plan, **names)


def test_savings_name_the_rule() -> None:
    rows = scan("q", "c")
    q = column(rows, "q")
    text = Format((q,), Prompt(("<", *ask(q).prompt.segments, ">")))
    one, two = ask("About ", text), ask("About <", q, ">")
    plan = query("q", ask(one, " or ", two), rows)
    context = PlanContext(rows={"rows": [{"q": f"q{i}", "c": 1} for i in range(10)]})
    found = rewrite(plan, context)
    assert found.savings()["inline_texts"].calls == 10
    assert sum(saving.calls for saving in found.savings().values()) == 10


def test_a_deep_chain_and_a_wide_plan() -> None:
    deep = rewrite(chain(5000), CONTEXT)
    assert sum(isinstance(op, Generate) for op in deep.plan.walk()) == 5000
    many = {f"q{i}": objection() if i % 2 else headline() for i in range(300)}
    wide = rewrite(merge(many), CONTEXT)
    assert len(wide.plan.outputs) == 300


# --- broken rules are caught ---------------------------------------------------------------------


def shares_sampled_calls(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Let equal sampled calls share one node."""

    def share(op: Op) -> Op:
        if isinstance(op, Generate) and op.effect is Effect.SAMPLED:
            return replace(op, call_id=op.call_id.replace("two", "one"))
        return op

    return transform_plan(plan, share)


def forgets_a_write(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Leave out what nobody reads."""
    return transform_plan(plan, lambda op: replace(op, after=()) if op.after else op)


def invents_a_call(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Warm up every greedy call."""

    def warm(op: Op) -> Op:
        if isinstance(op, Generate) and op.effect is Effect.PURE:
            return replace(op, temperature=1.0, call_id="warm")
        return op

    return transform_plan(plan, warm)


def drops_a_query(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Answer fewer questions."""
    return LogicalPlan(plan.outputs[1:]) if len(plan.outputs) > 1 else plan


def reads_other_rows(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Use the rows that are in the cache."""
    return transform_plan(plan, lambda op: replace(op, source="x") if isinstance(op, Scan) else op)


def loses_its_input(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Save an input."""
    return transform_plan(
        plan,
        lambda op: replace(op, inputs=op.inputs[:-1]) if isinstance(op, Tool) else op,
    )


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (shares_sampled_calls, "are different calls with call_id 'one'|lost the sampled calls"),
        (forgets_a_write, "lost the write calls"),
        (invents_a_call, "made sampled calls that nobody wrote|different calls with call_id"),
        (drops_a_query, "changed the queries"),
        (reads_other_rows, "changed the rows of query"),
        (loses_its_input, "made an illegal plan"),
    ],
)
def test_a_rule_that_breaks_a_promise_is_named(rule: object, words: str) -> None:
    rows = scan()
    question = column(rows)
    write = Tool((question,), ToolRef("note"), ("q",), "note")
    told = Format((question,), Prompt(("!", *ask(question).prompt.segments)), after=(write,))
    plan = merge({"drawn": drawn(), "told": query("told", told, rows)})
    broken = Rule(rule)  # type: ignore[arg-type]
    with pytest.raises(InvariantError, match=f"rule {broken.name} .*({words})"):
        rewrite(plan, rules=[broken])


def reverses_prompts(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Put the data first."""

    def reverse(op: Op) -> Op:
        if isinstance(op, Generate):
            return replace(op, prompt=Prompt(op.prompt.segments[::-1]))
        return op

    return transform_plan(plan, reverse)


def grows(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Say please."""

    def please(op: Op) -> Op:
        if isinstance(op, Generate):
            return replace(op, prompt=Prompt((*op.prompt.segments, " please")))
        return op

    return transform_plan(plan, please)


def drops_a_row(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Skip the first row: it is always the same."""
    from planner.logical import Limit

    def skip(op: Op) -> Op:
        if isinstance(op, Result) and isinstance(op.rows, Scan):
            return Result((op.value, Limit((op.rows,), 10_000, 1)))
        return op

    return transform_rows(plan, skip)


def asks_twice(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Make sure."""

    def sure(op: Op) -> Op:
        if isinstance(op, Result) and isinstance(op.value, Generate):
            check = ask("Sure? ", op.value)
            kept = Format((op.value, check), Prompt(ask(op.value).prompt.segments))
            return replace(op, inputs=(kept, op.rows))
        return op

    return transform_rows(plan, sure)


def test_a_rule_that_runs_in_a_circle_is_caught_with_both_plans() -> None:
    with pytest.raises(InvariantError, match=r"in a circle.*reverses_prompts") as caught:
        rewrite(drawn(), rules=[Rule(reverses_prompts)])
    assert "--- before\nQuery q" in str(caught.value)
    assert "--- after\nQuery q" in str(caught.value)


def test_a_rule_that_never_ends_is_caught() -> None:
    with pytest.raises(InvariantError, match=r"do not end: pass 12 still.*grows"):
        rewrite(drawn(), rules=[Rule(grows)])


@pytest.mark.parametrize("rule", [reverses_prompts, drops_a_row, asks_twice])
def test_what_no_promise_forbids_is_caught_by_running_both_plans(rule: object) -> None:
    broken = Rule(rule)  # type: ignore[arg-type]
    before = drawn()
    after = broken.apply(before, CONTEXT)
    check_rewrite(before, after, broken)  # legal, as far as the plan alone tells
    with pytest.raises(AssertionError):
        compare_runs(before, after, QUESTIONS)


@pytest.mark.parametrize("rule", [shares_sampled_calls, reverses_prompts, grows, drops_a_row])
def test_the_harness_catches_them_without_the_golden_text(rule: object) -> None:
    case = replace(cases("share_equal_calls")[2], plan=drawn(), rows=QUESTIONS)
    with pytest.raises((AssertionError, InvariantError)):
        check_case(Rule(rule), case, golden=False)  # type: ignore[arg-type]


# --- properties ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(running_plans(), st.integers(0, 5), st.sets(st.sampled_from(SAFE)))
def test_a_rewritten_plan_gives_the_same_rows(plan: LogicalPlan, count: int, off: set[str]) -> None:
    verify(plan)
    rows = some_rows(count)
    found = rewrite(plan, PlanContext(rows=rows, enforces_choice=True), off=off)
    compare_runs(plan, found.plan, rows)


@settings(max_examples=25, deadline=None)
@given(running_plans(), st.integers(1, 4), st.lists(st.tuples(st.integers(0, 9), st.just(9))))
def test_whatever_was_learnt_the_rows_are_the_same(
    plan: LogicalPlan, count: int, counts: list[tuple[int, int]]
) -> None:
    from planner.learnt import pass_key
    from planner.shape import shapes

    keys = list(dict.fromkeys(shapes(plan).values()))
    ops = {
        pass_key(key): Measured(kept=kept, seen=seen)
        for key, (kept, seen) in zip(keys, itertools.cycle(counts or [(1, 2)]), strict=False)
    }
    rows = some_rows(count)
    found = rewrite(plan, PlanContext(rows=rows, learnt=Learnt(ops)))
    first, second = run_plan(plan, rows), run_plan(found.plan, rows)
    assert second.answers == first.answers
    assert second.writes == first.writes


@settings(max_examples=25, deadline=None)
@given(st.lists(running_plans(relations=False), min_size=2, max_size=4), st.integers(1, 4))
def test_a_merged_batch_is_its_queries_alone(plans: list[LogicalPlan], count: int) -> None:
    alone = {f"p{i}": LogicalPlan(plan.outputs[:1]) for i, plan in enumerate(plans)}
    rows = some_rows(count)
    batch = merge(alone)
    together = run_plan(rewrite(batch, PlanContext(rows=rows)).plan, rows)
    requests = 0
    for name, plan in alone.items():
        by_itself = run_plan(merge({name: plan}), rows)
        assert together.answers[name] == by_itself.answers[name]
        requests += by_itself.requests
    assert together.requests <= requests


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(running_plans(), st.lists(st.sampled_from(SAFE), min_size=6, max_size=6, unique=True))
def test_all_subsets_of_six_rules_give_the_same_rows(plan: LogicalPlan, six: list[str]) -> None:
    rows = some_rows(4)
    context = PlanContext(rows=rows, enforces_choice=True)
    plain = run_plan(plan, rows)
    seen: set[str] = set()
    for size in range(7):
        for chosen in itertools.combinations(six, size):
            found = rewrite(plan, context, off=set(SAFE) - set(chosen)).plan
            if found.fingerprint in seen:
                continue
            seen.add(found.fingerprint)
            ran = run_plan(found, rows)
            assert ran.answers == plain.answers
            assert ran.writes == plain.writes
            assert ran.calls <= plain.calls


def test_columns_stay_where_they_are() -> None:
    """What is pushed below keeps reading the columns of the rows that it is over."""
    for rule in RULES:
        for case in cases(rule.name):
            after = rule.apply(case.plan, case.context)
            for op in after.walk():
                if isinstance(op, Column):
                    verify(after)
