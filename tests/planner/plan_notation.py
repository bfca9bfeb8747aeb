"""Plans written as YAML, for fixtures: one line for each operator.

    rows: {Scan: [], source: rows, columns: [id, text]}
    text: {Column: [rows], name: text}
    keep: {Choose: [text], prompt: "Keep {0}?", options: ["yes", "no"]}
    kept: {Filter: [rows, keep]}
    return: {q: [text, kept]}

The first key is the kind, its value the inputs by name; the others are fields. In `prompt` and
`system`, `{0}` refers to input 0. A body is a mapping of the same form with `params: N` and
`result: NAME`, in which `%0` names a parameter. A tool is `name effect`. An operator's label is its
name, unless the name begins with `_`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from planner.logical import (
    OPS,
    Body,
    Const,
    Effect,
    LogicalPlan,
    Op,
    Param,
    Prompt,
    Ref,
    Result,
    ToolRef,
)

KINDS = {op.kind: op for op in OPS}
_BODIES = frozenset(("body", "then", "otherwise", "condition", "step"))
_REFERENCE = re.compile(r"\{(\d+)\}")


def plan_of(document: Mapping[str, Any]) -> LogicalPlan:
    """The plan that a document is; its `return` maps queries to [value, relation]."""
    ops = _ops(document, {})
    return LogicalPlan(
        tuple(
            (query, Result((_named(value, ops), _named(rows, ops))))
            for query, (value, rows) in document["return"].items()
        )
    )


def _ops(document: Mapping[str, Any], ops: dict[str, Op]) -> dict[str, Op]:
    for name, fields_of in document.items():
        if name not in ("return", "data", "params", "result", "rules", "learnt", "calls"):
            ops[name] = _op(name, fields_of, ops)
    return ops


def _named(name: Any, ops: Mapping[str, Op]) -> Op:
    if isinstance(name, str) and name in ops:
        return ops[name]
    if isinstance(name, str) and name.startswith("%"):
        return Param((), int(name[1:]))
    raise KeyError(f"no operator is named {name!r}")


def _op(name: str, document: Mapping[str, Any], ops: Mapping[str, Op]) -> Op:
    written = dict(document)
    kind = next(iter(written))
    inputs = tuple(_named(each, ops) for each in written.pop(kind) or ())
    if kind == "Const":
        return Const.of(written["value"], "" if name.startswith("_") else name)
    cls = KINDS[kind]
    known = {field.name for field in fields(cls)}
    values: dict[str, Any] = {"label": "" if name.startswith("_") else name}
    for key, value in written.items():
        assert key in known, f"{kind} has no field {key!r}"
        values[key] = _value(key, value, ops)
    return cls(inputs, **values)


def _value(key: str, value: Any, ops: Mapping[str, Op]) -> Any:
    if key in _BODIES:
        inner = _ops(value, {})
        return Body(value["params"], _named(value["result"], inner))
    if key in ("prompt", "system"):
        return prompt(value)
    if key == "after":
        return tuple(_named(each, ops) for each in value)
    if key == "tool":
        return _tool(value)
    if key == "tools":
        return tuple(map(_tool, value))
    if isinstance(value, list):
        return tuple(tuple(each) if isinstance(each, list) else each for each in value)
    return value


def prompt(text: str) -> Prompt:
    """`Keep {0}?` as segments."""
    segments: list[str | Ref] = []
    for i, part in enumerate(_REFERENCE.split(text)):
        if i % 2:
            segments.append(Ref(int(part)))
        elif part:
            segments.append(part)
    return Prompt(tuple(segments))


def _tool(text: str) -> ToolRef:
    name, effect = text.split()
    return ToolRef(name, "", Effect(effect))
