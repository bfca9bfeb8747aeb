"""Predicates that ask nothing come before those that ask a model or a tool."""

from __future__ import annotations

from planner.context import PlanContext
from planner.logical import Filter, LogicalPlan, Op
from planner.surgery import has_write, is_free, transform_rows


def pull_cheap_predicates(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Evaluate predicates without calls first, so that calls are made for fewer rows.

    A row whose model predicate would have failed and that a cheap one drops does not fail any more.
    Predicates that write stay where they are.
    """
    return transform_rows(plan, _pull) if Filter in plan.kinds else plan


def _pull(op: Op) -> Op:
    """Bottom-up, the filters inside are in order already: sink this one to its place."""
    if not isinstance(op, Filter) or op.after or not is_free([op.predicate]):
        return op
    passed: list[Filter] = []
    rows = op.rows
    while isinstance(rows, Filter) and not is_free([rows.predicate]):
        if has_write(rows.predicate) or rows.after:
            break
        passed.append(rows)
        rows = rows.rows
    if not passed:
        return op
    found = Filter((rows, op.predicate), label=op.label)
    for each in reversed(passed):
        found = Filter((found, each.predicate), label=each.label)
    return found
