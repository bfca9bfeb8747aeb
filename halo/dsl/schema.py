"""Types as JSON: the schema that an answer is held to, and the Python value of a JSON value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

from halo.dsl.value_types import is_mapping, is_sequence
from planner.logical import Json

_DATA: tuple[str, ...] = ("default", "enum", "const", "examples")
_OBJECT_MAPS = ("properties", "$defs", "patternProperties")


def json_schema(type_: Any, *, all_required: bool = False) -> dict[str, Any]:
    """The JSON Schema of a type: references resolved, no titles, objects closed.

    With `all_required`, members with a default are required too: in an answer every declared
    member is there, so that reading one cannot fail.

    Raises `TypeError` when pydantic cannot describe the type, or the type's own schema refers to
    something outside itself.
    """
    try:
        schema = TypeAdapter[Any](type_).json_schema()
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise TypeError(f"{type_!r} has no JSON Schema: {error}") from error
    except KeyError as error:  # pydantic looks for every reference among its own definitions
        raise _outside(error.args[0]) from error
    defs = cast("dict[str, Any]", schema.pop("$defs", {}))
    resolver = _Resolver(defs, all_required)
    resolved = resolver.resolve(schema)
    if resolver.recursive:
        # A type that holds itself: the definitions stay, and references into them.
        resolved["$defs"] = {name: resolver.resolve(each, (name,)) for name, each in defs.items()}
    return cast("dict[str, Any]", resolved)


def schema_json(type_: Any) -> str:
    """The schema that an answer is held to, as JSON text. Members keep the order in which they are
    declared: a model writes them in that order, and a reason before a verdict is a better verdict.
    """
    schema = json_schema(type_, all_required=True)
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


class _Resolver:
    """Puts definitions in the place of the references to them."""

    def __init__(self, defs: Mapping[str, Any], all_required: bool) -> None:
        self.recursive = False
        self._defs = defs
        self._all_required = all_required

    def resolve(self, schema: Any, inside: tuple[str, ...] = ()) -> Any:
        """`schema`, found inside the definitions named `inside`."""
        if is_sequence(schema):
            return [self.resolve(each, inside) for each in schema]
        if not is_mapping(schema):
            return schema
        node = dict(schema)
        reference = node.get("$ref")
        if isinstance(reference, str):
            name = reference.rsplit("/", 1)[-1]
            if name in inside:
                self.recursive = True
                return node
            rest = {key: value for key, value in node.items() if key != "$ref"}
            if reference != f"#/$defs/{name}" or name not in self._defs:
                raise _outside(reference)
            return self.resolve({**self._defs[name], **rest}, (*inside, name))
        for key, value in node.items():
            if key in _OBJECT_MAPS:
                node[key] = {name: self.resolve(each, inside) for name, each in value.items()}
            elif key not in _DATA:
                node[key] = self.resolve(value, inside)
        return self._closed(node)

    def _closed(self, node: dict[str, Any]) -> dict[str, Any]:
        """Without the title that pydantic adds; an object has its properties and no others."""
        if isinstance(node.get("title"), str):
            del node["title"]
        if "properties" in node:
            node.setdefault("additionalProperties", False)
            if self._all_required:
                node["required"] = list(node["properties"])
        return node


def _outside(reference: object) -> TypeError:
    return TypeError(f"$ref {reference!r} is outside the type's JSON Schema")


def parse(type_: Any, value: Json) -> Any:
    """The Python value of a JSON value. Raises pydantic's `ValidationError`."""
    return TypeAdapter[Any](type_).validate_json(json.dumps(value))
