"""Two maps over the same list become one."""

from __future__ import annotations

from dataclasses import replace

from planner.context import PlanContext
from planner.logical import Body, Effect, LogicalPlan, Map, Op, Param
from planner.surgery import inlined, readers, transform_plan


def fuse_maps(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Map a list once with both bodies, instead of mapping the mapped list.

    An element then goes through both without waiting for the others. Maps that write stay apart:
    all writes of the first come before those of the second. So do maps whose list others read too.
    """
    if Map not in plan.kinds:
        return plan
    read = readers(plan)

    def fuse(op: Op) -> Op:
        if not isinstance(op, Map) or not op.inputs or not isinstance(op.inputs[0], Map):
            return op
        inner = op.inputs[0]
        writes = Effect.WRITE in (op.effect, inner.effect)
        alone = read.get(inner.fingerprint, 0) <= 1 and inner not in op.inputs[1:]
        if writes or not alone or op.after or inner.after:
            return op
        return _fused(op, inner)

    return transform_plan(plan, fuse, Map)


def _fused(outer: Map, inner: Map) -> Map:
    """Parameters of the fused body: the element, the captures of the inner body, of the outer."""
    n_inner = inner.body.n_params
    element = inner.body.result
    captures: list[Op] = [Param((), n_inner + i) for i in range(outer.body.n_params - 1)]
    result = inlined(outer.body, [element, *captures])
    body = Body(n_inner + len(captures), result)
    return replace(outer, inputs=(*inner.inputs, *outer.inputs[1:]), body=body)
