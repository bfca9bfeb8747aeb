"""Tool format collapse: calls that no runtime can carry out as they are written."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, cast

from halo.trace_report.finding import Finding, Thresholds, Verdict, quote
from halo.trace_report.hints import Hints
from halo.trace_report.tool_families import family_of
from halo.trace_report.view import CallAt, View
from halo.traces.record import ToolSpec
from runtime.json_schema import schema_validator

NAME = "format_collapse"
_SYNTAX = re.compile(
    r"</?tool_calls?>|<function=\w+|<invoke name=|\[TOOL_CALLS\]|<\|tool_call\|>|"
    r"<\|python_tag\|>|```tool_code|✿FUNCTION✿|"
    r"\{\s*\"name\"\s*:\s*\"[\w.-]+\"\s*,\s*\"(?:arguments|parameters)\"\s*:"
)
_FENCE = re.compile(r"```(?:python|py|bash|sh)\n")
_REFUSED = re.compile(
    r"unknown (?:tool|function|action)|"
    r"(?:tool|function) [`'\"]?[\w.-]+[`'\"]? (?:is )?not (?:found|registered|"
    r"available|defined)|no (?:such )?tool (?:named|called)|there is no tool|"
    r"not a valid tool|does not exist in the tool|No such tool available|is not a recognized tool|"
    r"(?:invalid|failed to parse|could not parse|cannot parse)[\w ]*(?:arguments|tool call|json)|"
    r"InputValidationError|the arguments of \w+ cannot be used",
    re.IGNORECASE,
)

_REFUSED_HINTS = Hints("tool", "function", "action", "argument", "json", "inputvalidation")


def find(view: View, thresholds: Thresholds) -> Verdict:
    """One malformed call is a slip, two are a collapse. Without a list of declared tools only
    arguments that do not parse, call syntax left in the text, and refusals are seen."""
    trace = view.trace
    if not trace.has_content and not any(turn.output.calls for turn in trace.turns):
        return Verdict(NAME, "unknown", reason="the trace has no texts and no calls")
    declared = {tool.name: tool for tool in trace.tools or ()}
    validators = {
        name: (tool.schema, _validator(json.dumps(tool.schema)))
        for name, tool in declared.items()
        if tool.schema
    }
    broken: dict[int, list[tuple[str, int, int, str, float, str]]] = {}
    for each in view.calls:
        problem = _call_problem(each, declared, validators)
        if problem:
            text = each.call.arguments_text
            shown = quote(f"{each.name} {text}")
            broken.setdefault(each.turn, []).append(("call", 0, len(text), shown, *problem))
    for place, turn in enumerate(trace.turns):
        if turn.output.calls and not turn.dropped_output:
            continue
        found = _left_in_text(view, place, declared)
        if found:
            broken.setdefault(place, []).append(found)
    count = sum(len(each) for each in broken.values())
    label = "collapse" if count > 1 else "slip"
    findings = [
        Finding(
            place, where, start, end, shown, confidence,
            view.costs[place].value / len(items), label, why,
        )
        for place, items in sorted(broken.items())
        for where, start, end, shown, confidence, why in items
    ]  # fmt: skip
    return Verdict(NAME, "fired" if findings else "clear", tuple(findings), bool(findings))


def _call_problem(
    each: CallAt,
    declared: dict[str, ToolSpec],
    validators: dict[str, tuple[dict[str, Any], Any]],
) -> tuple[float, str] | None:
    call = each.call
    if call.problem:
        return 0.95, f"the arguments do not parse: {call.problem[:100]}"
    if declared:
        tool = declared.get(call.name)
        if tool is None:
            return 0.9, f"no tool {call.name!r} is declared"
        if call.name in validators:
            wrong = _schema_problem(*validators[call.name], call.arguments)
            if wrong:
                return 0.9, wrong
    if each.answer is not None and len(each.answer.text) < 2000:
        match = None
        if _REFUSED_HINTS.any_in(each.answer.text):
            match = _REFUSED.search(each.answer.text)
        if match:
            return 0.7, f"the tool refused it: {match.group()}"
    return None


def _schema_problem(schema: dict[str, Any], validator: Any, arguments: Any) -> str:
    """What of the arguments breaks the declared schema; empty when nothing does, when the schema
    itself is wrong, or when the arguments are nested too deeply for the validator."""
    properties = schema.get("properties")
    if isinstance(arguments, dict) and isinstance(properties, dict) and properties:
        names = cast("dict[str, Any]", arguments)
        if "additionalProperties" not in schema and "patternProperties" not in schema:
            unknown = [name for name in names if name not in properties]
            if unknown:
                return f"unknown argument {str(unknown[0])[:60]!r}"
    try:
        if validator is None or validator.is_valid(arguments):
            return ""
        error = next(iter(validator.iter_errors(arguments)))
    except ValueError:
        return ""
    return f"breaks the schema: {str(error.message)[:120]}"


@lru_cache(maxsize=512)
def _validator(schema: str) -> Any:
    try:
        return schema_validator(json.loads(schema))
    except ValueError:
        return None


def _left_in_text(
    view: View, place: int, declared: dict[str, ToolSpec]
) -> tuple[str, int, int, str, float, str] | None:
    """Call syntax in plain text of a turn that made no call."""
    turn = view.trace.turns[place]
    text = turn.output.text
    if turn.dropped_output:
        return ("output", 0, len(text), quote(text), 0.9, "the runtime could not read the answer")
    match = _SYNTAX.search(text)
    if match:
        return (
            "output", match.start(), match.end(), quote(text, match.start()), 0.85,
            "call syntax is left in the text, and no call was made",
        )  # fmt: skip
    # A fenced program is a call gone wrong only where a tool runs such programs, and the
    # conversation had to go on without its result.
    runs = any(family_of(name) in ("compute", "shell") for name in declared)
    goes_on = place + 1 < len(view.trace.turns)
    if runs and goes_on and text.rstrip().endswith("```"):
        fence = _FENCE.search(text)
        if fence:
            return (
                "output", fence.start(), fence.end(), quote(text, fence.start()), 0.6,
                "a program is fenced in the text instead of being given to its tool",
            )  # fmt: skip
    return None
