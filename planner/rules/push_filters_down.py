"""Rows are dropped before they are taken apart, put together or asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.context import PlanContext
from planner.logical import (
    Collect,
    Filter,
    Flatten,
    Group,
    LogicalPlan,
    Op,
    Pairs,
    Relation,
    Sort,
    Subset,
)
from planner.surgery import has_write, in_terms_of, is_free, is_pure, move_below


def push_filters_down(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Apply a filter before the rows that it is over are made, where it can be told by then.

    The calls behind those rows are then not made for rows that would be dropped anyway. Below
    `Collect` and `Sort` goes any pure predicate; below `Flatten`, `Pairs` and the keys of a `Group`
    one that asks nothing, since there may be more rows below than above. A row that would have
    failed and is dropped by the filter does not fail any more.
    """
    return move_below(plan, _below) if Filter in plan.kinds else plan


def _below(op: Subset, made: Relation) -> Relation | None:
    if not isinstance(op, Filter):
        return None
    match made:
        case Collect() | Sort():
            known = dict(zip(made.columns, made.inputs[1:], strict=True))
            return _over_filtered(op, made, known)
        case Flatten():
            return _over_filtered(op, made, dict(made.carried), free_only=True)
        case Group() if made.n_keys:
            known = dict(zip(made.columns, made.keys, strict=False))
            return _over_filtered(op, made, known, free_only=True)
        case Pairs():
            left = dict(zip(made.columns, made.left_values, strict=False))
            right = dict(zip(made.columns[made.n_left :], made.right_values, strict=True))
            found = _over_filtered(op, made, left, free_only=True)
            return found or _over_filtered(op, made, right, side=1, free_only=True)
        case _:
            return None


def _over_filtered(
    op: Filter, made: Relation, known: Mapping[str, Op], side: int = 0, free_only: bool = False
) -> Relation | None:
    """`made` over the filtered rows of its input `side`; None when that cannot be told."""
    predicate = in_terms_of(op.predicate, made, known)
    rows = made.inputs[side]
    if predicate is None or not isinstance(rows, Relation) or made.after:
        return None
    if not is_pure(predicate) or (free_only and not is_free([predicate])):
        return None
    if any(has_write(value) for value in made.inputs if not isinstance(value, Relation)):
        return None  # a write happens for every row that is made, kept or not
    filtered = Filter((rows, predicate), label=op.label)
    return replace(made, inputs=(*made.inputs[:side], filtered, *made.inputs[side + 1 :]))
