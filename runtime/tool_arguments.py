"""The check of arguments against a tool's JSON Schema, before the tool runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.logical import Json
from runtime.errors import ToolError
from runtime.json_schema import SchemaError, schema_validator
from runtime.tools import ToolSpec

_MAX_PROBLEMS, _MAX_PROBLEM_CHARS = 5, 300


class ArgumentChecker:
    """Checks arguments of tools. A schema is compiled once."""

    def __init__(self) -> None:
        self._validators: dict[str, Any] = {}

    def check(self, spec: ToolSpec, arguments: Mapping[str, Json]) -> None:
        """Raise `ToolError` that says which arguments do not fit."""
        validator = self._validators.get(spec.name)
        if validator is None:
            validator = self._validators[spec.name] = _compile(spec)
        problems: list[str] = []
        for problem in validator.iter_errors(dict(arguments)):
            where = "/".join(str(part) for part in problem.instance_path)
            # A message repeats the value, which may be a whole document.
            message = str(problem.message)
            if len(message) > _MAX_PROBLEM_CHARS:
                half = _MAX_PROBLEM_CHARS // 2
                message = f"{message[:half]} ... {message[-half:]}"
            problems.append(f"{where}: {message}" if where else message)
            if len(problems) == _MAX_PROBLEMS:
                break
        if problems:
            raise ToolError(
                f"the arguments of tool {spec.name!r} do not fit: {'; '.join(problems)}",
                tool=spec.name,
            )


def _compile(spec: ToolSpec) -> Any:
    try:
        return schema_validator(spec.parameters)
    except SchemaError as error:
        raise ToolError(
            f"the parameters of tool {spec.name!r} are no JSON Schema: {error}", tool=spec.name
        ) from error
