"""What tools return, as JSON values."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
from typing import Any

from planner.logical import Json

MAX_RESULT_BYTES = 10_000_000
_MAX_INT_BITS = 10_000
"""Of a whole number. Python refuses to write much longer ones as text (4,300 digits)."""


class NotJson(Exception):
    """A value is no JSON value; the message says which and where."""


def to_json(value: Any, max_bytes: int = MAX_RESULT_BYTES) -> Json:
    """`value` as JSON: pydantic models, dataclasses, tuples, enums and dates become their JSON
    forms. Raises `NotJson` for what has none, for NaN and infinity, and above `max_bytes`."""
    try:
        converted = _Conversion(max_bytes).convert(value, "")
        size_bytes = _size_bytes(converted)
    except RecursionError:
        raise NotJson("a value that is nested too deeply, or contains itself") from None
    if size_bytes > max_bytes:
        raise _too_large(f"{size_bytes:,}", max_bytes)
    return converted


class JsonRows:
    """A list of JSON values that is made one by one: as `to_json`, as soon as there is something
    to refuse."""

    def __init__(self, max_bytes: int = MAX_RESULT_BYTES) -> None:
        self.rows: list[Json] = []
        self._max_bytes = max_bytes
        self._size_bytes = 0

    def add(self, value: Any) -> Json:
        """Append `value` as JSON. Raises `NotJson`."""
        row = to_json(value, self._max_bytes)
        self._size_bytes += _size_bytes(row) + len(", ")
        if self._size_bytes > self._max_bytes:
            raise _too_large(f"more than {self._max_bytes:,}", self._max_bytes)
        self.rows.append(row)
        return row


def _size_bytes(value: Json) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))


class _Conversion:
    """The conversion of one value. It stops as soon as what it has seen is too large: a value of
    gigabytes, or a small one that repeats itself, is never copied."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._left_bytes = max_bytes

    def convert(self, value: Any, where: str) -> Json:
        if isinstance(value, enum.Enum):
            return self.convert(value.value, where)
        if value is None or isinstance(value, bool):
            self._spend(4)
            return value
        # Subclasses (numpy's float64 is a float) become the plain type.
        if isinstance(value, str):
            self._spend(len(value) + 2)
            return str.__str__(value)
        if isinstance(value, int):
            if value.bit_length() > _MAX_INT_BITS:
                raise NotJson(f"a number of {value.bit_length():,} bits{_at(where)}; return text")
            self._spend(1)
            return int(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise NotJson(f"{value}{_at(where)}, which JSON cannot hold")
            self._spend(1)
            return float(value)
        items: Any = value
        if isinstance(value, list | tuple):
            self._spend(2)
            return [self.convert(item, f"{where}[{i}]") for i, item in enumerate(items)]
        if isinstance(value, dict):
            return self._object(items, where)
        if isinstance(value, datetime.date | datetime.time):
            return self.convert(value.isoformat(), where)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            members: dict[Any, Any] = {
                f.name: getattr(value, f.name) for f in dataclasses.fields(value)
            }
            return self._object(members, where)
        dump = getattr(value, "model_dump", None)
        if callable(dump) and not isinstance(value, type):
            return self.convert(dump(mode="json"), where)
        raise NotJson(
            f"a {type(value).__name__}{_at(where)}, which is no JSON value. Return text, numbers, "
            "lists, dicts, dataclasses or pydantic models"
        )

    def _object(self, value: dict[Any, Any], where: str) -> Json:
        self._spend(2)
        members: dict[str, Json] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise NotJson(
                    f"a dict with the {type(key).__name__} key {key!r}{_at(where)}; use text"
                )
            self._spend(len(key) + 3)
            members[str.__str__(key)] = self.convert(item, f"{where}.{key}")
        return members

    def _spend(self, at_least_bytes: int) -> None:
        self._left_bytes -= at_least_bytes
        if self._left_bytes < 0:
            raise _too_large(f"more than {self._max_bytes:,}", self._max_bytes)


def _too_large(size: str, max_bytes: int) -> NotJson:
    return NotJson(
        f"{size} bytes of JSON; at most {max_bytes:,} are kept. Return less, such as the fields "
        "that the workflow uses"
    )


def _at(where: str) -> str:
    return f" at {where.lstrip('.')}" if where else ""
