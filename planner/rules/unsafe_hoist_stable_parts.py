"""Prompts begin with what rows share."""

from __future__ import annotations

from dataclasses import replace

from planner.context import PlanContext
from planner.logical import LogicalPlan, ModelOp, Op
from planner.prompt_layout import better_layouts
from planner.surgery import rebuild_plan


def unsafe_hoist_stable_parts(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Order the paragraphs of a prompt, and the fields in them, so that a prefix cache hits most.

    A prefix cache holds what prompts begin with. A prompt that begins with the row's document
    shares nothing; with the instruction first it shares the instruction, and rows with equal
    documents share both. Of several orders (`planner.prompt_layout`) the one is taken that a
    simulated cache over the rows answers most tokens of, and only if that is more than as written.
    The model reads the parts in another order and may answer differently: off unless asked for.
    """
    if not any(issubclass(kind, ModelOp) for kind in plan.kinds):
        return plan
    prompts = better_layouts(plan, context)
    if not prompts:
        return plan

    def lay_out(original: Op, op: Op) -> Op:
        prompt = prompts.get(original.fingerprint)
        return op if prompt is None or not isinstance(op, ModelOp) else replace(op, prompt=prompt)

    return rebuild_plan(plan, lay_out, ModelOp)
