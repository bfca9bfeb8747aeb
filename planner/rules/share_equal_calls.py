"""One form for work that is equal however it is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planner.context import PlanContext
from planner.logical import (
    Compare,
    Format,
    LogicalPlan,
    ModelOp,
    Op,
    Prompt,
    Sql,
    Tool,
)
from planner.surgery import joined_literals, keep_inputs, transform_plan

_MIRRORED = {">": "<", ">=": "<="}
_SYMMETRIC = frozenset(("==", "!=", "and", "or"))


def share_equal_calls(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Write equal calls in one form, so that they become one operator.

    Operators are content-addressed: equal ones are one already. Calls may be equal and written
    differently, which this evens out: inputs in another order, twice or never read, literals in
    pieces, `top_p` of a greedy call, parameters in another order, `a > b` for `b < a`.

    An input that nobody reads is dropped, so its failure no longer fails the call.
    """
    return transform_plan(plan, _one_form, ModelOp, Format, Tool, Sql, Compare)


def _one_form(op: Op) -> Op:
    match op:
        case ModelOp():
            return _model_call(op)
        case Format():
            (prompt,), kept = _inputs(op, [op.prompt])
            return _unless_same(op, kept, {"prompt": prompt})
        case Tool():
            kept = sorted(range(len(op.params)), key=lambda i: op.params[i])
            return _unless_same(op, kept, {"params": tuple(op.params[i] for i in kept)})
        case Sql():
            first = 1 if op.text is None else 0
            order = sorted(range(len(op.params)), key=lambda i: op.params[i])
            kept = [*range(first), *(first + i for i in order)]
            return _unless_same(op, kept, {"params": tuple(op.params[i] for i in order)})
        case Compare():
            return _comparison(op)
        case _:
            return op


def _model_call(op: ModelOp) -> Op:
    prompts = [op.prompt] if op.system is None else [op.system, op.prompt]
    written, kept = _inputs(op, prompts)
    changes: dict[str, Any] = {"prompt": written[-1]}
    if op.system is not None:
        changes["system"] = written[0]
    if op.temperature == 0:
        # A greedy call takes the likeliest token, whatever share of them it may choose from.
        changes["top_p"] = 1.0
    changes["temperature"] = float(op.temperature)
    return _unless_same(op, kept, changes)


def _inputs(op: Op, prompts: list[Prompt]) -> tuple[list[Prompt], list[int]]:
    """The prompts over inputs in order of first use, each once; and which inputs those are."""
    first: dict[Op, int] = {}
    kept: list[int] = []
    mapping: dict[int, int] = {}
    for prompt in prompts:
        for index in prompt.references:
            each = op.inputs[index]
            if each not in first:
                first[each] = len(kept)
                kept.append(index)
            mapping[index] = first[each]
    return [joined_literals(prompt.reindex(mapping)) for prompt in prompts], kept


def _unless_same(op: Op, kept: list[int], changes: dict[str, Any]) -> Op:
    same = kept == list(range(len(op.inputs)))
    if same and all(
        getattr(op, name) == value and type(getattr(op, name)) is type(value)
        for name, value in changes.items()
    ):
        return op
    return keep_inputs(op, kept, **changes)


def _comparison(op: Compare) -> Op:
    if op.operator in _MIRRORED:
        return replace(op, inputs=op.inputs[::-1], operator=_MIRRORED[op.operator])
    if op.operator in _SYMMETRIC:
        left, right = op.inputs
        if right.fingerprint < left.fingerprint:
            return replace(op, inputs=(right, left))
    return op
