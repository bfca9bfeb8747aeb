"""The types of the fields of a workflow document.

Texts are parsed as they are validated: a field of type `TemplateText`, `ReferenceText` or
`ConditionText` holds its parts, not its text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator

from halo.spec.condition import KEYWORDS, Condition, parse_condition
from halo.spec.template import (
    Reference,
    Template,
    is_name,
    parse_reference,
    parse_template,
    refuse,
)
from halo.spec.value_type import ValueType, parse_answer_type, parse_type

RESERVED = KEYWORDS | {"row", "databases"}
"""Names that steps and elements cannot have: words of conditions, and the roots of references."""


def parse_text(given: object) -> str:
    if not isinstance(given, str):
        what = "nothing" if given is None else repr(given)
        hint = "" if given is None else f"; write '{given}' in quotes"
        refuse(f"expected a text, got {what:.60}{hint}")
    return given


def _model_name(given: object) -> str:
    if given is None:
        refuse("expected a model's name, got nothing; leave `model` out for the default model")
    return parse_text(given)


def parse_name(given: object) -> str:
    name = parse_text(given)
    if not is_name(name):
        refuse(f"{name!r} cannot be a name; a name is letters, digits, _ and -, no digit first")
    if name in RESERVED:
        refuse(f"{name!r} cannot be a name; it has a meaning of its own in references")
    return name


def _value(given: object) -> Any:
    """A value: texts in it are templates."""
    if isinstance(given, str):
        return parse_template(given)
    if isinstance(given, list):
        return [_value(each) for each in cast("list[object]", given)]
    if isinstance(given, dict):
        return {name: _value(each) for name, each in cast("dict[str, object]", given).items()}
    return given


def _parameter(given: object) -> Any:
    if isinstance(given, str):
        return parse_reference(given)
    if given is not None and not isinstance(given, int | float):
        refuse("expected a reference (a step or column) or a number; other values go into a step")
    return given


def _returned(given: object) -> Any:
    if isinstance(given, str):
        return parse_reference(given)
    if not isinstance(given, dict) or not given:
        refuse("expected a reference, or a mapping of names to references")
    return {name: _returned(each) for name, each in cast("dict[str, object]", given).items()}


Text = Annotated[str, BeforeValidator(parse_text)]
Name = Annotated[str, BeforeValidator(parse_name)]
ModelName = Annotated[str | None, BeforeValidator(_model_name)]
Value = Annotated[Any, PlainValidator(_value)]
Parameter = Annotated[Any, PlainValidator(_parameter)]
Returned = Annotated[Any, PlainValidator(_returned)]
AnyType = Annotated[dict[str, Any], PlainValidator(parse_type)]
EffectName = Literal["pure", "sampled", "write"]

if TYPE_CHECKING:
    # The parsed classes as pydantic must not see them: it would look into their fields.
    TemplateText: TypeAlias = Template
    ReferenceText: TypeAlias = Reference
    ConditionText: TypeAlias = Condition
    AnswerType: TypeAlias = ValueType
else:
    TemplateText = Annotated[Any, PlainValidator(lambda given: parse_template(parse_text(given)))]
    ReferenceText = Annotated[Any, PlainValidator(lambda given: parse_reference(parse_text(given)))]
    ConditionText = Annotated[Any, PlainValidator(parse_condition)]
    AnswerType = Annotated[Any, PlainValidator(parse_answer_type)]


class Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        arbitrary_types_allowed=True,
        populate_by_name=True,
    )
