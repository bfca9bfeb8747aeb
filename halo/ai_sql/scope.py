"""Where a query block stands in its statement, and what is known of it so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlglot import exp

from halo.ai_sql.calls import CallSpec


@dataclass
class Scope:
    """What a block sees of the statement around it."""

    ctes: list[Any] = field(default_factory=list[Any])
    outer: Block | None = None
    place: Any = None
    """The query node inside the outer block that this scope is for, and the clause it stands in."""
    root: Any = None
    lateral: bool = False


@dataclass
class Block:
    select: exp.Select
    scope: Scope
    conditions: list[Any]
    grouped: bool = False
    answered: dict[tuple[CallSpec, tuple[str, ...]], tuple[str, ...]] = field(
        default_factory=dict[tuple[CallSpec, "tuple[str, ...]"], "tuple[str, ...]"]
    )
