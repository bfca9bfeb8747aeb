"""Answer types as JSON Schema, and what is known of a typed value's members."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import jsonschema_rs
import pytest
from pydantic import BaseModel, ConfigDict, Field

import halo
from halo.dsl.schema import json_schema
from halo.errors import WorkflowError
from planner.logical import Const, Generate, Op, Project
from planner.logical import Field as FieldOp

lm = halo.Model("m")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    """A part."""

    title: str = Field(description="what it is called")
    colour: Colour = Colour.RED


class Whole(BaseModel):
    model_config = ConfigDict(title="Renamed")

    parts: list[Part]
    best: Part | None = None
    by_name: dict[str, Part] = {}
    kind: Annotated[Literal["a", "b"], Field(alias="Kind")]


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Options(TypedDict):
    size: int


@dataclass
class Point:
    x: int


def test_references_are_resolved_titles_go_and_objects_are_closed() -> None:
    schema = json_schema(Whole)
    text = json.dumps(schema)
    assert "$ref" not in text and "$defs" not in text
    assert "Renamed" not in text and "Parts" not in text
    assert schema["required"] == ["parts", "Kind"]
    part = schema["properties"]["parts"]["items"]
    assert part["additionalProperties"] is False
    assert part["properties"]["title"] == {"type": "string", "description": "what it is called"}
    assert part["properties"]["colour"] == {
        "type": "string",
        "enum": ["red", "blue"],
        "default": "red",
    }


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        (bool, {"type": "boolean"}),
        (int, {"type": "integer"}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (list[Literal[1, 2]], {"type": "array", "items": {"type": "integer", "enum": [1, 2]}}),
        (Colour, {"type": "string", "enum": ["red", "blue"]}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    ],
)
def test_simple_types(type_: Any, expected: dict[str, Any]) -> None:
    assert json_schema(type_) == expected


def test_a_recursive_type_keeps_its_definition() -> None:
    schema = json_schema(Tree)
    assert schema["$defs"]["Tree"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
    assert schema["$defs"]["Tree"]["additionalProperties"] is False
    validator = jsonschema_rs.validator_for(schema)
    assert validator.is_valid({"value": 1, "children": [{"value": 2, "children": []}]})
    assert not validator.is_valid({"value": 1, "children": [{"value": "x"}]})


def test_a_tool_that_takes_a_recursive_type() -> None:
    @halo.tool(pure=True)
    def depth(tree: Tree, name: str = "") -> int:
        """How deep a tree is."""
        return 1 + max((depth(child) for child in tree.children), default=0)

    validator = jsonschema_rs.validator_for(depth.spec.parameters)
    assert validator.is_valid({"tree": {"value": 1, "children": [{"value": 2}]}})
    assert not validator.is_valid({"tree": {"value": 1, "children": [{}]}})
    assert depth.spec.function is not None
    assert depth.spec.function(tree={"value": 1, "children": [{"value": 2}]}) == 2


def test_an_answer_has_every_member_that_its_type_declares() -> None:
    """Reading a member that has a default cannot fail in a run."""
    flow = halo.workflow(lambda q: lm.gen(q, out=list[Part])[0].colour)
    op = flow.trace("rows", ["q"]).plan.outputs[0][1].value.inputs[0].inputs[0]
    assert isinstance(op, Generate)
    assert json.loads(op.schema_json or "")["items"]["required"] == ["title", "colour"]


def test_equal_models_with_other_names_give_equal_plans() -> None:
    def traced(model: type[BaseModel]) -> Op:
        flow = halo.workflow(lambda q: lm.gen(q, out=model), name="f")
        op: Op = flow.trace("rows", ["q"]).plan.outputs[0][1].value
        return op

    one = type("One", (BaseModel,), {"__annotations__": {"n": int}})
    two = type("Two", (BaseModel,), {"__annotations__": {"n": int}})
    three = type("One", (BaseModel,), {"__annotations__": {"m": int}})
    assert traced(one) == traced(two) != traced(three)


def test_out_str_is_plain_text() -> None:
    op = halo.workflow(lambda q: lm.gen(q, out=str)).trace("r", ["q"]).plan.outputs[0][1].value
    assert isinstance(op, Generate) and op.schema_json is None


def keys(body: Callable[[Any], Any], type_: Any) -> list[str | int]:
    """The keys of the chain of fields that `body` takes of a column of `type_`."""

    def flow(value: Any) -> Any:
        return body(value)

    flow.__annotations__["value"] = type_
    op = halo.workflow(flow).trace("rows", ["value"]).plan.outputs[0][1].value
    found: list[str | int] = []
    while isinstance(op, FieldOp):
        found.insert(0, op.key)
        (op,) = op.inputs
    return found


@pytest.mark.parametrize(
    ("body", "type_", "expected"),
    [
        (lambda w: w.parts[0].title, Whole, ["parts", 0, "title"]),
        (lambda w: w.best.title, Whole, ["best", "title"]),
        (lambda w: w.by_name["x"].colour.value, Whole, ["by_name", "x", "colour"]),
        (lambda w: w.kind, Whole, ["Kind"]),
        (lambda w: w["best"]["title"], Whole, ["best", "title"]),
        (
            lambda t: t.children[-1].children[1].value,
            Tree,
            ["children", -1, "children", 1, "value"],
        ),
        (lambda o: o["size"], Options, ["size"]),
        (lambda p: p.x, Point, ["x"]),
        (lambda p: p.x, "Point", ["x"]),
        (lambda t: t[1].x, tuple[int, Point], [1, "x"]),
        (lambda v: v["a"][0]["b"], Any, ["a", 0, "b"]),
        (lambda v: v["a"], dict[str, Any], ["a"]),
        (lambda v: v.x, Point | None, ["x"]),
    ],
)
def test_members(body: Callable[[Any], Any], type_: Any, expected: list[str | int]) -> None:
    assert keys(body, type_) == expected


@pytest.mark.parametrize(
    ("body", "type_", "message"),
    [
        (lambda w: w.parts[0].titel, Whole, "title, colour"),
        (lambda w: w.parts.title, Whole, "halo.map"),
        (lambda w: w.parts[0:2], Whole, "halo.map"),
        (lambda w: w.parts["x"], Whole, "no such member"),
        (lambda w: w.kind.upper(), Whole, "string method .upper"),
        (lambda w: w.Kind, Whole, "no field 'Kind'"),
        (lambda w: w["sizes"], Options, "size"),
        (lambda n: n[0], int, "no such member"),
        (lambda v: v.anything, Any, '["anything"]'),
        (lambda v: v["a"][True], Any, "key"),
        (lambda w: w.x, Point | Whole, "no field 'x'"),
    ],
)
def test_members_that_are_not_there(body: Callable[[Any], Any], type_: Any, message: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        keys(body, type_)
    assert message in str(caught.value)


def test_a_member_of_a_dict_that_the_workflow_wrote() -> None:
    def flow(q: str, xs: list[str]) -> Any:
        records = halo.map(lambda x: {"name": x, "n": 1}, xs)
        return halo.map(lambda r: {"again": r["name"]}, records)[0]["agian"]

    with pytest.raises(WorkflowError, match=r"no field 'agian'.*again"):
        halo.workflow(flow).trace("rows", ["q", "xs"])


def test_constants_are_json() -> None:
    op = halo.workflow(lambda q: {"p": Part(title="x"), "c": Colour.BLUE, "t": (1, 2)})
    value = op.trace("rows", ["q"]).plan.outputs[0][1].value
    assert isinstance(value, Project) and value.names == ("p", "c", "t"), "the order is kept"
    part, colour, numbers = value.inputs
    assert isinstance(part, Project) and part.names == ("title", "colour")
    assert (colour, numbers) == (Const.of("blue"), Const.of([1, 2]))
    flow = halo.workflow(lambda q: [{"b": 1, "a": {"d": 2, "c": 3}}])
    value = flow.trace("rows", ["q"]).plan.outputs[0][1].value
    assert value == Const.of([{"b": 1, "a": {"d": 2, "c": 3}}])


def test_members_of_an_answer_are_written_in_the_order_declared() -> None:
    class Judged(BaseModel):
        reason: str
        answer: str

    op = (
        halo.workflow(lambda q: lm.gen(q, out=Judged)).trace("rows", ["q"]).plan.outputs[0][1].value
    )
    assert isinstance(op, Generate)
    assert list(json.loads(op.schema_json or "")["properties"]) == ["reason", "answer"]
