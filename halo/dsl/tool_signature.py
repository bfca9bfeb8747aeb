"""What a tool takes and returns: its JSON Schema, and the conversion between JSON and Python."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import (
    BaseModel,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticSerializationError, to_jsonable_python

from halo.dsl.lazy import Lazy
from halo.dsl.markers import holds_marker
from halo.dsl.schema import json_schema
from halo.dsl.trace import fault
from halo.dsl.value_types import (
    bare,
    element_type,
    is_mapping,
    is_sequence,
    is_unknown,
    list_of,
)
from halo.errors import ToolError
from planner.logical import Json

IDEMPOTENCY_KEY = "idempotency_key"
"""The parameter of a writing tool that the runtime fills in."""


@dataclass(frozen=True)
class ToolSignature:
    """Attributes:
    shape: the Python signature, without the idempotency key.
    adapters: how each argument is converted, by parameter.
    parameters: JSON Schema of the arguments.
    returns: the declared type of the result, Any without a declaration.
    takes_idempotency_key: whether the function has that parameter.
    """

    shape: inspect.Signature
    adapters: Mapping[str, TypeAdapter[Any]]
    parameters: dict[str, Any]
    returns: Any
    takes_idempotency_key: bool = False

    @classmethod
    def of_function(
        cls, tool: str, function: Callable[..., Any], hints: Mapping[str, Any]
    ) -> ToolSignature:
        """The signature of a Python function with resolved `hints`."""
        shape = inspect.signature(function)
        parameters = [p for p in shape.parameters.values() if p.name != IDEMPOTENCY_KEY]
        if yields_rows(function):
            arguments = typing.get_args(bare(hints.get("return", Any)))
            rows = list_of(arguments[0] if arguments else Any)
            hints = {**hints, "return": rows}
        return cls._of(tool, parameters, hints, IDEMPOTENCY_KEY in shape.parameters)

    @classmethod
    def of_types(cls, tool: str, types: Mapping[str, Any], returns: Any) -> ToolSignature:
        """The signature of a tool without a function: keyword arguments, all required."""
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
            for name, annotation in types.items()
        ]
        return cls._of(tool, parameters, {**types, "return": returns}, False)

    @classmethod
    def _of(
        cls,
        tool: str,
        parameters: Sequence[inspect.Parameter],
        hints: Mapping[str, Any],
        takes_idempotency_key: bool,
    ) -> ToolSignature:
        properties: dict[str, Any] = {}
        definitions: dict[str, Any] = {}
        required: list[str] = []
        adapters: dict[str, TypeAdapter[Any]] = {}
        for parameter in parameters:
            name, hint = parameter.name, hints.get(parameter.name, Any)
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise fault(f"tool {tool!r} has the parameter {parameter}", "Name every parameter")
            try:
                properties[name] = {} if is_unknown(hint) else json_schema(hint)
                # References of a recursive type are read from the root of the whole schema.
                definitions.update(properties[name].pop("$defs", {}))
                adapters[name] = TypeAdapter(hint)
            except TypeError as error:
                raise fault(
                    f"parameter {name!r} of tool {tool!r} has no JSON form ({error})",
                    "Annotate it with a JSON type or a pydantic model",
                ) from error
            if parameter.default is parameter.empty:
                required.append(name)
            elif isinstance(parameter.default, str | int | float | bool):
                properties[name] = {**properties[name], "default": parameter.default}
        returns = hints.get("return", Any)
        try:
            TypeAdapter(returns)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise fault(
                f"tool {tool!r} returns {returns!r}, which has no JSON form",
                "Return a JSON type or a pydantic model",
            ) from error
        schema: dict[str, Any] = {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
        }
        if required:
            schema["required"] = required
        if definitions:
            schema["$defs"] = definitions
        return cls(inspect.Signature(parameters), adapters, schema, returns, takes_idempotency_key)

    def bind(self, tool: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a traced call by name, plain ones checked and as JSON values.

        Plain defaults are filled in, so that leaving one out and writing it down are equal calls.
        Raises `WorkflowError` for a call that does not fit.
        """
        if IDEMPOTENCY_KEY in kwargs:
            raise fault(
                f"tool {tool!r} was called with {IDEMPOTENCY_KEY}=",
                "The runtime fills it in, the same for a repeated call",
            )
        try:
            bound = self.shape.bind(*args, **kwargs)
        except TypeError as error:
            raise fault(
                f"the call of tool {tool!r} does not fit it: {error}", f"It is {tool}{self.shape}"
            ) from None
        arguments = {n: self._json(tool, n, value) for n, value in bound.arguments.items()}
        for name, parameter in self.shape.parameters.items():
            if name not in arguments and isinstance(parameter.default, str | int | float | bool):
                arguments[name] = parameter.default
        return {name: arguments[name] for name in self.shape.parameters if name in arguments}

    def _json(self, tool: str, name: str, value: Any) -> Any:
        if _holds_lazy(value):
            return value
        adapter = self.adapters[name]
        try:
            converted = adapter.validate_python(value)
            return adapter.dump_python(converted, mode="json", by_alias=True)
        except (ValidationError, PydanticSerializationError) as error:
            raise fault(
                f"argument {name!r} of tool {tool!r} does not fit: {error}",
                f"It is {tool}{self.shape}",
            ) from None

    def adapt(self, tool: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` as the runtime calls it: JSON keyword arguments in, a JSON value out, or the
        rows of one that it yields.

        Raises `ToolError` when an argument or the result does not fit its annotation.
        """
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def rows(**arguments: Any) -> Iterator[Json]:
                args, kwargs = self._converted(tool, arguments)
                for row in function(*args, **kwargs):
                    yield self._json_of(tool, row, self._row_type)

            return rows
        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def rows_async(**arguments: Any) -> AsyncIterator[Json]:
                args, kwargs = self._converted(tool, arguments)
                async for row in function(*args, **kwargs):
                    yield self._json_of(tool, row, self._row_type)

            return rows_async
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(**arguments: Any) -> Json:
                args, kwargs = self._converted(tool, arguments)
                return self._json_of(tool, await function(*args, **kwargs), self.returns)

            return call_async

        @functools.wraps(function)
        def call(**arguments: Any) -> Json:
            args, kwargs = self._converted(tool, arguments)
            return self._json_of(tool, function(*args, **kwargs), self.returns)

        return call

    def _converted(
        self, tool: str, arguments: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, value in arguments.items():
            if name not in self.adapters:
                if name == IDEMPOTENCY_KEY and self.takes_idempotency_key:
                    kwargs[name] = value
                    continue
                have = ", ".join(self.adapters) or "none"
                raise ToolError(f"{tool}: no parameter {name!r}; it has: {have}", tool=tool)
            try:
                kwargs[name] = self.adapters[name].validate_python(value)
            except ValidationError as error:
                raise ToolError(f"{tool}: argument {name!r}: {error}", tool=tool) from error
        for name, parameter in self.shape.parameters.items():
            if parameter.kind is parameter.POSITIONAL_ONLY and name in kwargs:
                args.append(kwargs.pop(name))
            elif parameter.default is parameter.empty and name not in kwargs:
                raise ToolError(f"{tool}: argument {name!r} is missing", tool=tool)
        return args, kwargs

    @property
    def _row_type(self) -> Any:
        return element_type(self.returns)

    def _json_of(self, tool: str, value: Any, type_: Any) -> Json:
        """What a tool returned or yielded, as JSON of the declared type."""
        try:
            if is_unknown(type_):
                return cast("Json", to_jsonable_python(value, by_alias=True))
            adapter = TypeAdapter[Any](type_)
            checked = adapter.validate_python(value)
            return cast("Json", adapter.dump_python(checked, mode="json", by_alias=True))
        except (ValidationError, PydanticSerializationError) as error:
            raise ToolError(
                f"{tool} returned what its type does not allow: {error}", tool=tool
            ) from error


def yields_rows(function: Callable[..., Any]) -> bool:
    """Whether the function is a generator: its value is the list of what it yields."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _holds_lazy(value: Any) -> bool:
    if isinstance(value, str):
        return holds_marker(value) or any("\ufdd0" <= c <= "\ufdef" for c in value)
    if is_mapping(value):
        return any(_holds_lazy(each) for each in value.values())
    if is_sequence(value):
        return any(_holds_lazy(each) for each in value)
    if isinstance(value, BaseModel):
        return any(_holds_lazy(getattr(value, name)) for name in type(value).model_fields)
    return isinstance(value, Lazy)
