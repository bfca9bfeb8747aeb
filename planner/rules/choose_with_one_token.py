"""A choice whose options differ at once is decoded for one token."""

from __future__ import annotations

from dataclasses import replace

from planner.context import PlanContext
from planner.logical import Choose, LogicalPlan, Op
from planner.surgery import transform_plan


def choose_with_one_token(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Decode one token of a choice whose options begin with different characters.

    The first token of an answer is then the beginning of one option, whatever the model's
    vocabulary, and the runtime completes it. Only for engines that enforce the options while
    decoding; others may begin their answer with anything.
    """
    if not context.enforces_choice:
        return plan
    return transform_plan(plan, _cut, Choose)


def _cut(op: Op) -> Op:
    if not isinstance(op, Choose) or op.max_tokens == 1:
        return op
    first = [option[:1] for option in op.options]
    if len(set(first)) < len(first) or any(not each or each.isspace() for each in first):
        return op
    return replace(op, max_tokens=1)
