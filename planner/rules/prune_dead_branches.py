"""Branches that every row takes, or none does, are no branches."""

from __future__ import annotations

from planner.context import PlanContext
from planner.logical import Body, Const, Effect, Filter, Limit, LogicalPlan, Op, When
from planner.surgery import after_writes, inlined, transform_plan


def prune_dead_branches(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Take the branch of a constant condition, or of two equal branches; drop a filter that keeps
    all rows, and the limit of a limit.

    Branches with sampled or writing calls stay: what such a call is depends on where it is written.
    """
    return transform_plan(plan, _prune, When, Filter, Limit)


def _prune(op: Op) -> Op:
    match op:
        case When(inputs=(Const() as condition, *_)):
            return _taken(op, op.then if condition.value else op.otherwise)
        case When() if op.then.fingerprint == op.otherwise.fingerprint:
            return _taken(op, op.then)
        case Filter(inputs=(rows, Const() as predicate)) if predicate.value:
            return rows
        case Limit(inputs=(Limit() as inner,)):
            # Rows `offset` to `offset + count` of the inner limit's rows.
            left = max(0, inner.count - op.offset)
            return Limit(inner.inputs, min(op.count, left), inner.offset + op.offset)
        case _:
            return op


def _taken(op: When, body: Body) -> Op:
    if op.effect is not Effect.PURE:
        return op
    return after_writes(inlined(body, op.inputs[1:]), [*op.inputs, *op.after])
