"""Queries are equal when what they make of their parameters is."""

from __future__ import annotations

from dataclasses import replace

from planner.context import PlanContext
from planner.logical import Const, LogicalPlan, Op, Sql
from planner.sql_parameters import parameter_expressions
from planner.surgery import transform_plan


def derive_sql_parameters(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Share queries by the values of expressions over their parameters, such as `lower($name)`.

    Only where the query knows no more of a parameter, reads, and always answers the same. While
    rows run, DuckDB computes the expressions for each distinct tuple of parameters; one that fails
    or is null leaves its call as it was.
    """
    return transform_plan(plan, _derive, Sql)


def _derive(op: Op) -> Op:
    if not isinstance(op, Sql) or op.derived or op.text is None or not op.read_only:
        return op
    if op.volatile or all(isinstance(each, Const) for each in op.inputs):
        return op
    use = parameter_expressions(op.text)
    return (
        op if use is None or use.params != tuple(sorted(op.params)) else replace(op, derived=True)
    )
