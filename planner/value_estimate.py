"""What is expected of a value: what it depends on, how long it reads, how many elements it has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from planner.row_profile import Dependency
from planner.stats import Provenance, weakest

ASSUMED_ITEMS = 4.0
"""Elements of a list about which nothing is known."""


@dataclass(frozen=True, slots=True)
class ListShape:
    """Mean number of elements, and where that number comes from."""

    items: float = ASSUMED_ITEMS
    source: Provenance = "assumed"


@dataclass(frozen=True, slots=True)
class Value:
    """One value of the plan, as expected over all rows.

    Attributes:
        columns: the column paths that it is computed from.
        fans: the enclosing repetitions (indices into the estimator's factors) that it varies with.
        per_row: whether it differs even between equal rows, because a sampled or writing call is
            among its causes.
        answered: whether an answer of a model or tool is among its causes.
        fixed_tokens: tokens that no column value brings.
        token_paths: the columns whose values read in it, and how often.
        tokens_from: where its length comes from.
        path: the column path that it is, if it is one.
        shape: its elements, if it is a list.
        schema: JSON Schema of the value with its root, if one is enforced.
    """

    columns: frozenset[Dependency] = frozenset()
    fans: frozenset[int] = frozenset()
    per_row: bool = False
    answered: bool = False
    fixed_tokens: float = 0.0
    token_paths: Mapping[Dependency, float] = field(default_factory=dict[Dependency, float])
    tokens_from: Provenance = "exact"
    path: Dependency | None = None
    shape: ListShape | None = None
    schema: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None


def caused_by(values: Iterable[Value]) -> Value:
    """A value of no length with the causes of all `values`."""
    columns: frozenset[Dependency] = frozenset()
    fans: frozenset[int] = frozenset()
    per_row = answered = False
    for value in values:
        # Most values of a plan have the causes of their inputs: keep one set instead of unions.
        columns = columns if value.columns <= columns else columns | value.columns
        fans = fans if value.fans <= fans else fans | value.fans
        per_row = per_row or value.per_row
        answered = answered or value.answered
    return Value(columns, fans, per_row, answered)


def joined(
    values: Iterable[Value], fixed_tokens: float = 0.0, weights: Sequence[float] | None = None
) -> Value:
    """The text of all `values` after each other (each so often as `weights` says), with
    `fixed_tokens` more. It has no path, shape or schema."""
    listed = list(values)
    paths: dict[Dependency, float] = {}
    for value, weight in zip(listed, weights or (1.0,) * len(listed), strict=True):
        fixed_tokens += weight * value.fixed_tokens
        for path, count in value.token_paths.items():
            paths[path] = paths.get(path, 0.0) + weight * count
    return replace(
        caused_by(listed),
        fixed_tokens=fixed_tokens,
        token_paths=paths,
        tokens_from=weakest(value.tokens_from for value in listed),
    )


def with_causes(value: Value, causes: Value, leaving: int | None = None) -> Value:
    """`value` with the causes of `causes`, outside the repetition `leaving`: no longer a column."""
    return replace(
        value,
        columns=causes.columns,
        fans=causes.fans if leaving is None else causes.fans - {leaving},
        per_row=causes.per_row,
        answered=causes.answered,
        path=None,
    )


def element(value: Value, shape: ListShape) -> Value:
    """An element of a list of this shape."""
    schema = schema_member(value.schema, 0) if value.schema else None
    return replace(
        joined([value], weights=[1 / max(shape.items, 1.0)]),
        tokens_from=weakest((value.tokens_from, shape.source)),
        schema=schema,
        shape=schema_shape(schema) if schema else None,
    )


def parse_schema(schema_json: str | None) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """A schema that is an object, with itself as the root of its references."""
    parsed: Any = json.loads(schema_json) if schema_json else None
    if not isinstance(parsed, dict):
        return None
    schema = cast("dict[str, Any]", parsed)
    return schema, schema


def schema_member(
    schema: tuple[Mapping[str, Any], Mapping[str, Any]], key: str | int
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The schema of a member of an object or of an element of a list, if it says one."""
    root, node = schema[0], resolved(schema)
    member: Any = node.get("items")
    if isinstance(key, str):
        properties: Any = node.get("properties")
        member = (
            cast("dict[str, Any]", properties).get(key) if isinstance(properties, dict) else None
        )
    return (root, cast("dict[str, Any]", member)) if isinstance(member, dict) else None


def schema_shape(schema: tuple[Mapping[str, Any], Mapping[str, Any]]) -> ListShape | None:
    """The list that a schema declares: the middle of its bounds. None when it is no list."""
    node = resolved(schema)
    if node.get("type") != "array":
        return None
    least, most = node.get("minItems", 0), node.get("maxItems")
    if isinstance(least, int) and isinstance(most, int):
        return ListShape((least + most) / 2, "declared")
    return ListShape(max(ASSUMED_ITEMS, float(least)), "assumed")


def resolved(schema: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The schema with a local reference (`#/$defs/Name`) followed."""
    root, node = schema
    for _ in range(8):
        reference = node.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        target: Any = root
        for part in reference[2:].split("/"):
            target = cast("dict[str, Any]", target).get(part) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            break
        node = cast("dict[str, Any]", target)
    return node
