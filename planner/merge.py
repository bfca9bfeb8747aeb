"""Merging: the plans of a batch become one plan in which equal work is one operator.

Operators are content-addressed, so equal pure work becomes one object by interning. What must not
be merged is kept apart by its identity: the `call_id` of every sampled or writing call is qualified
with the query that it was written in, inside bodies too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from planner.errors import PlanError
from planner.logical import (
    CALLS,
    Body,
    Effect,
    LogicalPlan,
    ModelOp,
    Op,
    Result,
    Sql,
    SqlRows,
    Tool,
    walk,
)
from planner.sql_effects import query_effects


def merge(plans: Mapping[str, LogicalPlan]) -> LogicalPlan:
    """One plan for a batch. Outputs are named by the keys of `plans`, in their order.

    Equal pure operators of different queries become one object. Sampled and writing calls get
    `QUERY/` before their `call_id` (`QUERY/#n` for the n-th that has none), so those of different
    queries are never equal; a query merged alone and in a batch has the same fingerprints.

    Raises `PlanError` for an empty batch, an empty name, or a plan without exactly one output.
    """
    if not plans:
        raise PlanError("a batch needs at least one workflow")
    interned: dict[str, Op] = {}
    outputs: list[tuple[str, Result]] = []
    for query, plan in plans.items():
        if not query:
            raise PlanError("a query of a batch needs a name")
        if len(plan.outputs) != 1:
            raise PlanError(
                f"query {query!r} has {len(plan.outputs)} outputs; a plan to merge has exactly one"
            )
        root = _Qualifier(query, interned).rebuild(plan.outputs[0][1])
        assert isinstance(root, Result)
        outputs.append((query, root))
    return LogicalPlan(tuple(outputs))


class _Qualifier:
    """Rebuilds the operators of one query over those interned so far."""

    def __init__(self, query: str, interned: dict[str, Op]) -> None:
        self._query = query
        self._interned = interned
        self._call_ids: set[str] = set()
        self._times_written: dict[str, int] = {}

    def rebuild(self, root: Op) -> Op:
        """`root` with qualified call_ids, made of interned operators. Iterative over operators;
        recursive over the nesting of bodies."""
        rebuilt: dict[Op, Op] = {}
        for op in walk((root,)):
            rebuilt[op] = self._intern(self._qualify(op, rebuilt))
        return rebuilt[root]

    def _qualify(self, op: Op, rebuilt: Mapping[Op, Op]) -> Op:
        changes: dict[str, Any] = {}
        if any(rebuilt[d].fingerprint != d.fingerprint for d in op.dependencies):
            changes["inputs"] = tuple(rebuilt[i] for i in op.inputs)
            changes["after"] = tuple(rebuilt[a] for a in op.after)
        if is_secretly_volatile(op):
            changes["volatile"] = True
            changes["call_id"] = self._call_id("")
        if op.effect is not Effect.PURE:
            if isinstance(op, ModelOp | Tool | Sql | SqlRows):
                changes["call_id"] = self._call_id(op.call_id)
            for field in fields(op) if op.bodies else ():
                body = getattr(op, field.name)
                if isinstance(body, Body):
                    changes[field.name] = Body(body.n_params, self.rebuild(body.result))
        return replace(op, **changes) if changes else op

    def _call_id(self, written: str) -> str:
        """A call_id that no other call of the query has. A body that is used twice holds its calls
        twice: they are written in two places, so the second gets an id of its own."""
        while True:
            n = self._times_written[written] = self._times_written.get(written, 0) + 1
            suffix = "" if n == 1 else f"~{n}"
            call_id = f"{self._query}/{written}{suffix}" if written else f"{self._query}/#{n}"
            if call_id not in self._call_ids:
                self._call_ids.add(call_id)
                return call_id

    def _intern(self, op: Op) -> Op:
        known = self._interned.get(op.fingerprint)
        if known is not None:
            return known
        inputs = tuple(self._interned[i.fingerprint] for i in op.inputs)
        after = tuple(self._interned[a.fingerprint] for a in op.after)
        if any(a is not b for a, b in zip(inputs + after, op.dependencies, strict=True)):
            op = replace(op, inputs=inputs, after=after)
        self._interned[op.fingerprint] = op
        return op


def is_secretly_volatile(op: Op) -> bool:
    """Whether an operator is a query that may answer differently each time and does not say so:
    its text calls `random()`, `now()` and the like. Equal ones must not become one."""
    if not isinstance(op, Sql | SqlRows) or op.text is None or op.effect is not Effect.PURE:
        return False
    effects = query_effects(op.text)
    return effects.understood and effects.volatile


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What merging did to a batch, in operators of the row scope.

    Attributes:
        ops_before: operators of the queries, each query counted alone.
        ops_after: operators of the merged plan.
        shared: for each operator that several queries use (calls and bodies alone, in plan order),
            its fingerprint and the queries.
    """

    ops_before: int
    ops_after: int
    shared: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, plan: LogicalPlan) -> MergeReport:
        """The report of a merged plan; merging loses nothing, so the plan alone tells."""
        users = plan.users
        return cls(
            ops_before=sum(len(queries) for queries in users.values()),
            ops_after=len(users),
            shared=tuple(
                (op.fingerprint, users[op])
                for op in plan.walk()
                if len(users[op]) > 1 and (isinstance(op, CALLS) or op.bodies)
            ),
        )
