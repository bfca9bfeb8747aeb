"""What an operator is, whatever rows it runs over and whatever batch it is in.

The fingerprint of an operator depends on the name of the rows that it reads and, for sampled and
writing calls, on the query that it was written in. Its shape does not: measurements of one run are
found again by shape when the workflow runs over other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields

from planner.bodies import bodies_innermost_first
from planner.logical import LogicalPlan, Op, Scan, canonical_json
from planner.op import encode_field

_LEFT_OUT = frozenset(("inputs", "after", "call_id", "fresh"))


def shapes(plan: LogicalPlan) -> dict[str, str]:
    """The shape of every operator of every scope, by fingerprint. Iterative."""
    found: dict[str, str] = {}
    bodies: dict[str, str] = {}
    for body in bodies_innermost_first(plan.walk()):
        _add(body.walk(), found, bodies)
        bodies[body.fingerprint] = f"{body.n_params} {found[body.result.fingerprint]}"
    _add(plan.walk(), found, bodies)
    return found


def _add(ops: Iterable[Op], found: dict[str, str], bodies: Mapping[str, str]) -> None:
    for op in ops:
        if op.fingerprint not in found:
            found[op.fingerprint] = _shape(op, found, bodies)


def _shape(op: Op, found: Mapping[str, str], bodies: Mapping[str, str]) -> str:
    parts: list[object] = [op.kind, [found[i.fingerprint] for i in op.inputs]]
    for each in fields(op):
        if each.name in _LEFT_OUT or not each.metadata.get("identity", True):
            continue
        if isinstance(op, Scan) and each.name == "source":
            continue
        value = encode_field(getattr(op, each.name))
        parts.append([each.name, bodies.get(value, value) if isinstance(value, str) else value])
    call_id: str = getattr(op, "call_id", "")
    parts.append(call_id.partition("/")[2] if "/" in call_id else call_id)
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:32]  # type: ignore[arg-type]
