"""Types at trace time: what is known of a lazy value's members and elements."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import BaseModel
from typing_extensions import TypeIs, is_typeddict


@dataclass(frozen=True)
class Record:
    """The type of a dict that the workflow wrote down: the types by key."""

    fields: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a typed value: its key in the value's JSON, and its type."""

    key: str
    type: Any


def bare(type_: Any) -> Any:
    """A type without `Annotated` and without the None of an optional."""
    while True:
        if hasattr(type_, "__value__"):
            type_ = type_.__value__
        elif typing.get_origin(type_) is Annotated:
            type_ = typing.get_args(type_)[0]
        elif typing.get_origin(type_) in (Union, types.UnionType):
            rest = [a for a in typing.get_args(type_) if a is not type(None)]
            if len(rest) != 1:
                return type_
            type_ = rest[0]
        else:
            return type_


def is_text(type_: Any) -> bool:
    """Whether values of the type are strings."""
    type_ = bare(type_)
    if typing.get_origin(type_) is Literal:
        return all(isinstance(option, str) for option in typing.get_args(type_))
    return isinstance(type_, type) and issubclass(type_, str)


def is_unknown(type_: Any) -> bool:
    """Whether nothing is known of the type."""
    return bare(type_) in (Any, None, object, inspect.Parameter.empty) or isinstance(
        bare(type_), TypeVar
    )


def is_enum(type_: Any) -> bool:
    type_ = bare(type_)
    return isinstance(type_, type) and issubclass(type_, enum.Enum)


def members(type_: Any) -> dict[str, Member] | None:
    """The named members of a type; None when its values have no fixed ones."""
    type_ = bare(type_)
    if isinstance(type_, Record):
        return {name: Member(name, each) for name, each in type_.fields}
    if typing.get_origin(type_) in (Union, types.UnionType):
        return _common(members(each) for each in typing.get_args(type_))
    origin: Any = typing.get_origin(type_) or type_
    if not isinstance(origin, type):
        return None
    hinted: Any = origin
    if issubclass(origin, BaseModel):
        return {
            name: Member(_json_key(name, field), field.annotation)
            for name, field in origin.model_fields.items()
        }
    if dataclasses.is_dataclass(hinted):
        hints = typing.get_type_hints(hinted, include_extras=True)
        return {f.name: Member(f.name, hints[f.name]) for f in dataclasses.fields(hinted)}
    if is_typeddict(hinted):
        hints = typing.get_type_hints(hinted, include_extras=True)
        return {name: Member(name, each) for name, each in hints.items()}
    return None


def _common(alternatives: Iterable[dict[str, Member] | None]) -> dict[str, Member] | None:
    found = list(alternatives)
    known = [each for each in found if each is not None]
    if not known or len(known) != len(found):
        return None
    shared = set(known[0]).intersection(*known[1:])
    return {
        name: first if all(each[name] == first for each in known) else Member(first.key, Any)
        for name, first in known[0].items()
        if name in shared
    }


def _json_key(name: str, field: Any) -> str:
    alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias
    return alias if isinstance(alias, str) else name


def element_type(type_: Any, index: int | None = None) -> Any:
    """The type of a list's elements (of element `index` of a fixed tuple); Any when unknown."""
    type_ = bare(type_)
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if index is not None and -len(arguments) <= index < len(arguments):
            return arguments[index]
        return Any
    if origin is dict or not arguments or origin is Literal:
        return Any
    return arguments[0] if isinstance(origin, type) and issubclass(origin, Iterable) else Any


def value_type(type_: Any) -> Any:
    """The type of a mapping's values; Any when unknown."""
    type_ = bare(type_)
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
        return arguments[1]
    return Any


def is_list(type_: Any) -> bool:
    type_ = bare(type_)
    origin = typing.get_origin(type_) or type_
    return isinstance(origin, type) and issubclass(origin, (list, tuple, set, frozenset))


def is_scalar(type_: Any) -> bool:
    """Whether values of the type have no elements: numbers and booleans."""
    type_ = bare(type_)
    return isinstance(type_, type) and issubclass(type_, (int, float))


def is_mapping(value: object) -> TypeIs[Mapping[Any, Any]]:
    """Whether a plain value is a mapping (an object in JSON)."""
    return isinstance(value, Mapping)


def is_sequence(value: object) -> TypeIs[list[Any] | tuple[Any, ...]]:
    """Whether a plain value is a list or tuple (a list in JSON)."""
    return isinstance(value, list | tuple)


def list_of(type_: Any) -> Any:
    """`list[type_]`, also for a `Record`."""
    return types.GenericAlias(list, (type_,))


def type_name(type_: Any) -> str:
    """A type as people read it."""
    if is_unknown(type_):
        return "value"
    if isinstance(type_, Record):
        return "dict"
    return type_.__name__ if isinstance(type_, type) else str(type_).replace("typing.", "")


def type_hints(function: Callable[..., Any], local_names: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved annotations of a function; Any for one that cannot be resolved.

    `local_names` are those of the place where the function was defined, for classes inside it.
    """
    annotations = getattr(function, "__annotations__", {})
    names = {**getattr(function, "__globals__", {}), **local_names}
    hints: dict[str, Any] = {}
    for name, annotation in annotations.items():
        stub = types.FunctionType((lambda: None).__code__, names)
        stub.__annotations__ = {name: annotation}
        try:
            hints[name] = typing.get_type_hints(stub, include_extras=True)[name]
        except NameError:
            hints[name] = Any
    return hints
