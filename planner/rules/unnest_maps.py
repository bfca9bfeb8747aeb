"""A list that is mapped only to be flattened is flattened first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.context import PlanContext
from planner.logical import Column, Effect, Flatten, LogicalPlan, Map, Op
from planner.surgery import inlined, rebuild_rows


def unnest_maps(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Flatten a list, and compute the body of its map for each element's row.

    Elements become rows: each goes its way without waiting for the others, filters and limits over
    the elements save their calls, equal elements of different rows are seen to be equal while
    planning, and one that fails fails its own row alone. Maps with sampled or writing calls stay:
    what such a call is depends on where it is written.
    """
    if Flatten not in plan.kinds or Map not in plan.kinds:
        return plan
    while True:
        # One at a time: the next may be made of this one's rows.
        found = next(filter(None, map(_found, plan.walk())), None)
        if found is None:
            return plan
        plan = _applied(plan, *found)


def _found(op: Op) -> tuple[Flatten, Flatten, Op] | None:
    """The relation to replace, its replacement, and the mapped element over that."""
    if not isinstance(op, Flatten) or not isinstance(op.inputs[1], Map):
        return None
    found = _unnested(op, op.inputs[1])
    return (op, *found) if found is not None else None


def _applied(plan: LogicalPlan, old: Flatten, rows: Flatten, element: Op) -> LogicalPlan:
    def rename(_: Op, op: Op) -> Op:
        if isinstance(op, Column) and op.inputs[0] == old:
            return element if op.name == old.columns[0] else Column((rows,), op.name)
        return op

    def exchange(_: Op, op: Op) -> Op:
        return rows if op == old else op

    return rebuild_rows(rebuild_rows(plan, rename), exchange)


def _unnested(op: Flatten, mapped: Map) -> tuple[Flatten, Op] | None:
    """The flattened list and the mapped element as a value over it."""
    if mapped.effect is not Effect.PURE or mapped.after or not mapped.inputs:
        return None
    names = [*op.columns[:1], *(name for name, _ in op.carried)]
    captures: Sequence[Op] = mapped.inputs[1:]
    added = _fresh(op.columns, len(captures))
    columns = (*names, *added, *([op.position] if op.position else []))
    inputs = (op.inputs[0], mapped.inputs[0], *op.inputs[2:], *captures)
    rows = replace(op, inputs=inputs, columns=columns, null_fails=True)
    arguments = [Column((rows,), name) for name in (op.columns[0], *added)]
    return rows, inlined(mapped.body, arguments)


def _fresh(taken: Sequence[str], count: int) -> list[str]:
    """Names that are not taken."""
    names: list[str] = []
    number = 0
    while len(names) < count:
        name = f"capture {number}"
        number += 1
        if name not in taken:
            names.append(name)
    return names
