"""Values of foreign JSON, taken as what they should be or as nothing."""

from __future__ import annotations

from typing import Any, TypeGuard, cast


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether `value` is a JSON list."""
    return isinstance(value, list)


def as_list(value: Any) -> list[Any]:
    """`value` if it is a list, otherwise an empty one."""
    return value if is_list(value) else []


def as_dict(value: Any) -> dict[str, Any]:
    """`value` if it is an object, otherwise an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
