"""Lifting: plain values, texts with markers, dicts and models become operators and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from halo.dsl.lazy import Lazy, op_of, type_of
from halo.dsl.trace import TEXT_REMEDY, Scope, current_scope, fault
from halo.dsl.value_types import Record, is_mapping, is_sequence, is_text, list_of, members
from halo.errors import WorkflowError
from planner.logical import (
    Const,
    Format,
    Json,
    Op,
    Project,
    Prompt,
    Ref,
    Segment,
    canonical_json,
    render_value,
)


@runtime_checkable
class Interpolation(Protocol):
    """A value inside a t-string, as `string.templatelib` has it."""

    value: Any
    conversion: str | None
    format_spec: str


@runtime_checkable
class Template(Protocol):
    """A t-string (Python 3.14), as `string.templatelib` has it."""

    strings: tuple[str, ...]
    interpolations: tuple[Any, ...]


def scope_here() -> Scope:
    """The current scope, which lifting needs."""
    scope = current_scope()
    if scope is None:
        raise WorkflowError("a value was lifted outside a trace")
    return scope


def lift(value: object) -> Op:
    """The operator whose value is `value`, in the current scope.

    Raises `WorkflowError` for a list that holds lazy values and for what has no JSON form.
    """
    if isinstance(value, Lazy):
        return op_of(value)
    if isinstance(value, str):
        return _lift_text(str(value), value)
    if isinstance(value, BaseModel):
        return _lift_fields(model_fields(value))
    if is_mapping(value):
        return _lift_fields(value)
    if is_sequence(value):
        lifted = [lift(each) for each in value]
        if all(_is_constant(each) for each in lifted):
            return Const.of([_constant(each) for each in lifted])
        raise fault(
            "a list or tuple holds lazy values",
            'Name them in a dict, {"first": a, "second": b}, or put them into one f-string',
        )
    if isinstance(value, Template):
        return _lift_text(template_text(value), value)
    return Const.of(jsonable(value))


def jsonable(value: object) -> Json:
    """A plain value as JSON. Raises `WorkflowError` when it has no JSON form."""
    try:
        plain = cast("Json", to_jsonable_python(value, by_alias=True))
        canonical_json(plain)
    except (PydanticSerializationError, TypeError, ValueError):
        raise fault(
            f"a {type(value).__name__} cannot be a value of a workflow",
            "Values are JSON: text, numbers, booleans, None, lists, dicts with text keys, and "
            "pydantic models",
        ) from None
    return plain


def model_fields(value: BaseModel) -> dict[str, Any]:
    """A model's values under the names that they have in JSON."""
    known = members(type(value)) or {}
    return {member.key: getattr(value, name) for name, member in known.items()}


def _lift_fields(fields: Mapping[Any, Any]) -> Op:
    names = tuple(fields)
    for name in names:
        if not isinstance(name, str):
            raise fault(f"a dict has the key {name!r}", "Keys of values are plain texts")
        if any(isinstance(part, Lazy) for part in scope_here().tracer.split(name)):
            raise fault("a key of a dict holds a lazy value", "Keys are plain texts")
    lifted = tuple(lift(fields[name]) for name in names)
    # A constant has its keys sorted; where that would change how it reads, it is an object.
    if list(names) == sorted(names) and all(isinstance(each, Const) for each in lifted):
        return Const.of({name: _constant(op) for name, op in zip(names, lifted, strict=True)})
    return scope_here().add(Project(lifted, names))


def _is_constant(op: Op) -> bool:
    return isinstance(op, Const) or (
        isinstance(op, Project) and all(_is_constant(each) for each in op.inputs)
    )


def _constant(op: Op) -> Json:
    if isinstance(op, Project):
        return {name: _constant(each) for name, each in zip(op.names, op.inputs, strict=True)}
    assert isinstance(op, Const)
    return op.value


def _lift_text(text: str, given: object) -> Op:
    parts = scope_here().tracer.split(text)
    lazies = [part for part in parts if isinstance(part, Lazy)]
    if not lazies:
        return Const.of(text)
    if len(parts) == 1 and is_text(type_of(lazies[0])):
        return op_of(lazies[0])
    inputs: dict[Op, int] = {}
    prompt = prompt_of(given, inputs)
    return scope_here().add(Format(tuple(inputs), prompt))


def prompt_of(text: object, inputs: dict[Op, int], what: str = "a prompt") -> Prompt:
    """The segments of a text. References are numbered in `inputs`, which grows.

    Raises `WorkflowError` when `text` is no text (f-string, plain string, lazy text, t-string).
    """
    if isinstance(text, Lazy):
        parts: list[str | Lazy] = [text]
    elif isinstance(text, str):
        parts = scope_here().tracer.split(str(text))
    elif isinstance(text, Template):
        parts = scope_here().tracer.split(template_text(text))
    else:
        raise fault(
            f"{what} is a {type(text).__name__}", f'It is a text: use f"...". {TEXT_REMEDY}'
        )
    segments: list[Segment] = []
    for part in parts:
        piece = part if isinstance(part, str) else _reference(part, inputs)
        if isinstance(piece, str) and segments and isinstance(segments[-1], str):
            segments[-1] += piece
        elif piece != "":
            segments.append(piece)
    return Prompt(tuple(segments))


def _reference(lazy: Lazy, inputs: dict[Op, int]) -> Segment:
    op = op_of(lazy)
    if isinstance(op, Const):
        return render_value(op.value)
    return Ref(inputs.setdefault(op, len(inputs)))


def template_text(template: Template) -> str:
    """A t-string as the text that the same f-string gives."""
    parts = [template.strings[0]]
    for each, literal in zip(template.interpolations, template.strings[1:], strict=True):
        value = each.value
        if each.conversion in ("r", "a"):
            value = repr(value) if each.conversion == "r" else ascii(value)
        elif each.conversion == "s":
            value = str(value)
        parts += [format(value, each.format_spec), literal]
    return "".join(parts)


def declared_type(value: object) -> Any:
    """The type that a value has for the code that gets it from a body."""
    if isinstance(value, str):
        return str
    if is_mapping(value):
        return Record(tuple((str(name), declared_type(each)) for name, each in value.items()))
    if is_sequence(value):
        kinds = [declared_type(each) for each in value]
        return list_of(kinds[0] if kinds and all(k == kinds[0] for k in kinds) else Any)
    return type_of(value)
