"""Tools: what a model and the runtime see of a function, and how its values are converted."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

import halo
from halo.errors import ToolError, WorkflowError
from planner.logical import Const, Effect, Project, Tool
from planner.logical import Field as FieldOp
from planner.verify import verify


class Place(BaseModel):
    city: str
    country: str = "NL"


class Unit(enum.Enum):
    KM = "km"
    MILE = "mile"


@halo.tool(timeout=10, pure=True, version="2")
def distance(
    start: Place,
    end: Place,
    unit: Unit = Unit.KM,
    via: list[str] | None = None,
    k: Annotated[int, Field(ge=1, description="how many")] = 3,
) -> list[Place]:
    """The route between two places.

    More words.
    """
    assert isinstance(start, Place) and isinstance(unit, Unit)
    return [start, end][:k]


def test_the_schema_comes_from_the_type_hints() -> None:
    spec = distance.spec
    assert (spec.name, spec.timeout_s, spec.effect, spec.version) == (
        "distance",
        10,
        Effect.PURE,
        "2",
    )
    assert spec.description == "The route between two places.\n\nMore words."
    properties = spec.parameters["properties"]
    assert spec.parameters["required"] == ["start", "end"]
    assert spec.parameters["additionalProperties"] is False
    assert properties["start"] == {
        "type": "object",
        "properties": {"city": {"type": "string"}, "country": {"type": "string", "default": "NL"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    assert properties["unit"]["enum"] == ["km", "mile"]
    assert properties["k"] == {
        "type": "integer",
        "minimum": 1,
        "default": 3,
        "description": "how many",
    }


def test_parameter_names_that_models_reserve_are_fine() -> None:
    @halo.tool(pure=True)
    def odd(schema: str, copy: int, _hidden: str = "x", json: bool = False) -> str:
        """Odd names."""
        return schema

    assert list(odd.spec.parameters["properties"]) == ["schema", "copy", "_hidden", "json"]
    assert odd.spec.function is not None
    assert odd.spec.function(schema="a", copy=1) == "a"


def test_the_runtime_calls_it_with_json_and_gets_json() -> None:
    call = distance.spec.function
    assert call is not None
    value = call(start={"city": "Delft"}, end={"city": "Kyoto", "country": "JP"}, unit="mile")
    assert value == [{"city": "Delft", "country": "NL"}, {"city": "Kyoto", "country": "JP"}]


def test_arguments_and_results_that_do_not_fit_are_tool_errors() -> None:
    @halo.tool(pure=True)
    def count(text: str) -> int:
        """Counts."""
        return text  # type: ignore[return-value]

    call = count.spec.function
    assert call is not None
    for arguments, message in (
        ({"text": "x"}, "returned"),
        ({"text": ["x"]}, "argument 'text'"),
        ({}, "missing"),
        ({"text": "x", "more": 1}, "no parameter 'more'"),
    ):
        with pytest.raises(ToolError, match=message) as caught:
            call(**arguments)
        assert caught.value.tool == "count" and not caught.value.retryable


def test_results_of_any_json_kind() -> None:
    @dataclass
    class Point:
        x: int

    @halo.tool(pure=True)
    def untyped(what):  # type: ignore[no-untyped-def]
        """Returns what it is asked for."""
        return {"point": Point(1), "set": None, "tuple": (1, 2)}[what]

    call = untyped.spec.function
    assert call is not None
    assert call(what="point") == {"x": 1}
    assert call(what="tuple") == [1, 2]


def test_an_async_tool_stays_async() -> None:
    @halo.tool(pure=True)
    async def fetch(url: str, *, limit: int = 2) -> str:
        """Fetches."""
        return url * limit

    call = fetch.spec.function
    assert call is not None and asyncio.iscoroutinefunction(call)
    assert asyncio.run(call(url="x", limit=3)) == "xxx"


def test_a_generator_is_a_list_of_typed_rows() -> None:
    @halo.tool(pure=True)
    def places(country: str) -> Iterator[Place]:
        """Its cities."""
        yield from (Place(city=city, country=country) for city in ("Utrecht", "Delft"))

    @halo.tool(pure=True)
    async def cities(country: str) -> AsyncIterator[str]:
        for place in places(country):
            yield place.city

    @halo.tool(pure=True)
    def numbers() -> Iterator[int]:
        yield "no number"  # type: ignore[misc]

    @halo.workflow
    def shown(country: str) -> dict[str, Any]:
        found = places(country)
        return {"first": found[0].city, "all": f"{found}", "cities": cities(country)}

    assert [place.city for place in places("NL")] == ["Utrecht", "Delft"]
    expected = {
        "first": "Utrecht",
        "all": '[{"city": "Utrecht", "country": "NL"}, {"city": "Delft", "country": "NL"}]',
        "cities": ["Utrecht", "Delft"],
    }
    assert shown("NL") == expected  # at once
    (value,) = halo.run(shown, [{"country": "NL"}], engine="simulated").values()
    assert value == expected
    with pytest.raises(ToolError, match="numbers returned what its type does not allow"):
        list(numbers.spec.function())  # type: ignore[misc]


def test_positional_only_parameters() -> None:
    @halo.tool(pure=True)
    def both(a: str, /, b: str) -> str:
        """Joins."""
        return a + b

    assert both.spec.function is not None
    assert both.spec.function(b="2", a="1") == "12"
    op = halo.workflow(lambda q: both(q, b="x")).trace("rows", ["q"]).plan.outputs[0][1].value
    assert isinstance(op, Tool) and op.params == ("a", "b")


def test_a_traced_call_has_its_arguments_by_name_with_defaults() -> None:
    def one(q: str) -> Any:
        return distance({"city": q}, Place(city="Delft"))  # type: ignore[arg-type]

    def two(q: str) -> Any:
        return distance(end=Place(city="Delft"), start={"city": q}, k=3)  # type: ignore[arg-type]

    values = [halo.workflow(f).trace("rows", ["q"]).plan.outputs[0][1].value for f in (one, two)]
    assert values[0] == values[1], "a default written down is the same call"
    op = values[0]
    assert isinstance(op, Tool) and op.params == ("start", "end", "k")
    assert isinstance(op.inputs[0], Project)
    assert op.inputs[1] == Const.of({"city": "Delft", "country": "NL"})


def test_calls_that_do_not_fit_fail_at_trace_time() -> None:
    loose: Any = distance
    for call, message in (
        (lambda q: loose(q), "missing a required argument: 'end'"),
        (lambda q: loose(q, q, wrong=1), "unexpected keyword"),
        (lambda q: loose(q, q, k=0), "argument 'k'"),
        (lambda q: loose(q, q, k="many"), "argument 'k'"),
    ):
        with pytest.raises(WorkflowError, match=message) as caught:
            halo.workflow(call).trace("rows", ["q"])
        assert "test_tool.py" in str(caught.value) and "distance(start" in str(caught.value)


def test_results_are_typed() -> None:
    def flow(q: str) -> Any:
        return distance(q, q)[0].city  # type: ignore[arg-type]

    op = halo.workflow(flow).trace("rows", ["q"]).plan.outputs[0][1].value
    assert isinstance(op, FieldOp) and op.key == "city"


def test_two_tools_of_one_name_are_refused() -> None:
    def make(answer: str) -> Any:
        @halo.tool(pure=True, name="look")
        def look(q: str) -> str:
            """Looks."""
            return answer

        return look

    one, two = make("1"), make("2")
    with pytest.raises(WorkflowError, match=r"two different tools are named 'look'.*name="):
        halo.workflow(lambda q: {"a": one(q), "b": two(q)}).trace("rows", ["q"])


def function_returning(type_: Any) -> Any:
    def returns() -> Any: ...

    returns.__annotations__["return"] = type_
    return returns


def test_declarations_that_cannot_be() -> None:
    def plain(q: str) -> str:
        return q

    def starred(*parts: str) -> str:
        return ""

    class Handle:
        pass

    def opaque(q: Handle) -> str:
        return ""

    with pytest.raises(WorkflowError, match="contradicts"):
        halo.tool(pure=True, effect="write")(plain)
    with pytest.raises(WorkflowError, match="pure, sampled, write"):
        halo.tool(effect="none")(plain)  # type: ignore[call-overload]
    with pytest.raises(WorkflowError, match="Name every parameter"):
        halo.tool(starred)
    with pytest.raises(WorkflowError, match="cannot name a tool"):
        halo.tool(name="two words")(plain)
    with pytest.raises(WorkflowError, match="limits"):
        halo.tool(timeout=0)(plain)
    with pytest.raises(WorkflowError, match="no JSON form"):
        halo.tool(opaque)
    with pytest.raises(WorkflowError, match="no JSON form"):
        halo.tool(function_returning(Handle))


def test_the_idempotency_key_belongs_to_the_runtime() -> None:
    @halo.tool
    def publish(text: str, idempotency_key: str) -> str:
        """Publishes."""
        return f"{idempotency_key}:{text}"

    loose: Any = publish
    assert list(publish.spec.parameters["properties"]) == ["text"]
    assert publish.spec.function is not None
    assert publish.spec.function(text="t", idempotency_key="k") == "k:t"
    op = halo.workflow(lambda q: loose(q)).trace("rows", ["q"]).plan.outputs[0][1].value
    assert isinstance(op, Tool) and op.params == ("text",)
    with pytest.raises(WorkflowError, match="fills it in"):
        halo.workflow(lambda q: publish(q, idempotency_key="x")).trace("rows", ["q"])
    # Called at once, it gets a fresh key.
    assert loose("t") != loose("t")


def test_outside_a_trace_a_tool_is_its_function() -> None:
    assert distance(Place(city="a"), Place(city="b"), k=1) == [Place(city="a")]
    assert (distance.__doc__ or "").startswith("The route")
    assert distance.function is not None


def test_an_http_tool() -> None:
    look = halo.tool.http(
        "look",
        url="http://127.0.0.1:9/search",
        method="post",
        params={"q": str, "kind": Literal["a", "b"]},
        returns=list[Place],
        pure=True,
    )
    assert (look.spec.url, look.spec.method, look.spec.function) == (
        "http://127.0.0.1:9/search",
        "POST",
        None,
    )
    assert look.spec.parameters["required"] == ["q", "kind"]
    plan = halo.workflow(lambda q: look(q=q, kind="a")[0].city).trace("rows", ["q"]).plan
    verify(plan)
    with pytest.raises(WorkflowError, match="argument 'kind'"):
        halo.workflow(lambda q: look(q=q, kind="c")).trace("rows", ["q"])
