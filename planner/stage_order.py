"""By which columns the rows of a made relation start together, so that their prompts begin alike.

The rows of a scan are there while planning, and their order is chosen by what they hold
(`planner.row_order`). Rows of queries, groups, flattened lists and pairs are made while the plan
runs: what can be planned is which of their columns prompts begin with. The executor then starts the
rows that are waiting group by group; results keep the order of the relation.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.logical import Column, Field, LogicalPlan, ModelOp, Op, Ref, Relation, Scan
from planner.row_profile import Path
from planner.stats import PlanStats


def stage_orders(plan: LogicalPlan, stats: PlanStats) -> Mapping[str, tuple[Path, ...]]:
    """For each relation that is made while running, by fingerprint: the columns (or members of
    their values) that prompts over its rows begin with, those of the most prompt tokens first.

    Relations whose prompts begin with something else are left out.
    """
    found: dict[Relation, list[tuple[float, tuple[Path, ...]]]] = {}
    for op in plan.walk():
        if isinstance(op, ModelOp):
            relation, paths = _beginning(op)
            if relation is not None and not isinstance(relation, Scan):
                found.setdefault(relation, []).append((stats.of(op).input_tokens, paths))
    orders: dict[str, tuple[Path, ...]] = {}
    for relation, beginnings in found.items():
        beginnings.sort(key=lambda each: -each[0])
        orders[relation.fingerprint] = tuple(
            dict.fromkeys(path for _, paths in beginnings for path in paths)
        )
    return orders


def _beginning(op: ModelOp) -> tuple[Relation | None, tuple[Path, ...]]:
    """The columns that a prompt begins with, and the relation that has them."""
    segments = [*(op.system.segments if op.system else ()), *op.prompt.segments]
    base: Relation | None = None
    paths: list[Path] = []
    for segment in segments:
        if not isinstance(segment, Ref):
            continue
        relation, path = _column(op.inputs[segment.index])
        if relation is None or base not in (None, relation):
            break
        base = relation
        paths.append(path)
    return base, tuple(paths)


def _column(op: Op) -> tuple[Relation | None, Path]:
    """The relation and the path of a column, or of a member of one."""
    keys: list[str | int] = []
    while isinstance(op, Field):
        keys.append(op.key)
        op = op.inputs[0]
    if not isinstance(op, Column) or not isinstance(op.inputs[0], Relation):
        return None, ()
    return op.inputs[0], (op.name, *reversed(keys))
