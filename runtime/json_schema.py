"""JSON Schemas that others wrote: users, servers of tools, traces. Compiled here alone, because the
validator's library by itself reads the files and asks the hosts that a `$ref` names."""

from __future__ import annotations

from typing import Any, NoReturn

_RELATIVE = "json-schema:///"  # what the library puts before a reference without a scheme


class SchemaError(ValueError):
    """It is no JSON Schema, or it refers to something outside itself; the message says which.

    Attributes:
        place: of the mistake in the schema, such as "properties/n/type"; empty when not known.
    """

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


def schema_validator(schema: dict[str, Any] | bool) -> Any:
    """A `jsonschema_rs` validator of `schema`. Nothing is ever fetched for it. Raises
    `SchemaError`."""
    import jsonschema_rs

    asked: list[str] = []

    def refuse(uri: str) -> NoReturn:
        asked.append(uri)
        raise ValueError(f"{uri} is not fetched")

    try:
        return jsonschema_rs.validator_for(schema, retriever=refuse)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        if asked:
            raise SchemaError(_outside(schema, asked[0].removeprefix(_RELATIVE))) from None
        place = "/".join(map(str, getattr(error, "instance_path", ())))
        raise SchemaError(str(getattr(error, "message", error)), place) from None


def _outside(schema: dict[str, Any] | bool, uri: str) -> str:
    if isinstance(schema, dict) and schema.get("$schema") == uri:
        return f"$schema {uri[:200]!r} is no draft of JSON Schema"
    return f"$ref {uri[:200]!r} is outside the schema; write what it defines under $defs"
