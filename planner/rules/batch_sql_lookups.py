"""Look-ups of one shape go to the database together."""

from __future__ import annotations

from dataclasses import replace

from planner.context import PlanContext
from planner.logical import Const, LogicalPlan, Op, Sql
from planner.sql_batch import batched_text
from planner.surgery import transform_plan


def batch_sql_lookups(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Ask the look-ups of many rows as one query, and give each row what belongs to it.

    Only queries that read, always answer the same, and whose rows have one order; of those, the
    ones whose parameters differ from row to row. Which look-ups go together is decided while they
    are asked: those that are waiting. If a batch fails, each is asked alone.
    """
    return transform_plan(plan, _batch, Sql)


def _batch(op: Op) -> Op:
    if not isinstance(op, Sql) or op.batched or op.text is None or not op.read_only:
        return op
    if op.volatile or all(isinstance(each, Const) for each in op.inputs):
        return op
    return op if batched_text(op.text, op.params) is None else replace(op, batched=True)
