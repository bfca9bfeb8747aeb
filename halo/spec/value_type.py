"""Types as YAML writes them, and what is known of a value's members.

`text`, `integer`, `number`, `boolean`, `list of TYPE`, a list of allowed values, a mapping of field
names to types, or a full JSON Schema. A type is kept as its JSON Schema, in the form in which the
Python DSL writes the same type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias, cast

from halo.spec.template import refuse
from runtime.json_schema import SchemaError, schema_validator

Schema: TypeAlias = "dict[str, Any]"

_SCALARS: dict[str, Schema] = {
    "text": {"type": "string"},
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "any": {},
}
_JSON_TYPES = frozenset(("string", "integer", "number", "boolean", "null", "object", "array"))
_COMPOSED = ("anyOf", "oneOf", "allOf")
_LIST = re.compile(r"list of (.+)|list\[(.+)\]", re.DOTALL)


@dataclass(frozen=True)
class ValueType:
    """A declared type. `schema` is None for the text that a model writes freely."""

    schema: Schema | None


def schema_text(schema: Schema) -> str:
    """A schema as plans hold it, as `halo.dsl.schema.schema_json` writes it: the order of members
    is kept, because a model writes its answer in that order."""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def parse_answer_type(given: object) -> ValueType:
    """The type of an answer; `text` is free text, not a JSON string."""
    if given in ("text", "string"):
        return ValueType(None)
    return ValueType(parse_type(given))


def parse_type(given: object) -> Schema:
    """The JSON Schema of a type. Refuses what is neither shorthand nor a valid schema."""
    if isinstance(given, str):
        return _named(given.strip())
    if isinstance(given, list):
        return _enum(cast("list[object]", given))
    if not isinstance(given, dict):
        refuse(f"expected a type, got {given!r:.60}; {_KNOWN}")
    fields = cast("Schema", given)
    if is_json_schema(fields):
        return checked_schema(fields)
    if not fields:
        refuse(f"an object needs at least one field; {_KNOWN}")
    return {
        "properties": {name: parse_type(each) for name, each in fields.items()},
        "required": list(fields),
        "type": "object",
        "additionalProperties": False,
    }


_KNOWN = (
    "a type is text, integer, number, boolean, list of TYPE, a list of allowed values, a mapping "
    "of fields, or a JSON Schema"
)


def _named(name: str) -> Schema:
    if match := _LIST.fullmatch(name):
        return {"items": _named((match[1] or match[2]).strip()), "type": "array"}
    if name not in _SCALARS:
        near = get_close_matches(name, _SCALARS, n=1)
        refuse(f"unknown type {name!r}; did you mean {near[0]!r}?" if near else
               f"unknown type {name!r}; {_KNOWN}")  # fmt: skip
    return dict(_SCALARS[name])


def _enum(values: list[object]) -> Schema:
    if not values or any(isinstance(v, list | dict) or v is None for v in values):
        refuse("a list of allowed values holds texts, numbers or booleans")
    kinds = {type(value) for value in values}
    if len({(type(value), value) for value in values}) != len(values):
        refuse("a list of allowed values holds one of them twice")
    schema: Schema = {"const": values[0]} if len(values) == 1 else {"enum": values}
    names: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}
    if len(kinds) == 1:
        schema["type"] = names[kinds.pop()]
    return schema


def is_json_schema(fields: Mapping[str, Any]) -> bool:
    """Whether a mapping is a JSON Schema, not fields and their types: it has a `type:` of JSON
    Schema, a key with `$`, or anyOf, oneOf, allOf with a list of schemas."""
    kind = fields.get("type")
    kinds = cast("list[object]", kind) if isinstance(kind, list) else [kind]
    if kinds and all(isinstance(each, str) and each in _JSON_TYPES for each in kinds):
        return True
    if any(name.startswith("$") for name in fields):
        return True
    return any(
        isinstance(fields.get(name), list) and any(isinstance(s, dict) for s in fields[name])
        for name in _COMPOSED
    )


_KEYWORDS = frozenset(
    (
        "type", "properties", "required", "additionalProperties", "items", "prefixItems", "enum",
        "const", "anyOf", "oneOf", "allOf", "not", "if", "then", "else", "minimum", "maximum",
        "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern",
        "format", "minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains",
        "minProperties", "maxProperties", "patternProperties", "propertyNames",
        "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems",
        "unevaluatedProperties", "additionalItems", "definitions", "title", "description",
        "default", "examples", "deprecated", "readOnly", "writeOnly", "contentEncoding",
        "contentMediaType", "contentSchema", "discriminator",
    )
)  # fmt: skip


def checked_schema(schema: Schema) -> Schema:
    """`schema`, if it is a valid JSON Schema that refers to nothing outside itself."""
    unknown = [name for name in schema if name not in _KEYWORDS and not name.startswith("$")]
    if unknown:
        near = get_close_matches(unknown[0], _KEYWORDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        refuse(
            f"a mapping with `type: {schema.get('type')}` is a JSON Schema, and {unknown[0]!r} is "
            f"no keyword of it{hint}"
        )
    try:
        schema_validator(schema)
    except SchemaError as error:
        place = f" at {error.place}" if error.place else ""
        refuse(f"bad JSON Schema{place}: {error!s:.160}")
    return schema


def written_type(schema: Schema) -> Any:
    """The shortest form that `parse_type` reads as `schema`."""
    for form in _forms(schema):
        try:
            if schema_text(parse_type(form)) == schema_text(schema):
                return form
        except ValueError:
            continue
    return schema


def _forms(schema: Schema) -> list[Any]:
    forms: list[Any] = [name for name, scalar in _SCALARS.items() if scalar == schema]
    if isinstance(schema.get("enum"), list):
        forms.append(schema["enum"])
    if "const" in schema:
        forms.append([schema["const"]])
    items = schema.get("items")
    if isinstance(items, dict):
        inner = written_type(cast("Schema", items))
        if isinstance(inner, str):
            forms.append(f"list of {inner}")
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, dict) and isinstance(required, list):
        fields = cast("dict[str, Any]", properties)
        names = cast("list[str]", required)
        if set(names) == set(fields) and all(isinstance(each, dict) for each in fields.values()):
            forms.append({name: written_type(fields[name]) for name in names})
    return forms


# --- members -------------------------------------------------------------------------------------


def member_type(schema: Schema | None, key: str | int) -> Schema | None:
    """The type of a member; None when it is not known. Raises `LookupError` with what is wrong when
    a value of this type cannot have the member."""
    kind = schema.get("type") if schema else None
    if schema is None or not isinstance(kind, str):
        return None
    if kind == "array":
        if isinstance(key, str):
            raise LookupError("is a list; write [0] for an element, or use foreach")
        items = schema.get("items")
        return cast("Schema", items) if isinstance(items, dict) else None
    if kind != "object":
        what = {"string": "a text", "null": "null"}.get(kind, f"{_article(kind)} {kind}")
        raise LookupError(f"is {what} and has no members")
    if isinstance(key, int):
        raise LookupError("is an object; write .name for a field")
    fields = schema.get("properties")
    if not isinstance(fields, dict):
        return None
    known = cast("dict[str, Any]", fields)
    if key in known:
        return cast("Schema", known[key]) if isinstance(known[key], dict) else None
    if schema.get("additionalProperties") is not False:
        return None
    near = get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known)}"
    raise LookupError(f"has no field {key!r}; {hint}")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
