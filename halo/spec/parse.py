"""Documents as validated specs; every error names file, line and field."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from halo.errors import WorkflowError
from halo.spec.document import Document, Path_
from halo.spec.schema import HttpTool, PythonTool, Spec
from halo.spec.steps import MARK, STEPS, AgentCall, Block, LoopFields

MAX_ERRORS = 10

_TAGS: Mapping[str, type[BaseModel]] = {
    **{f"{MARK}{kind}": cls for kind, cls in STEPS.items()},
    f"{MARK}block": Block,
    f"{MARK}python": PythonTool,
    f"{MARK}http": HttpTool,
}
_NESTED: Mapping[str, type[BaseModel]] = {"agent": AgentCall, "loop": LoopFields}
_WORDLESS = {f"{MARK}unknown", f"{MARK}test"}
_EXPECTED = {
    "int_type": "expected an integer",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "dict_type": "expected a mapping",
    "list_type": "expected a list",
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
}


def parse_spec(document: Document) -> Spec:
    """The document as a `Spec`. Raises `WorkflowError` with one line for each thing that is wrong,
    at most `MAX_ERRORS`, in the order of the file."""
    given: object = document.value
    if not isinstance(given, dict):
        raise document.error((), "expected a mapping with `steps:`, as a workflow has")
    try:
        return Spec.model_validate(given)
    except ValidationError as error:
        found = [_located(document, cast("Mapping[str, Any]", e)) for e in error.errors()]
    lines = dict.fromkeys(message for _, message in sorted(found))
    shown = list(lines)[:MAX_ERRORS]
    if len(lines) > len(shown):
        shown.append(f"... and {len(lines) - len(shown)} more")
    raise WorkflowError("\n".join(shown))


def _located(document: Document, error: Mapping[str, Any]) -> tuple[int, str]:
    context = cast("Mapping[str, Any]", error.get("ctx") or {})
    path, model = _path(error["loc"])
    if context.get("field"):
        path = (*path, context["field"])
    before = cast("str | None", context.get("before") or None)
    problem = _problem(error, path, model, context)
    return document.line(path, before), document.message(path, problem, before)


def _path(loc: tuple[Any, ...]) -> tuple[Path_, type[BaseModel]]:
    """The path in the document, without pydantic's own parts, and the innermost model on it."""
    path: list[str | int] = []
    model: type[BaseModel] = Spec
    for part in loc:
        if part in _TAGS:
            model = _TAGS[part]
        elif part == "[key]":
            break
        elif part not in _WORDLESS:
            model = _NESTED.get(str(part), model) if path else model
            path.append(part)
    return tuple(path), model


def _problem(
    error: Mapping[str, Any], path: Path_, model: type[BaseModel], context: Mapping[str, Any]
) -> str:
    kind = str(error["type"])
    if kind == "halo":
        return str(context["problem"])
    if kind == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        near = get_close_matches(str(path[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the fields are: {', '.join(known)}"
        return f"unknown field; {hint}"
    if kind == "missing":
        return "missing"
    if kind == "too_short" and path and path[-1] == "choose":
        return f"a choice needs at least two options, got {context['actual_length']}"
    if kind in ("too_short", "too_long"):
        return "expected at least one entry"
    given = error.get("input")
    shown = "nothing" if given is None else f"{given!r:.60}"
    if kind in _EXPECTED:
        return f"{_EXPECTED[kind]}, got {shown}"
    message = str(error["msg"]).removeprefix("Input ").removeprefix("Value error, ")
    return f"{message}, got {shown}"
