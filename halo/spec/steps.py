"""The kinds of steps: one model each, unknown fields refused."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union, cast

from pydantic import BaseModel, Discriminator, Field, PlainValidator, Tag, model_validator

from halo.spec.condition import Condition
from halo.spec.fields import (
    AnswerType,
    ConditionText,
    ModelName,
    Name,
    Parameter,
    ReferenceText,
    Returned,
    Strict,
    TemplateText,
    Text,
    Value,
    parse_text,
)
from halo.spec.template import refuse
from halo.spec.value_type import ValueType

MARK = "#"
"""Begins the part of an error's path that pydantic adds for the kind of a step."""


def _stops(given: object) -> tuple[str, ...]:
    texts = cast("list[object]", given) if isinstance(given, list) else [given]
    return tuple(parse_text(each) for each in texts)


class ModelCall(Strict):
    """What every step that calls a model has."""

    prompt: TemplateText
    system: TemplateText | None = None
    model: ModelName = None
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    id: Text | None = None


class GenerateStep(ModelCall):
    """A model's answer."""

    out: AnswerType = ValueType(None)
    max_tokens: Annotated[int, Field(ge=1)] = 256
    stop: Annotated[tuple[str, ...], PlainValidator(_stops)] = ()


class ChooseStep(ModelCall):
    """One of several texts."""

    choose: Annotated[list[Text], Field(min_length=2)]
    max_tokens: Annotated[int, Field(ge=1)] = 256

    @model_validator(mode="after")
    def _different(self) -> ChooseStep:
        twice = [option for option in self.choose if self.choose.count(option) > 1]
        if twice:
            refuse(f"choose has the option {twice[0]!r} twice")
        if "" in self.choose:
            refuse("choose has an empty option")
        return self


class AgentCall(ModelCall):
    tools: list[Text]
    out: AnswerType = ValueType(None)
    max_turns: Annotated[int, Field(ge=1)] = 8
    max_tokens: Annotated[int, Field(ge=1)] = 512


class AgentStep(Strict):
    """A model that calls tools until it answers."""

    agent: AgentCall


class ToolStep(Strict):
    """A call of a tool."""

    tool: Text
    args: Annotated[dict[str, Value], Field(default_factory=dict)]
    id: Text | None = None


class SqlStep(Strict):
    """A query that the author wrote."""

    sql: Text
    params: Annotated[dict[str, Parameter], Field(default_factory=dict)]
    database: Text | None = None
    max_rows: Annotated[int, Field(ge=1)] = 1000
    writes: bool = False
    id: Text | None = None


class QueryStep(Strict):
    """A query that a model wrote."""

    query: ReferenceText
    params: Annotated[dict[str, Parameter], Field(default_factory=dict)]
    database: Text | None = None
    max_rows: Annotated[int, Field(ge=1)] = 1000


class MapStep(Strict):
    """A body for each element of a list."""

    foreach: ReferenceText
    item: Name = Field("item", alias="as")
    do: Body


class ReduceStep(Strict):
    """One value from a list, by merging groups."""

    reduce: ReferenceText
    items: Name = Field("items", alias="as")
    fan_in: Annotated[int, Field(ge=2)] = 16
    do: Body


class WhenStep(Strict):
    """A branch."""

    when: ConditionText
    then: Body
    otherwise: Body | None = Field(None, alias="else")


class LoopFields(Strict):
    state: Value
    name: Name = Field("state", alias="as")
    until: Test | None = None
    goes_on: Test | None = Field(None, alias="while")
    max_rounds: Annotated[int, Field(ge=1)] = 8
    do: Body

    @model_validator(mode="after")
    def _one_condition(self) -> LoopFields:
        if (self.until is None) == (self.goes_on is None):
            refuse("a loop has exactly one of `until` and `while`")
        return self


class LoopStep(Strict):
    """A body again and again, from state to state."""

    loop: LoopFields


class ValueStep(Strict):
    """A value: a constant, another value, or an object of values."""

    value: Value


class TextStep(Strict):
    """A text built from values."""

    text: TemplateText


class ConditionStep(Strict):
    """A condition as a value, true or false."""

    condition: ConditionText


class UnknownStep(BaseModel):
    """Refuses what is no step, saying what steps there are."""

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            refuse(f"expected a step (a mapping), got {given!r:.60}")
        fields = [str(name) for name in cast("dict[object, object]", given)]
        found = [kind for kind in STEPS if kind in fields]
        if len(found) > 1:
            refuse(f"a step is one of {' and '.join(found)}, not both; make two steps of it")
        known = {field: field for field in STEPS}
        for field in fields:
            if near := get_close_matches(field, known, n=1, cutoff=0.7):
                refuse(f"unknown field; did you mean {near[0]!r}?", field=field)
        refuse(f"no kind of step; a step has one of the fields {', '.join(STEPS)}")


class Block(Strict):
    """Steps with a result: the last one, if `return` does not say."""

    steps: Annotated[dict[Name, Step], Field(min_length=1)]
    result: Returned = Field(None, alias="return")


STEPS: dict[str, type[BaseModel]] = {
    "prompt": GenerateStep,
    "choose": ChooseStep,
    "agent": AgentStep,
    "tool": ToolStep,
    "sql": SqlStep,
    "query": QueryStep,
    "foreach": MapStep,
    "reduce": ReduceStep,
    "when": WhenStep,
    "loop": LoopStep,
    "value": ValueStep,
    "text": TextStep,
    "condition": ConditionStep,
}
"""Kinds of steps by the field that tells them."""


def _kind(given: Any) -> str:
    """The tag of a step. `choose` has a `prompt` as well."""
    if isinstance(given, BaseModel):
        return next(f"{MARK}{kind}" for kind, cls in STEPS.items() if isinstance(given, cls))
    if not isinstance(given, dict):
        return f"{MARK}unknown"
    fields = cast("dict[str, Any]", given)
    found = [
        kind for kind in STEPS if kind in fields and not (kind == "prompt" and "choose" in fields)
    ]
    return f"{MARK}{found[0]}" if len(found) == 1 else f"{MARK}unknown"


def _body_kind(given: Any) -> str:
    if isinstance(given, Block) or (isinstance(given, dict) and "steps" in given):
        return f"{MARK}block"
    return _kind(given)


def _test_kind(given: Any) -> str:
    block = isinstance(given, Block) or (isinstance(given, dict) and "steps" in given)
    return f"{MARK}block" if block else f"{MARK}test"


AnyStep: TypeAlias = (
    GenerateStep | ChooseStep | AgentStep | ToolStep | SqlStep | QueryStep | MapStep | ReduceStep
    | WhenStep | LoopStep | ValueStep | TextStep | ConditionStep
)  # fmt: skip
if TYPE_CHECKING:
    Step: TypeAlias = AnyStep
    Body: TypeAlias = AnyStep | Block
    Test: TypeAlias = Condition | Block
else:
    _Block = Annotated[Block, Tag(f"{MARK}block")]
    _KINDS = {**STEPS, "unknown": UnknownStep}
    _Step = Union[  # noqa: UP007  (made from a table)
        tuple(Annotated[cls, Tag(f"{MARK}{kind}")] for kind, cls in _KINDS.items())
    ]
    Step = Annotated[_Step, Discriminator(_kind)]
    Body = Annotated[_Step | _Block, Discriminator(_body_kind)]
    Test = Annotated[
        Annotated[ConditionText, Tag(f"{MARK}test")] | _Block, Discriminator(_test_kind)
    ]


for _model in (MapStep, ReduceStep, WhenStep, LoopFields, LoopStep, Block):
    _model.model_rebuild()
