"""DuckDB types of answers as JSON Schemas, for `returns :=` and the fields of AI_EXTRACT."""

from __future__ import annotations

import difflib
from typing import Any, cast

from planner.logical import Json

_INTEGERS = frozenset(
    {"TINYINT", "SMALLINT", "INT", "BIGINT", "INT128", "UTINYINT", "USMALLINT", "UINT", "UBIGINT"}
)
_NUMBERS = frozenset({"FLOAT", "DOUBLE", "DECIMAL"})
_TEXTS = frozenset({"VARCHAR", "TEXT", "CHAR", "NVARCHAR", "NCHAR"})
_FORMATS = {"DATE": "date", "TIMESTAMP": "date-time", "DATETIME": "date-time", "TIME": "time"}


class UnknownTypeError(ValueError):
    """A text is no DuckDB type that an answer can have."""


def parse_type(text: str) -> Any:
    """The sqlglot type that `text` names. Raises `UnknownTypeError`."""
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        found = sqlglot.parse_one(text, read="duckdb", into=exp.DataType)
    except SqlglotError:
        found = None
    if not isinstance(found, exp.DataType) or found.this.name == "USERDEFINED":
        raise UnknownTypeError(f"{text!r} is not a DuckDB type.{like_type(text)}".rstrip("."))
    return found


def like_type(text: str) -> str:
    """ " Did you mean 'INTEGER'?" for a word that is nearly a type, or nothing."""
    names = (*_INTEGERS, *_NUMBERS, *_TEXTS, *_FORMATS, "INTEGER", "BOOLEAN", "STRING")
    found = difflib.get_close_matches(text.upper(), sorted(names), 1, 0.75)
    return f" Did you mean {found[0]!r}?" if found and found[0] != text.upper() else ""


def is_type(text: str) -> bool:
    """Whether `text` names a type, such as "INTEGER" or "STRUCT(a VARCHAR)".

    Example:
        >>> is_type("INTEGER[]"), is_type("What is the price?")
        (True, False)
    """
    try:
        schema_of(text)
    except UnknownTypeError:
        return False
    return True


def schema_of(text: str) -> dict[str, Json]:
    """The JSON Schema of the values of a DuckDB type.

    Example:
        >>> schema_of("STRUCT(a VARCHAR, b INTEGER[])")["required"]
        ['a', 'b']
    """
    return _schema(parse_type(text), text)


def _schema(kind: Any, text: str) -> dict[str, Json]:
    name: str = kind.this.name
    if name in _TEXTS:
        return {"type": "string"}
    if name in _INTEGERS:
        return {"type": "integer"}
    if name in _NUMBERS:
        return {"type": "number"}
    if name == "BOOLEAN":
        return {"type": "boolean"}
    if name in _FORMATS:
        return {"type": "string", "format": _FORMATS[name]}
    if name in ("LIST", "ARRAY"):
        return {"type": "array", "items": cast("Json", _schema(kind.expressions[0], text))}
    if name == "ENUM":
        return {"enum": [each.name for each in kind.expressions]}
    if name == "STRUCT":
        fields: dict[str, Json] = {
            each.this.name: cast("Json", _schema(each.args["kind"], text))
            for each in kind.expressions
        }
        return {
            "type": "object",
            "properties": fields,
            "required": list(fields),
            "additionalProperties": False,
        }
    raise UnknownTypeError(f"an answer cannot be of the type {text!r}")


def quoted(name: str) -> str:
    """A name as DuckDB reads it in any case."""
    return '"' + name.replace('"', '""') + '"'


def struct_type(fields: dict[str, str]) -> str:
    """The STRUCT type of named fields.

    Example:
        >>> struct_type({"a": "VARCHAR"})
        'STRUCT("a" VARCHAR)'
    """
    return "STRUCT(" + ", ".join(f"{quoted(k)} {v}" for k, v in fields.items()) + ")"
