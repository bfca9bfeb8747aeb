"""Values between JSON and SQL: parameters in, result cells out."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from planner.logical import Json
from runtime.errors import ToolError


def check_params(given: Mapping[str, Json], wanted: AbstractSet[str], database: str) -> None:
    """Raise `ToolError` when the given parameters are not those that the text uses, or have a value
    that a query cannot take."""
    missing, extra = sorted(wanted - given.keys()), sorted(given.keys() - wanted)
    if missing:
        names = ", ".join(f"${name}" for name in missing)
        hint = "; write named parameters ($name), not ? or $1" if missing[0].isdigit() else ""
        raise ToolError(f"the query uses {names}, which got no value{hint}", tool=database)
    if extra:
        names = ", ".join(extra)
        raise ToolError(
            f"the query does not use the parameter {names}; write ${extra[0]} in its text, or "
            "leave the parameter out",
            tool=database,
        )
    for name, value in given.items():
        if isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(item, dict | list) for item in value)
        ):
            raise ToolError(
                f"the query parameter {name} is a nested value; pass text, a number, a boolean, "
                "null or a list of them",
                tool=database,
            )


def to_cell(value: Any, column: str) -> Json:
    """A result value as JSON: dates and times in ISO form, intervals in seconds, UUIDs as text,
    decimals as numbers, or as text when a float would lose digits. Raises `ValueError` that names
    the column."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"column {column!r} holds {value}, which JSON cannot hold; replace it in the query"
            )
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return _number(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, uuid.UUID):
        return str(value)
    nested: Any = value
    if isinstance(value, list | tuple):
        return [to_cell(item, column) for item in nested]
    if isinstance(value, dict):
        return {str(key): to_cell(item, column) for key, item in nested.items()}
    if isinstance(value, bytes):
        raise ValueError(f"column {column!r} is binary (BLOB); select base64({column}) instead")
    raise ValueError(f"column {column!r} has a {type(value).__name__}; cast it to VARCHAR")


def size_bytes(row: Mapping[str, Json], enough: int) -> int:
    """Bytes of a row as JSON; for a row with a longer text than `enough`, the length of that text,
    so that a huge one is not copied to be measured."""
    for cell in row.values():
        if isinstance(cell, str) and len(cell) > enough:
            return len(cell)
    return len(json.dumps(row, ensure_ascii=False).encode(errors="surrogatepass"))


def _number(value: decimal.Decimal) -> Json:
    scale = value.as_tuple().exponent
    if isinstance(scale, int) and scale >= 0:
        return int(value)
    number = float(value)
    return number if decimal.Decimal(repr(number)) == value else str(value)
