"""What is limited is not made beyond the limit."""

from __future__ import annotations

from dataclasses import replace

from planner.context import PlanContext
from planner.logical import Collect, Limit, LogicalPlan, Relation, Subset
from planner.surgery import has_write, move_below


def push_limits_down(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Limit the rows that a relation of as many rows is made of, instead of its own.

    A limit over made rows stops the rows before them too, but some are under way by then.
    """
    return move_below(plan, _below) if Limit in plan.kinds else plan


def _below(op: Subset, made: Relation) -> Relation | None:
    if not isinstance(op, Limit) or not isinstance(made, Collect) or made.after:
        return None
    if any(has_write(value) for value in made.inputs[1:]):
        return None  # a write happens for every collected row, whatever is read of it later
    limited = replace(op, inputs=(made.inputs[0],))
    return replace(made, inputs=(limited, *made.inputs[1:]))
