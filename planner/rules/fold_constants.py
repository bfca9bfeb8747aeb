"""Values that are the same for every row are computed while planning."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from planner.context import PlanContext
from planner.logical import (
    Body,
    Compare,
    Const,
    Field,
    Format,
    Json,
    LogicalPlan,
    Loop,
    Map,
    ModelOp,
    Op,
    Param,
    Project,
    Prompt,
    Recover,
    Reduce,
    When,
    render_value,
)
from planner.surgery import rebound, splice, transform_plan


def fold_constants(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Compute what is the same for every row, and write constants into prompts.

    A prompt that refers to a constant becomes a longer literal: its prefix is then known before the
    run, and a prompt of literals alone is one call, whatever the number of rows. Constants that a
    body captures are written into the body. What would fail is left to fail at run time.
    """
    return transform_plan(plan, _fold, Const)


def _fold(op: Op) -> Op:
    match op:
        case ModelOp():
            return _with_literals(op)
        case Format():
            op = _with_literals(op)
            if isinstance(op, Format) and not op.inputs and not op.after:
                return Const.of(op.prompt.render(()), op.label)
            return op
        case Map() | Reduce() | Loop():
            return _without_constant_captures(op, first=1, offset=0)
        case When():
            return _without_constant_captures(op, first=1, offset=1)
        case _ if op.inputs and not op.after and all(isinstance(i, Const) for i in op.inputs):
            return _computed(op)
        case _:
            return op


def _with_literals(op: ModelOp | Format) -> Op:
    if not any(isinstance(each, Const) for each in op.inputs):
        return op
    prompts = [op.prompt]
    if isinstance(op, ModelOp) and op.system is not None:
        prompts.insert(0, op.system)
    inputs: dict[Op, int] = {}
    written: list[Prompt] = []
    for prompt in prompts:
        opened, over = splice(prompt, op.inputs, _literal)
        mapping = {i: inputs.setdefault(each, len(inputs)) for i, each in enumerate(over)}
        written.append(opened.reindex(mapping))
    changes: dict[str, Any] = {"prompt": written[-1], "inputs": tuple(inputs)}
    if len(written) == 2:
        changes["system"] = written[0]
    unread = set(op.inputs) - set(inputs)
    if any(not isinstance(each, Const) for each in unread):
        return op  # an input that no prompt reads: left to the rule that knows what to do with it
    return replace(op, **changes)


def _literal(op: Op) -> tuple[Prompt, tuple[Op, ...]] | None:
    return (Prompt((render_value(op.value),)), ()) if isinstance(op, Const) else None


def _without_constant_captures(op: Op, first: int, offset: int) -> Op:
    """`op` with the constants among its captures written into its bodies. Input `first` + i is
    parameter `first` - `offset` + i."""
    constant = [i for i, each in enumerate(op.inputs) if i >= first and isinstance(each, Const)]
    if not constant:
        return op
    params: dict[int, Op] = {}
    kept: list[Op] = []
    for i, each in enumerate(op.inputs):
        number = i - offset
        if i in constant:
            params[number] = each
        else:
            if number >= 0:
                params[number] = Param((), len(kept) - offset)
            kept.append(each)
    n_params = len(kept) - offset
    changes: dict[str, Any] = {"inputs": tuple(kept)}
    for field in fields(op):
        body = getattr(op, field.name)
        if isinstance(body, Body):
            changes[field.name] = rebound(body, n_params, params)
    return replace(op, **changes)


def _computed(op: Op) -> Op:
    values = [each.value for each in op.inputs if isinstance(each, Const)]
    match op:
        case Project(names=names):
            return Const.of(dict(zip(names, values, strict=True)), op.label)
        case Field(key=key):
            return _member(op, values[0], key)
        case Recover(detail=False):
            return op.inputs[0]
        case Compare(operator="==", nulls=False):
            return Const.of(values[0] == values[1], op.label)
        case Compare(operator="!=", nulls=False):
            return Const.of(values[0] != values[1], op.label)
        case Compare(operator="truthy"):
            return Const.of(bool(values[0]), op.label)
        case Compare(operator="is_null"):
            return Const.of(values[0] is None, op.label)
        case Compare(operator="not", nulls=False):
            return Const.of(not values[0], op.label)
        case _:
            return op


def _member(op: Field, value: Json, key: str | int) -> Op:
    if isinstance(value, dict) and isinstance(key, str) and key in value:
        return Const.of(value[key], op.label)
    if isinstance(value, list) and isinstance(key, int) and -len(value) <= key < len(value):
        return Const.of(value[key], op.label)
    return op
