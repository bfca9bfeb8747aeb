"""A model is not asked for fields that nobody reads."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

from planner.context import PlanContext
from planner.logical import Effect, Field, Generate, LogicalPlan, Op, canonical_json
from planner.surgery import rebuild_rows


def unsafe_prune_answer_fields(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Leave fields that nobody reads out of the schema of a greedy answer.

    Fewer tokens are decoded. The model is held to another schema, and what it does not write it
    cannot build on in what it writes next: it may answer differently. Off unless asked for.
    """
    if Generate not in plan.kinds:
        return plan
    read: dict[str, set[str]] = {}
    whole: set[str] = set()
    for op in plan.walk():
        for each in op.dependencies:
            if isinstance(op, Field) and isinstance(op.key, str):
                read.setdefault(each.fingerprint, set()).add(op.key)
            else:
                whole.add(each.fingerprint)

    def prune(original: Op, op: Op) -> Op:
        if not isinstance(op, Generate) or op.schema_json is None or op.effect is not Effect.PURE:
            return op
        used = read.get(original.fingerprint)
        if not used or original.fingerprint in whole:
            return op
        smaller = _smaller(op.schema_json, used)
        return op if smaller is None else replace(op, schema_json=smaller)

    return rebuild_rows(plan, prune)


def _smaller(schema_json: str, used: set[str]) -> str | None:
    """The schema of an object with the used properties alone; None for other schemas, and when
    all are used."""
    schema: dict[str, Any] = json.loads(schema_json)
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict):
        return None
    known = set(cast("dict[str, Any]", properties))
    simple = {"type", "properties", "required", "additionalProperties", "title", "$defs"}
    if not used < known or set(schema) - simple:
        return None
    kept = {name: each for name, each in cast("dict[str, Any]", properties).items() if name in used}
    required = [name for name in schema.get("required", ()) if name in used]
    return canonical_json({**schema, "properties": kept, "required": required})
