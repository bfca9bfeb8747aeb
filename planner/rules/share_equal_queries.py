"""Queries that are equal in other words become one."""

from __future__ import annotations

from dataclasses import replace

from planner.context import PlanContext
from planner.logical import LogicalPlan, Op, Sql, SqlRows
from planner.sql_effects import query_effects
from planner.surgery import has, transform_plan


def share_equal_queries(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Write queries with the same syntax tree in the same words.

    Spacing, comments and the case of keywords then keep nothing apart. Only queries that read and
    always answer the same; of equal texts the first in the plan is taken for all.
    """
    if not has(plan, Sql) and not has(plan, SqlRows):
        return plan
    texts = dict.fromkeys(
        op.text for op in plan.walk_all() if isinstance(op, Sql | SqlRows) and op.text is not None
    )
    if len(texts) < 2:
        return plan
    first: dict[str, str] = {}
    chosen: dict[str, str] = {}
    for text in texts:
        effects = query_effects(text)
        if effects.reads_only and not effects.volatile:
            chosen[text] = first.setdefault(effects.key, text)

    def share(op: Op) -> Op:
        if not isinstance(op, Sql | SqlRows) or op.text is None:
            return op
        text = chosen.get(op.text, op.text)
        return op if text == op.text else replace(op, text=text)

    return transform_plan(plan, share)
