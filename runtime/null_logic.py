"""Comparisons in which null means unknown, as in SQL: three-valued logic."""

from __future__ import annotations

from collections.abc import Callable

from planner.logical import Json
from runtime.values import compared

SQL_UNARY: dict[str, Callable[[Json], bool | None]] = {
    "not": lambda value: None if value is None else not value,
    "truthy": bool,
    "is_null": lambda value: value is None,
}


def sql_compared(symbol: str, left: Json, right: Json, label: str) -> bool | None:
    """`left symbol right`, null when it is unknown. Raises `ValueTypeError` as `compared` does.

    Example:
        >>> sql_compared("and", False, None, ""), sql_compared("or", False, None, "")
        (False, None)
        >>> sql_compared("==", None, None, ""), sql_compared("in", 1, [2, None], "")
        (None, None)
    """
    if symbol == "and":
        return _both(left, right)
    if symbol == "or":
        unknown_or_not = _both(_negated(left), _negated(right))
        return _negated(unknown_or_not)
    if left is None or right is None:
        return None
    found = compared(symbol, left, right, label)
    if symbol == "in" and not found and isinstance(right, list) and None in right:
        return None
    return found


def _both(left: Json, right: Json) -> bool | None:
    for value in (left, right):
        if value is not None and not value:
            return False
    return None if left is None or right is None else True


def _negated(value: Json) -> bool | None:
    return None if value is None else not value
