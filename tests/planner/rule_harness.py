"""The fixture harness of the rewrite rules.

A fixture is cases with `===` between them: a plan in YAML (`plan_notation`, or a workflow with
`steps`), `---`, and EXPLAIN of the plan after the rule. Keys of the YAML beside the plan:

- `data`: rows by source, or a list for the source "rows";
- `learnt`: pass rates by the label of a filter's predicate, as [kept, seen];
- `rules`: other rules to apply together with the one under test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from plan_notation import plan_of
from simulated_run import Ran, run_plan

from halo.spec import load_spec_text
from planner.context import PlanContext
from planner.explain import explain
from planner.learnt import Learnt, Measured, pass_key
from planner.logical import Json, LogicalPlan
from planner.rewrite import Rule, check_rewrite, rewrite
from planner.shape import shapes
from planner.verify import verify

RULE_FIXTURES = Path(__file__).parent.parent / "fixtures" / "rules"
CASES, RESULT = "\n===\n", "\n---\n"
UNSAFE = "unsafe_"


@dataclass(frozen=True)
class Case:
    """One case of a fixture."""

    text: str
    expected: str
    plan: LogicalPlan
    rows: Mapping[str, Sequence[Mapping[str, Json]]]
    context: PlanContext
    title: str

    @classmethod
    def read(cls, text: str) -> Case:
        written, _, expected = (text.strip("\n") + "\n").partition(RESULT)
        document: dict[str, Any] = yaml.safe_load(written)
        data = document.get("data", [])
        rows = data if isinstance(data, dict) else {"rows": data}
        plan = _plan(document)
        shape_of = shapes(plan)
        measured = {
            pass_key(shape_of[op.fingerprint]): Measured(kept=counts[0], seen=counts[1])
            for op in plan.walk()
            for label, counts in document.get("learnt", {}).items()
            if op.label == label
        }
        context = PlanContext(rows=rows, learnt=Learnt(measured), enforces_choice=True)
        title = written.partition("\n")[0].removeprefix("# title: ")
        return cls(written, expected.strip("\n"), plan, rows, context, title)


def _plan(document: Mapping[str, Any]) -> LogicalPlan:
    if "steps" not in document:
        return plan_of(document)
    workflow = {key: value for key, value in document.items() if key not in ("data", "learnt")}
    flow = load_spec_text(yaml.safe_dump(workflow, sort_keys=False))
    return flow.trace("rows", tuple(document["columns"])).plan


def cases(rule: str) -> list[Case]:
    """The cases of a rule's fixture."""
    text = (RULE_FIXTURES / f"{rule}.txt").read_text("utf-8")
    return [Case.read(each) for each in text.strip("\n").split(CASES)]


def check_case(rule: Rule, case: Case, *, golden: bool = True) -> str:
    """Check one case; the text that the fixture should have after `---`.

    In this order: the result equals the golden one, the plan is legal and promises what it did,
    applying the rule again changes nothing, both plans run to equal rows (unless the rule changes
    what a model sees), and the new one makes no more calls.
    """
    verify(case.plan)
    after = rewrite(case.plan, case.context, rules=[_on(rule)]).plan
    text = explain(after)
    if golden:
        assert text == case.expected, f"{rule.name}: {case.title}"
    check_rewrite(case.plan, after, rule)
    again = rule.apply(after, case.context)
    assert again.fingerprint == after.fingerprint, f"{rule.name} is not idempotent: {case.title}"
    compare_runs(case.plan, after, case.rows, same_answers=not rule.name.startswith(UNSAFE))
    return text


def compare_runs(
    before: LogicalPlan,
    after: LogicalPlan,
    rows: Mapping[str, Sequence[Mapping[str, Json]]],
    *,
    same_answers: bool = True,
) -> tuple[Ran, Ran]:
    """Run both plans on the simulated engine and compare: rows, writes, calls."""
    first, second = run_plan(before, rows), run_plan(after, rows)
    if same_answers:
        assert second.answers == first.answers
    counts = {name: len(found) for name, found in first.answers.items()}
    assert {name: len(found) for name, found in second.answers.items()} == counts
    assert second.writes == first.writes
    assert second.sampled_requests <= first.sampled_requests
    assert second.requests <= first.requests
    assert second.tool_calls <= first.tool_calls
    return first, second


def _on(rule: Rule) -> Rule:
    return Rule(rule.apply, drops_unread=rule.drops_unread)
