"""The shape of a whole workflow document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag

from halo.spec.condition import Condition, parse_condition
from halo.spec.fields import AnyType, EffectName, ModelName, Name, Strict, Text, parse_text
from halo.spec.steps import Block
from halo.spec.template import refuse
from halo.spec.value_type import parse_type


class PythonTool(Strict):
    """A function of a Python file: `file.py:function`, relative to the document."""

    python: Text
    effect: EffectName | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 1
    max_concurrency: Annotated[int, Field(ge=1)] = 8
    version: Text = ""


class HttpTool(Strict):
    """An HTTP endpoint."""

    http: Text
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    params: Annotated[dict[str, AnyType], Field(default_factory=dict)]
    description: Text = ""
    effect: EffectName = "write"
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 1
    max_concurrency: Annotated[int, Field(ge=1)] = 8
    version: Text = ""


def _tool_kind(given: Any) -> str:
    is_http = isinstance(given, HttpTool) or (isinstance(given, dict) and "http" in given)
    return "#http" if is_http else "#python"


AnyTool: TypeAlias = Annotated[
    Annotated[PythonTool, Tag("#python")] | Annotated[HttpTool, Tag("#http")],
    Discriminator(_tool_kind),
]


def _columns(given: object) -> dict[str, Any]:
    """Column types by name; an empty schema for a column without one."""
    if isinstance(given, list):
        names = [parse_text(each) for each in cast("list[object]", given)]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            refuse(f"the column {twice[0]!r} is there twice")
        return {name: {} for name in names}
    if not isinstance(given, dict):
        refuse("expected a list of column names, or a mapping of names to types")
    return {name: parse_type(each) for name, each in cast("dict[str, object]", given).items()}


def _conditions(given: object) -> tuple[Condition, ...]:
    """One condition, or several that must all hold."""
    if isinstance(given, list):
        return tuple(parse_condition(each) for each in cast("list[object]", given))
    return (parse_condition(given),)


if TYPE_CHECKING:
    Conditions: TypeAlias = tuple[Condition, ...]
else:
    Conditions = Annotated[Any, PlainValidator(_conditions)]


class Spec(Block):
    """A whole document."""

    name: Name | None = None
    description: Text = ""
    columns: Annotated[dict[str, Any] | None, BeforeValidator(_columns)] = None
    model: ModelName = None
    tools: Annotated[dict[str, AnyTool], Field(default_factory=dict)]
    databases: Annotated[dict[Name, Text], Field(default_factory=dict)]
    where: Conditions = ()
    limit: Annotated[int | None, Field(ge=0)] = None
    offset: Annotated[int, Field(ge=0)] = 0
