"""Schemas of others: what is none is told, and nothing is fetched for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from planner.errors import PlanError
from runtime.answers import JsonType
from runtime.backends.instance import InstanceMaker
from runtime.errors import BackendError
from runtime.json_schema import SchemaError, schema_validator


def test_references_inside_a_schema_are_followed() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}
    validator = schema_validator(schema)
    assert validator.is_valid([1]) and not validator.is_valid(["x"])
    assert schema_validator(True).is_valid(None)


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "at the top": lambda uri: {"$ref": uri},
    "deep inside": lambda uri: {"properties": {"a": {"anyOf": [{"items": {"$ref": uri}}]}}},
    "dynamic": lambda uri: {"$dynamicRef": uri},
    "relative to an identity": lambda uri: {"$id": f"{uri}/here", "$ref": "there.json"},
    "of an older draft": lambda uri: {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "items": {"$ref": uri},
    },
    "as the draft itself": lambda uri: {"$schema": uri, "type": "string"},
}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_fetched_for_a_schema(place: str, outside_reference: str) -> None:
    with pytest.raises(SchemaError) as caught:
        schema_validator(PLACES[place](outside_reference))
    said = str(caught.value)
    assert outside_reference.rpartition("/")[0] in said
    assert "root:" not in said and "\n" not in said


def test_the_reference_and_a_way_out_are_named() -> None:
    with pytest.raises(SchemaError, match=r"\$ref 'other\.json' is outside .* under \$defs"):
        schema_validator({"$ref": "other.json"})


def test_a_mistake_is_told_with_its_place() -> None:
    with pytest.raises(SchemaError) as caught:
        schema_validator({"properties": {"n": {"type": "strng"}}})
    assert caught.value.place == "properties/n/type"


def test_answer_types_and_made_values_refuse_such_schemas(outside_reference: str) -> None:
    text = json.dumps({"items": {"$ref": outside_reference}})
    with pytest.raises(PlanError, match="is outside the schema"):
        JsonType(text).ensure_sound()
    with pytest.raises(BackendError, match="is outside the schema"):
        InstanceMaker(text)
