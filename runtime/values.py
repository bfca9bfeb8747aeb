"""JSON values at run time: what may enter a row, and what the cheap operators do with them."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from math import isfinite
from typing import Any, NoReturn, TypeGuard, cast

from planner.logical import Json
from runtime.errors import ValueTypeError

EXCERPT_CHARS = 200
"""How much of a value an error message shows."""


def kind_of(value: Json) -> str:
    """The JSON type of a value, for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case dict():
            return "an object"


def excerpt(text: str) -> str:
    """The start of a text, quoted, at most `EXCERPT_CHARS` characters of it."""
    return repr(text if len(text) <= EXCERPT_CHARS else text[: EXCERPT_CHARS - 1] + "…")


def checked(value: Any, what: str) -> Json:
    """`value` if it is JSON: no NaN, no infinity, no other Python types, text as object keys.

    Raises `ValueTypeError`; `what` names the value in its message. Iterative, because documents
    nest as deep as their authors like.
    """
    if value is None or isinstance(value, str | int):
        return value
    pending: list[Any] = [value]
    while pending:
        each = pending.pop()
        if _is_list(each):
            pending.extend(each)
        elif _is_object(each):
            for key, inner in each.items():
                if not isinstance(key, str):
                    raise ValueTypeError(
                        f"{what} has an object with the key {key!r}; keys of JSON objects are texts"
                    )
                pending.append(inner)
        elif isinstance(each, float):
            if not isfinite(each):
                raise ValueTypeError(
                    f"{what} holds {each}, which JSON does not have; use null for a missing number"
                )
        elif each is not None and not isinstance(each, str | int):
            raise ValueTypeError(
                f"{what} holds a {type(each).__name__}; values are JSON: "
                "null, booleans, numbers, texts, lists, objects"
            )
    return cast("Json", value)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_object(value: object) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def parse_json(text: str) -> Json:
    """The value of a JSON text. Raises `ValueError`, also for NaN and infinities, and for numbers
    that a float cannot hold."""
    try:
        value: Json = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"the number {text} is too large")
    return number


def same_json(left: Json, right: Json) -> bool:
    """Whether two values are the same to whoever reads them: 1, 1.0 and true are not."""
    if isinstance(left, str) or isinstance(right, str):
        return left == right
    return left == right and json.dumps(left) == json.dumps(right)


def copied(value: Json) -> Json:
    """A copy that shares no list or object with `value`: values are shared between rows, and code
    outside Halo may change what it is given. Raises `ValueTypeError` for a value that is nested too
    deeply to be passed on."""
    if not isinstance(value, list | dict):
        return value
    try:
        copy: Json = json.loads(json.dumps(value))
    except RecursionError:
        raise ValueTypeError(
            f"{kind_of(value)} is nested too deeply to be an argument; pass the part that is used"
        ) from None
    return copy


def member(value: Json, key: str | int, label: str) -> Json:
    """The member `key` of an object (text) or of a list (integer; negative counts from the end).

    Raises `ValueTypeError`, saying what there is instead; `label` names the operator.
    """
    if isinstance(key, str):
        if isinstance(value, dict):
            if key in value:
                return value[key]
            have = ", ".join(value) or "none"
            raise ValueTypeError(f"{label}: no field {key!r}; the object has: {excerpt(have)}")
        raise ValueTypeError(
            f"{label}: field {key!r} needs an object, got {kind_of(value)}"
            + (f": {excerpt(value)}" if isinstance(value, str) else "")
        )
    if not isinstance(value, list):
        raise ValueTypeError(f"{label}: element {key} needs a list, got {kind_of(value)}")
    if not -len(value) <= key < len(value):
        raise ValueTypeError(f"{label}: no element {key}; the list has {len(value)}")
    return value[key]


def _contains(left: Any, right: Any) -> bool:
    return left in right


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": _contains,
    "and": lambda left, right: bool(left and right),
    "or": lambda left, right: bool(left or right),
}
"""What `Compare` does with two values, by its operator. Truth is Python's, on JSON values: null,
false, 0, "", [] and {} are false."""

UNARY: dict[str, Callable[[Any], bool]] = {
    "not": operator.not_,
    "truthy": bool,
    "is_null": lambda value: value is None,
}


def compared(symbol: str, left: Json, right: Json, label: str) -> bool:
    """`left symbol right` as a boolean. Raises `ValueTypeError` when their types have no order, or
    `right` cannot contain anything."""
    try:
        return bool(BINARY[symbol](left, right))
    except TypeError:
        raise ValueTypeError(
            f"{label}: cannot evaluate {kind_of(left)} {symbol} {kind_of(right)}"
        ) from None
