"""Calls as other products write them: their names for arguments, their order, their shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlglot import exp

from halo.ai_sql.functions import Function
from halo.ai_sql.literals import members

_THEIR_OPTIONS = (
    ("categories", "labels"), ("input", "text"), ("responseformat", "fields"),
    ("return_type", "returns"), ("returntype", "returns"), ("endpoint", "model"),
    ("struct", "fields"),
)  # fmt: skip


def in_our_order(
    written: str,
    function: Function,
    given: list[Any],
    options: dict[str, Any],
    knows_model: Callable[[str], bool],
) -> list[Any]:
    """The positional arguments of a call of `function`, written as `written`; `options` is changed
    to our names."""
    # BigQuery's keywords and Snowflake's names for arguments.
    for theirs, ours in _THEIR_OPTIONS:
        if theirs in options and ours not in options and theirs not in function.options:
            options[ours] = options.pop(theirs)
    if "failonerror" in options:
        fails = options.pop("failonerror")
        options["on_error"] = exp.Literal.string(
            "null" if isinstance(fails, exp.Boolean) and not fails.this else "fail"
        )
    for position, name in enumerate(function.arguments):
        if name in options and len(given) <= position:
            given.append(options.pop(name))
    if function.name == "AI_COMPLETE" and "fields" in options:
        fields = options.pop("fields")
        options["returns"] = exp.Literal.string(_struct_text(fields))
    if function.name == "AI_COMPLETE" and len(given) == 2:
        first = given[0]
        if (
            isinstance(first, exp.Literal)
            and first.is_string
            and (written in ("AI_QUERY", "AI_GEN") or knows_model(str(first.this)))
        ):
            options.setdefault("model", first)
            given = given[1:]
    if written in ("LLM_FILTER", "LLM_COMPLETE", "LLM_REDUCE"):
        given = _flock(given, options)
    return given


def _flock(given: list[Any], options: dict[str, Any]) -> list[Any]:
    """Flock's `f({'model_name': ...}, {'prompt': ..., 'context_columns': [{'data': x}]})`."""
    if len(given) != 2 or not all(isinstance(each, exp.Struct) for each in given):
        return given
    model, prompt = (members(each) for each in given)
    if isinstance(name := model.get("model_name"), exp.Literal):
        options.setdefault("model", name)
    text = prompt.get("prompt")
    if not isinstance(text, exp.Literal):
        return given
    columns = prompt.get("context_columns")
    values = list[Any]()
    template = str(text.this)
    for index, column in enumerate(columns.expressions if columns is not None else ()):
        parts = members(column)
        values.append(parts.get("data", column))
        name = parts.get("name")
        hole = f"{{{name.this}}}" if isinstance(name, exp.Literal) else ""
        if hole and hole in template:
            template = template.replace(hole, f"{{{index}}}")
        else:
            template = f"{template}\n{{{index}}}"
    return [exp.Anonymous(this="PROMPT", expressions=[exp.Literal.string(template), *values])]


def _struct_text(fields: Any) -> str:
    parts = [
        f'"{name}" {kind.this if isinstance(kind, exp.Literal) else kind.sql("duckdb")}'
        for name, kind in (members(fields) if isinstance(fields, exp.Struct) else {}).items()
    ]
    return f"STRUCT({', '.join(parts)})"
