"""Tool calls in a model's text, in the forms that open models are trained to write.

Engines that return plain text (no tool-call parser of their own) are read here. What is not clearly
a call of an offered tool stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, cast

from runtime.backends.base import ToolCall, ToolSchema

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
_PREFIXES = ("<|python_tag|>", "[TOOL_CALLS]")


def read_tool_calls(
    text: str, tools: Sequence[ToolSchema], id_prefix: str
) -> tuple[str, tuple[ToolCall, ...]]:
    """The text without its calls, and the calls: `<tool_call>` blocks, or an answer that is as a
    whole a JSON object (or list) with a name and arguments.

    Example:
        >>> tool = ToolSchema("add", "", "{}")
        >>> read_tool_calls('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
        ...                 [tool], "c")
        ('', (ToolCall(id='c-0', name='add', arguments_json='{"a": 1}'),))
    """
    names = {tool.name for tool in tools}
    tagged = _TAGGED.findall(text)
    if tagged:
        found = [c for block in tagged for c in _calls(block, names)]
        if found:
            return _TAGGED.sub("", text).strip(), _numbered(found, id_prefix)
        return text, ()
    body = text.strip()
    for prefix in _PREFIXES:
        body = body.removeprefix(prefix).strip()
    found = _calls(body, names)
    return ("", _numbered(found, id_prefix)) if found else (text, ())


def _calls(text: str, names: set[str]) -> list[tuple[str, str]]:
    if not text.startswith(("{", "[")):
        return []
    try:
        value: Any = json.loads(text)
    except ValueError:
        return []
    items: list[object] = [value]
    if isinstance(value, list):
        items = cast("list[object]", value)
    calls: list[tuple[str, str]] = []
    for item in items:
        if not isinstance(item, dict):
            return []
        fields = cast("dict[str, Any]", item)
        name = fields.get("name")
        arguments = fields.get("arguments", fields.get("parameters"))
        if not isinstance(name, str) or name not in names or arguments is None:
            return []
        calls.append((name, arguments if isinstance(arguments, str) else json.dumps(arguments)))
    return calls


def _numbered(calls: list[tuple[str, str]], prefix: str) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(f"{prefix}-{i}", name, args) for i, (name, args) in enumerate(calls))
