"""Values of eager runs that read in a prompt exactly as in a batch.

In a batch, a value that is no text reads as JSON inside a prompt. Python's own formatting of lists,
dicts and models differs, so eager values are instances of thin subclasses that format as JSON and
are equal to the plain value.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from halo.dsl.value_types import is_mapping, is_sequence
from planner.logical import Json, render_value


def render(value: object) -> str:
    """A value as a batch would put it into a prompt."""
    return render_value(cast("Json", to_jsonable_python(value, by_alias=True)))


class JsonList(list[Any]):
    """A list that formats as JSON."""

    def __str__(self) -> str:
        return render(list(self))

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


class JsonDict(dict[str, Any]):
    """A dict that formats as JSON; keys that are names can be read as attributes."""

    def __str__(self) -> str:
        return render(dict(self))

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class _ReadsAsJson:
    """Mixed into a user's model class, before it."""

    __slots__ = ()

    def __str__(self) -> str:
        return render(self)

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __eq__(self, other: object) -> bool:
        plain = type(self).__mro__[2]
        return isinstance(other, plain) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return super().__hash__()


@lru_cache(maxsize=256)
def _readable_class(model: type[BaseModel]) -> type[BaseModel]:
    names = {"__module__": model.__module__, "__qualname__": model.__qualname__, "__slots__": ()}
    metaclass: Any = type(model)
    made: type[BaseModel] = metaclass(model.__name__, (_ReadsAsJson, model), names)
    return made


def readable(value: Any) -> Any:
    """`value`, and the lists, dicts and models inside it, as values that format as JSON."""
    if isinstance(value, _ReadsAsJson | JsonList | JsonDict):
        return value
    if isinstance(value, BaseModel):
        return _readable_model(value)
    if is_sequence(value):
        return JsonList(readable(each) for each in value)
    if is_mapping(value):
        return JsonDict((str(key), readable(member)) for key, member in value.items())
    return value


def _readable_model(value: BaseModel) -> BaseModel:
    copy = value.model_copy()
    # Not setattr: the model may be frozen or validate assignments.
    values: dict[str, Any] = vars(copy)
    for name in type(value).model_fields:
        values[name] = readable(values[name])
    object.__setattr__(copy, "__class__", _readable_class(type(value)))
    return copy
