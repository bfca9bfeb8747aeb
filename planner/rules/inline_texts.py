"""Texts that only prompts read become part of the prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planner.context import PlanContext
from planner.logical import Format, LogicalPlan, ModelOp, Op, Prompt
from planner.surgery import splice, transform_plan


def inline_texts(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Write a text that is built for a prompt into the prompt.

    The model sees the same text. The plan sees its literals and its columns where they stand: which
    prefix rows share, and which calls are equal.
    """
    return transform_plan(plan, _inline, Format)


def _inline(op: Op) -> Op:
    if not isinstance(op, ModelOp | Format) or not any(map(_is_open, op.inputs)):
        return op
    prompts = [op.prompt]
    if isinstance(op, ModelOp) and op.system is not None:
        prompts.insert(0, op.system)
    read = {op.inputs[i] for prompt in prompts for i in prompt.references}
    if any(each not in read for each in op.inputs):
        return op  # an input that no prompt reads: left to the rule that knows what to do with it
    inputs: dict[Op, int] = {}
    written: list[Prompt] = []
    for prompt in prompts:
        opened, over = splice(prompt, op.inputs, _opened)
        mapping = {i: inputs.setdefault(each, len(inputs)) for i, each in enumerate(over)}
        written.append(opened.reindex(mapping))
    changes: dict[str, Any] = {"prompt": written[-1], "inputs": tuple(inputs)}
    if len(written) == 2:
        changes["system"] = written[0]
    return replace(op, **changes)


def _is_open(op: Op) -> bool:
    if not isinstance(op, Format) or op.after:
        return False
    # An input that its text does not show may still fail, or write.
    return set(op.prompt.references) == set(range(len(op.inputs)))


def _opened(op: Op) -> tuple[Prompt, tuple[Op, ...]] | None:
    if isinstance(op, Format) and _is_open(op):
        return op.prompt, op.inputs
    return None
