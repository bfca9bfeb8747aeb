"""Loops end as soon as nothing can change any more."""

from __future__ import annotations

from dataclasses import replace

from planner.context import PlanContext
from planner.logical import Const, Effect, LogicalPlan, Loop, Op
from planner.surgery import after_writes, transform_plan, used_params


def exit_loops_early(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """End a loop of pure steps when a step returns the state that it was given.

    A pure step would return it again in every further round, and the condition would hold again. A
    loop whose condition never holds is its first state; one whose step ignores the state needs one
    round.
    """
    return transform_plan(plan, _early, Loop)


def _early(op: Op) -> Op:
    if not isinstance(op, Loop) or op.effect is not Effect.PURE:
        return op
    condition = op.condition.result
    if isinstance(condition, Const) and not condition.value:
        return after_writes(op.inputs[0], [*op.inputs[1:], *op.after])
    ignores_state = 0 not in used_params([op.step])
    if ignores_state and op.max_rounds > 1:
        return replace(op, max_rounds=1)
    stable = op.max_rounds > 1
    return op if op.stop_when_stable == stable else replace(op, stop_when_stable=stable)
