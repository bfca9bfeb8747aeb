"""One operator in one line: its kind, its name, its fields, with long texts shortened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from planner.listing import Node
from planner.logical import (
    Agent,
    Choose,
    Collect,
    Column,
    Compare,
    Const,
    Effect,
    Field,
    Filter,
    Flatten,
    Format,
    Generate,
    Group,
    Limit,
    Loop,
    ModelOp,
    Pairs,
    Project,
    Prompt,
    Recover,
    Reduce,
    Relation,
    Scan,
    Sort,
    Sql,
    SqlRows,
    Tool,
    ToolRef,
    render_value,
)
from planner.relations import ALL_ROWS

TEXT_WIDTHS = (60, 40, 24, 12)
"""Characters that a text may take, tried in turn until the line fits."""
LIST_ITEMS = 8


def describe(node: Node, room: int | None) -> str:
    """`Kind name(fields)` of an operator in at most `room` characters; None shows everything."""
    if room is None:
        return _head(node, None)
    head = ""
    for width in TEXT_WIDTHS:
        head = _head(node, width)
        if len(head) <= room:
            return head
    return head[: max(room - 1, 1)] + "…"


def title(node: Node) -> str:
    """`Kind name`: what graphs put first. A name that the fields say anyway is left out."""
    op = node.op
    said = isinstance(op, Column) and op.label == op.name
    said = said or (isinstance(op, Tool) and op.label == op.tool.name)
    label = "" if said else shown_name(op.label)
    return f"{op.kind} {label}" if label else op.kind


def shown_name(name: str) -> str:
    """A name on one line, with characters that do not print escaped."""
    return name if name.isprintable() else repr(name)[1:-1]


def quoted(text: str, width: int | None) -> str:
    """A text in quotes on one line, cut after `width` characters."""
    if width is not None and len(text) > width:
        return repr(text[:width])[:-1] + "…'"
    return repr(text)


def effect_of(node: Node) -> str:
    """`SAMPLED` or `WRITE`; empty for pure operators."""
    return "" if node.op.effect is Effect.PURE else node.op.effect.name


def _head(node: Node, width: int | None) -> str:
    return f"{title(node)}({', '.join(_fields(node, width))})"


def _fields(node: Node, width: int | None) -> list[str]:
    match node.op:
        case Scan(source=source, columns=columns):
            names = _listed([shown_name(name) for name in columns], width)
            return [shown_name(source), f"columns={names}"]
        case Relation() as op:
            return _relation_fields(op, node.inputs, width)
        case Column(name=name):
            return [shown_name(name)]
        case Const() as op:
            return [quoted(render_value(op.value), width)]
        case Field(key=key):
            return [repr(key)]
        case Format(prompt=prompt):
            return [_prompt(prompt, node.inputs, width)]
        case Project(names=names):
            pairs = zip(names, node.inputs, strict=True)
            return [_listed([f"{shown_name(n)}={i}" for n, i in pairs], width)[1:-1]]
        case Compare(operator=operator, nulls=nulls):
            return [operator, "nulls"] if nulls else [operator]
        case Recover(detail=detail):
            return ["detail"] if detail else []
        case Generate() | Choose() | Agent() as op:
            return _model_fields(op, node.inputs, width)
        case Tool(tool=tool, params=params, call_id=call_id, fresh=fresh):
            pairs = zip(params, node.inputs, strict=True)
            named = [f"{shown_name(n)}={i}" for n, i in pairs]
            return [shown_name(tool.name), *named, *_fresh(fresh), *_call_id(call_id, width)]
        case Sql() as op:
            return _sql_fields(op, node.inputs, width)
        case Reduce(fan_in=fan_in):
            return [f"fan_in={fan_in}"]
        case Loop(max_rounds=max_rounds, stop_when_stable=stable):
            return [f"max_rounds={max_rounds}", *(["stop_when_stable"] if stable else [])]
        case _:
            return []


def _model_fields(op: ModelOp, inputs: Sequence[str], width: int | None) -> list[str]:
    found: list[str] = [f"model={shown_name(op.model)}"] if op.model else []
    if op.system is not None:
        found.append(f"system={_prompt(op.system, inputs, width)}")
    found.append(f"prompt={_prompt(op.prompt, inputs, width)}")
    if isinstance(op, Choose):
        found.append(f"options={_listed([quoted(o, width) for o in op.options], width)}")
    found.append(f"max_tokens={op.max_tokens}")
    if op.temperature:
        found.append(f"temperature={op.temperature:g}")
    if op.top_p != 1:
        found.append(f"top_p={op.top_p:g}")
    if isinstance(op, Generate) and op.stop:
        found.append(f"stop={_listed([quoted(s, width) for s in op.stop], width)}")
    if isinstance(op, Agent):
        found.append(f"tools={_listed([_tool(t) for t in op.tools], width)}")
        found.append(f"max_turns={op.max_turns}")
    if isinstance(op, Generate | Agent) and op.schema_json:
        found.append(f"schema={quoted(op.schema_json, width)[1:-1]}")
    return [*found, *_fresh(op.fresh), *_call_id(op.call_id, width)]


def _fresh(fresh: bool) -> list[str]:
    return ["fresh"] if fresh else []


def _relation_fields(op: Relation, inputs: Sequence[str], width: int | None) -> list[str]:
    match op:
        case Filter():
            return [inputs[1]]
        case Limit(count=count, offset=offset):
            return [
                "all" if count == ALL_ROWS else str(count),
                *([f"offset={offset}"] if offset else []),
            ]
        case SqlRows():
            found = [quoted(op.text, width), f"columns={_listed(_shown(op.columns), width)}"]
            if op.tables:
                found.append(f"tables={_pairs(op.tables, inputs, width)}")
            params = zip(op.params, inputs[len(op.tables) :], strict=True)
            found += [f"${shown_name(name)}={value}" for name, value in params]
            return [*found, *_database_fields(op, width)]
        case Collect():
            return [_pairs(op.columns, inputs[1:], width)[1:-1]]
        case Flatten():
            found = [_pairs(op.columns, inputs[1:], width)[1:-1]]
            found += [f"position={shown_name(op.position)}"] if op.position else []
            return [*found, "null_fails"] if op.null_fails else found
        case Pairs():
            found = [_pairs(op.columns, inputs[2:], width)[1:-1]]
            on = [f"{shown_name(left)}={shown_name(right)}" for left, right in op.on]
            return [*found, f"on={_listed(on, width)}"] if on else found
        case Group(n_keys=n_keys):
            keys = _pairs(op.columns[:n_keys], inputs[1 : 1 + n_keys], width)
            lists = _pairs(op.columns[n_keys:], inputs[1 + n_keys :], width)
            return [f"by={keys}", *([f"lists={lists}"] if op.values else [])]
        case Sort():
            by = _listed(_shown(op.by), width)
            return [f"by={by}", _pairs(op.columns, inputs[1:], width)[1:-1]]
        case _:
            return []


def _shown(names: Sequence[str]) -> list[str]:
    return [shown_name(name) for name in names]


def _pairs(names: Sequence[str], references: Sequence[str], width: int | None) -> str:
    pairs = zip(names, references, strict=False)
    return _listed([f"{shown_name(name)}={reference}" for name, reference in pairs], width)


def _database_fields(op: Sql | SqlRows, width: int | None) -> list[str]:
    found = [f"database={quoted(op.database, width)}"] if op.database else []
    if not op.read_only:
        found.append("read_only=false")
    if op.volatile:
        found.append("volatile")
    if isinstance(op, Sql) and op.batched:
        found.append("batched")
    if isinstance(op, Sql) and op.derived:
        found.append("derived")
    return [*found, *_call_id(op.call_id, width)]


def _sql_fields(op: Sql, inputs: Sequence[str], width: int | None) -> list[str]:
    found = [quoted(op.text, width)] if op.text is not None else [f"text={inputs[0]}"]
    values = inputs if op.text is not None else inputs[1:]
    found += [f"${shown_name(n)}={i}" for n, i in zip(op.params, values, strict=True)]
    return [*found, *_database_fields(op, width)]


def _tool(tool: ToolRef) -> str:
    marker = "" if tool.effect is Effect.PURE else f" {tool.effect.name}"
    return shown_name(tool.name) + marker


def _call_id(call_id: str, width: int | None) -> list[str]:
    """Shown in full listings alone: the effect already says that the call stays apart."""
    return [f"call_id={shown_name(call_id)}"] if call_id and width is None else []


def _prompt(prompt: Prompt, inputs: Sequence[str], width: int | None) -> str:
    parts = [
        quoted(s, width) if isinstance(s, str) else _value(inputs[s.index]) for s in prompt.segments
    ]
    return _listed(parts, width)


def _value(reference: str) -> str:
    """`$3` for the value of #3 inside a text; parameters stay `%0`."""
    return reference.replace("#", "$")


def _listed(parts: Sequence[str], width: int | None) -> str:
    if width is not None and len(parts) > LIST_ITEMS:
        parts = [*parts[: LIST_ITEMS - 1], f"… {len(parts) - LIST_ITEMS + 1} more"]
    return f"[{', '.join(parts)}]"


def field_values(node: Node) -> dict[str, Any]:
    """The fields of an operator for machines: everything, nothing shortened."""
    op = node.op
    found: dict[str, Any] = {}
    for field in fields(op):
        name, value = field.name, getattr(op, field.name)
        if name in ("inputs", "after", "label", "fingerprint") or name in _BODY_FIELDS:
            continue
        if isinstance(value, Prompt):
            inputs = node.inputs
            value = [s if isinstance(s, str) else {"ref": inputs[s.index]} for s in value.segments]
        elif name == "tool":
            value = _tool_object(value)
        elif name == "tools":
            value = [_tool_object(tool) for tool in value]
        elif isinstance(value, tuple):
            value = list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        found[name] = value
    return found


_BODY_FIELDS = frozenset(("body", "then", "otherwise", "condition", "step"))


def _tool_object(tool: ToolRef) -> dict[str, str]:
    return {"name": tool.name, "digest": tool.digest, "effect": tool.effect.value}
