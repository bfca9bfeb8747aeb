"""A value of a JSON Schema, chosen by a number: how the simulated engine "decodes" a schema.

Covers what workflow types produce: objects, arrays, strings, numbers, enums, constants, unions,
`allOf` and local references. Keywords outside that are refused by name, never ignored. Every value
is checked against the schema by a real validator before it is handed out.
"""

from __future__ import annotations

import json
from typing import Any, cast

from planner.logical import Json
from runtime.backends.schemas import (
    Draw,
    UnsupportedError,
    implied_type,
    merge_schemas,
    number_of,
    size_rank,
    string_of,
)
from runtime.errors import BackendError
from runtime.json_schema import schema_validator

_UNSUPPORTED = frozenset(
    (
        *("pattern", "not", "if", "then", "else", "contains", "minContains", "maxContains"),
        *("patternProperties", "propertyNames", "dependentRequired", "dependentSchemas"),
        *("unevaluatedItems", "unevaluatedProperties", "minProperties", "$dynamicRef"),
    )
)
_SHALLOW = 6
_DEEPEST = 48
_DRAWS = 8


class InstanceMaker:
    """Values of one schema. Compiles the schema once."""

    def __init__(self, schema_json: str) -> None:
        """Raises `BackendError` when the text is no JSON Schema."""
        try:
            self._root: Any = json.loads(schema_json)
            self._validator = schema_validator(self._root)
        except ValueError as error:
            raise BackendError(
                f"not a JSON Schema: {error} (in {schema_json[:200]})", backend="simulated"
            ) from error

    def make(self, seed: int, *, small: bool = False) -> Json:
        """The value number `seed`; with `small`, without optional parts. Raises `BackendError`
        naming what cannot be made."""
        reason = ""
        for salt in range(_DRAWS):
            draw = Draw(seed + salt)
            try:
                value = self._value(self._root, draw, _SHALLOW if small else 0)
            except UnsupportedError as error:
                reason = str(error)
                break
            if self._validator.is_valid(value):
                return value
            reason = next((e.message for e in self._validator.iter_errors(value)), "not valid")
        raise BackendError(
            f"the simulated engine cannot make a value of this schema: {reason}; "
            "simplify the schema, or use a real engine",
            backend="simulated",
        )

    def _value(self, schema: Any, draw: Draw, depth: int) -> Json:
        if depth > _DEEPEST:
            raise UnsupportedError("it recurses without an end")
        if schema is True or schema == {}:
            return draw.word()
        if not isinstance(schema, dict):
            raise UnsupportedError("part of it is `false`, which nothing satisfies")
        node = self._flat(cast("dict[str, Any]", schema))
        unknown = _UNSUPPORTED.intersection(node)
        if unknown:
            raise UnsupportedError(f"keyword {min(unknown)!r} is not supported")
        if "const" in node:
            constant: Json = node["const"]
            return constant
        if "enum" in node:
            choice: Json = node["enum"][draw.below(len(node["enum"]))]
            return choice
        for union in ("anyOf", "oneOf"):
            if union in node:
                rest = {k: v for k, v in node.items() if k != union}
                return self._one_of(node[union], rest, draw, depth)
        kind = node.get("type", implied_type(node))
        if isinstance(kind, list):
            kinds = cast("list[str]", kind)
            return self._one_of([{"type": k} for k in kinds], node, draw, depth)
        match kind:
            case "object":
                return self._object(node, draw, depth)
            case "array":
                return self._array(node, draw, depth)
            case "string":
                return string_of(node, draw)
            case "integer" | "number":
                return number_of(node, draw, whole=kind == "integer")
            case "boolean":
                return draw.below(2) == 1
            case "null":
                return None
            case _:
                raise UnsupportedError(f"type {kind!r} is not known")

    def _flat(self, node: dict[str, Any]) -> dict[str, Any]:
        """`node` with references followed and `allOf` merged in."""
        for _ in range(_DEEPEST):
            if "$ref" in node:
                target = self._resolve(str(node["$ref"]))
                rest = {k: v for k, v in node.items() if k != "$ref"}
                node = merge_schemas(target, rest)
            elif "allOf" in node:
                merged = {k: v for k, v in node.items() if k != "allOf"}
                for part in node["allOf"]:
                    if part is False:
                        raise UnsupportedError("part of it is `false`, which nothing satisfies")
                    if part is not True:
                        merged = merge_schemas(merged, self._flat(part))
                node = merged
            else:
                return node
        raise UnsupportedError("its references go in a circle")

    def _resolve(self, reference: str) -> dict[str, Any]:
        if not reference.startswith("#"):
            raise UnsupportedError(f"reference {reference!r} is not local")
        target: Any = self._root
        for step in reference[1:].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            try:
                target = cast(Any, target[int(name)] if isinstance(target, list) else target[name])
            except (KeyError, ValueError, IndexError, TypeError):
                raise UnsupportedError(f"reference {reference!r} leads nowhere") from None
        if not isinstance(target, dict):
            raise UnsupportedError(f"reference {reference!r} is not an object schema")
        return cast("dict[str, Any]", target)

    def _one_of(self, options: list[Any], rest: dict[str, Any], draw: Draw, depth: int) -> Json:
        first = draw.below(len(options))
        ordered = options[first:] + options[:first]
        if depth >= _SHALLOW:  # end recursion: what has no inside first
            ordered.sort(key=size_rank)
        reason = UnsupportedError("it is a union of nothing")
        for option in ordered:
            try:
                if option is False:
                    continue
                node = rest if option is True else merge_schemas(rest, self._flat(option))
                return self._value(node, draw, depth + 1)
            except UnsupportedError as error:
                reason = error
        raise reason

    def _object(self, node: dict[str, Any], draw: Draw, depth: int) -> Json:
        properties: dict[str, Any] = node.get("properties", {})
        required: list[str] = node.get("required", [])
        other: Any = node.get("additionalProperties", True)
        value: dict[str, Json] = {}
        for name, schema in properties.items():
            if name in required:
                value[name] = self._value(schema, draw, depth + 1)
            elif depth < _SHALLOW and schema is not False:
                try:
                    value[name] = self._value(schema, draw, depth + 1)
                except UnsupportedError:
                    continue  # it is optional
        for name in required:
            if name not in properties:
                value[name] = self._value(other, draw, depth + 1)
        if not properties and isinstance(other, dict) and depth < _SHALLOW:
            value[draw.word()] = self._value(other, draw, depth + 1)
        return value

    def _array(self, node: dict[str, Any], draw: Draw, depth: int) -> Json:
        prefix: list[Any] = node.get("prefixItems", [])
        items: Any = node.get("items", True)
        least = int(node.get("minItems", 0))
        size = max(least, len(prefix))
        if depth < _SHALLOW and items is not False:
            size = max(size, least + draw.below(2), 1) + draw.below(2)
        size = min(size, int(node.get("maxItems", size)))
        value: list[Json] = []
        for i in range(size):
            schema = prefix[i] if i < len(prefix) else items
            try:
                value.append(self._element(schema, value, node, draw, depth))
            except UnsupportedError:
                if i >= least:
                    break
                raise
        return value

    def _element(
        self, schema: Any, before: list[Json], array: dict[str, Any], draw: Draw, depth: int
    ) -> Json:
        element = self._value(schema, draw, depth + 1)
        if array.get("uniqueItems"):
            for _ in range(64):
                if element not in before:
                    return element
                element = self._value(schema, draw, depth + 1)
            if element in before:
                raise UnsupportedError("not enough different values for 'uniqueItems'")
        return element
