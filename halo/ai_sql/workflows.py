"""AI_RUN: a workflow's plan, put where a call stands, over the arguments that SQL computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

from halo.ai_sql.calls import CallSpec
from halo.ai_sql.errors import SqlError
from halo.errors import WorkflowError
from halo.flow import Flow
from planner.logical import Column, Effect, ModelOp, Op, Scan, Tool, transform
from planner.surgery import transform_plan
from runtime.tools import ToolSpec

DECODE = "halo_json_decode"


def inline(
    spec: CallSpec, flow: Flow, args: Sequence[Op], text: str
) -> tuple[Op, Mapping[str, ToolSpec]]:
    """The value of `flow` with the arguments in place of its columns. Arguments arrive as JSON
    text, so that numbers, lists and structs keep their type. Raises `SqlError`."""
    names = _names(spec, flow, len(args))
    try:
        traced = flow.trace("ai_run", names)
    except WorkflowError as error:
        raise SqlError("S107", f"AI_RUN: {error}") from error
    plan = traced.plan if spec.cache else transform_plan(traced.plan, _fresh, ModelOp, Tool)
    result = plan.outputs[0][1]
    if result.effect is Effect.WRITE:
        raise SqlError(
            "S107",
            f"AI_RUN: workflow {flow.name!r} writes; how often it would run is the planner's "
            "choice. Declare its tools pure, or run it with halo run",
        )
    if not isinstance(result.rows, Scan):
        raise SqlError(
            "S107",
            f"AI_RUN: workflow {flow.name!r} has where or a limit, which choose rows of a batch; "
            "leave them out and choose rows in SQL",
        )
    tool = decoder()
    values = dict(zip(names, args, strict=True))
    decoded: dict[str, Op] = {
        name: Tool((value,), tool=tool.ref, params=("text",), label=name, fresh=not spec.cache)
        for name, value in values.items()
    }

    def place(op: Op) -> Op:
        if isinstance(op, Column) and isinstance(op.inputs[0], Scan):
            return decoded[op.name]
        return op

    (value,) = transform((result.value,), place)
    return value, {**traced.tools, tool.name: tool}


def _fresh(op: Op) -> Op:
    return replace(op, fresh=True) if isinstance(op, ModelOp | Tool) else op


def _names(spec: CallSpec, flow: Flow, count: int) -> tuple[str, ...]:
    """Parameter names of positional arguments, then those of the named ones."""
    function: Any = getattr(flow, "function", None)
    positional = count - len(spec.names)
    if function is not None:
        known = list(signature(function).parameters)
    else:
        known = list(getattr(flow, "inputs", ()) or ())
    if unknown := [name for name in spec.names if known and name not in known]:
        raise SqlError(
            "S107",
            f"AI_RUN: workflow {flow.name!r} has no parameter {unknown[0]!r}; it has: "
            f"{', '.join(known) or 'none'}",
        )
    if positional > len(known):
        raise SqlError(
            "S107",
            f"AI_RUN: workflow {flow.name!r} takes {len(known)} arguments, got {positional}",
        )
    return (*known[:positional], *spec.names)


def decoder() -> ToolSpec:
    """The tool that reads an argument."""
    return ToolSpec(
        DECODE,
        _decode,
        "Reads an argument of AI_RUN.",
        {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        effect=Effect.PURE,
        version="1",
    )


def _decode(text: str) -> Any:
    import json

    return json.loads(text)
