"""What nobody reads is not computed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from planner.context import PlanContext
from planner.logical import (
    Body,
    Collect,
    Column,
    Effect,
    Field,
    Flatten,
    Group,
    LogicalPlan,
    Loop,
    Map,
    Op,
    Ordered,
    Pairs,
    Param,
    Project,
    Reduce,
    Relation,
    Sort,
    SqlRows,
    When,
)
from planner.surgery import (
    after_writes,
    has_write,
    keep_inputs,
    rebound,
    rebuild_rows,
    transform_plan,
    used_params,
)


def prune_unread_values(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Drop values that nobody reads: members of objects, captures of bodies, columns of relations.

    Whole operators need no rule: a plan holds what its outputs reach. Writes happen whether or not
    somebody reads what they return, so they stay. A sampled call that nobody reads goes, and so
    does an error that nobody would have seen.
    """
    pruned = transform_plan(plan, _prune, Field, Ordered, Map, Reduce, Loop, When)
    return _prune_columns(pruned)


def _prune(op: Op) -> Op:
    match op:
        case Field(inputs=(Project() as whole,)) if op.key in whole.names:
            at = whole.names.index(str(op.key))
            others = [*whole.inputs[:at], *whole.inputs[at + 1 :], *whole.after, *op.after]
            return after_writes(whole.inputs[at], others)
        case Ordered():
            return _without_idle_order(op)
        case Map() | Reduce() | Loop():
            return _without_captures(op, first=1, offset=0)
        case When():
            return _without_captures(op, first=1, offset=1)
        case _:
            return op


def _without_idle_order(op: Ordered) -> Op:
    """Without what it waits for in vain: operators that write nothing."""
    kept = tuple(each for each in op.after if has_write(each))
    if not kept:
        return op.inputs[0]
    return op if kept == op.after else replace(op, after=kept)


def _without_captures(op: Op, first: int, offset: int) -> Op:
    """Without captures that no body reads. Input `i` is parameter `i - offset`; those before
    `first` are no captures."""
    used = used_params(op.bodies)
    kept = [i for i in range(len(op.inputs)) if i < first or i - offset in used]
    if len(kept) == len(op.inputs):
        return op
    params: dict[int, Op] = {}
    for new, old in enumerate(kept):
        if old - offset >= 0:
            params[old - offset] = Param((), new - offset)
    changes: dict[str, Any] = {}
    for field in fields(op):
        body = getattr(op, field.name)
        if isinstance(body, Body):
            changes[field.name] = rebound(body, len(kept) - offset, params)
    return keep_inputs(op, kept, **changes)


# --- columns of relations ------------------------------------------------------------------------


def _prune_columns(plan: LogicalPlan) -> LogicalPlan:
    relations = [op for op in plan.walk() if isinstance(op, _MADE)]
    if not relations or any(op.own_effect is not Effect.PURE for op in plan.walk_all()):
        # The key of a row that was made is its content, and with other keys sampled calls would
        # draw other answers and writes would have other identities.
        return plan
    read: dict[Op, set[str]] = {relation: set() for relation in relations}
    for op in plan.walk():
        if isinstance(op, Column) and op.inputs[0] in read:
            read[op.inputs[0]].add(op.name)
        if isinstance(op, SqlRows):
            # Its text may read any column.
            for table in op.table_inputs:
                if table.base in read:
                    read[table.base].update(table.column_names)

    def drop(original: Op, op: Op) -> Op:
        return _with_columns(op, read[original]) if original in read else op

    return rebuild_rows(plan, drop)


_MADE = (Collect, Flatten, Pairs, Group, Sort)


def _with_columns(op: Op, read: set[str]) -> Op:
    """A relation with the columns in `read`, and those that it needs itself."""
    match op:
        case Flatten():
            if op.position and op.position not in read:
                return _with_columns(replace(op, columns=op.columns[:-1], position=""), read)
            return _pick(op, read, first=1, needed=(op.columns[0], op.position))
        case Collect():
            return _pick(op, read, first=1, needed=())
        case Pairs():
            on = [name for pair in op.on for name in pair]
            return _pick(op, read, first=2, needed=on)
        case Group():
            return _pick(op, read, first=1, needed=op.columns[: op.n_keys])
        case Sort():
            return _pick(op, read, first=1, needed=[name.removeprefix("-") for name in op.by])
        case _:
            return op


def _pick(
    op: Collect | Flatten | Pairs | Group | Sort,
    read: set[str],
    first: int,
    needed: Any,
) -> Relation:
    n_values = len(op.inputs) - first
    at = [i for i, name in enumerate(op.columns) if name in read or name in needed]
    # A relation that writes for its rows writes whether the value is read or not.
    at = sorted({*at, *(i for i in range(n_values) if has_write(op.inputs[first + i]))})
    if len(at) == len(op.columns):
        return op
    changes: dict[str, Any] = {
        "columns": tuple(op.columns[i] for i in at),
        "inputs": (
            *op.inputs[:first],
            *(op.inputs[first + i] for i in at if i < n_values),
        ),
    }
    if isinstance(op, Pairs):
        changes["n_left"] = sum(i < op.n_left for i in at)
    if isinstance(op, Collect) and op.types:
        changes["types"] = tuple(op.types[i] for i in at)
    return replace(op, **changes)
