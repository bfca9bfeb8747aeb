"""Tool calls in a model's text, as the Hermes and Qwen templates ask for them:

    <tool_call>
    {"name": "search", "arguments": {"query": "rivers"}}
    </tool_call>

What is not a well-formed call stays text. Small models also write the bare JSON object, alone or in
a fence; that is taken for a call when it names an offered tool and is all there is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from typing import Any, cast

from runtime.backends.base import ToolCall

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


def split_tool_calls(
    text: str, offered: Collection[str], key: str
) -> tuple[str, tuple[ToolCall, ...]]:
    """The text around the calls, and the calls. Their ids follow from `key` and their number.

    Example:
        >>> text, (call,) = split_tool_calls(
        ...     'Looking. <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', ["f"], "k")
        >>> text, call.name, call.arguments_json
        ('Looking.', 'f', '{"x": 1}')
    """
    calls: list[ToolCall] = []
    rest: list[str] = []
    end = 0
    for match in _CALL.finditer(text):
        found = _call(match[1])
        if found is None:
            continue
        rest.append(text[end : match.start()])
        end = match.end()
        calls.append(ToolCall(_id(key, len(calls)), *found))
    rest.append(text[end:])
    if calls:
        return "".join(rest).strip(), tuple(calls)
    bare = _FENCE.fullmatch(text.strip())
    found = _call(bare[1] if bare else text)
    if found is not None and found[0] in offered:
        return "", (ToolCall(_id(key, 0), *found),)
    return text, ()


def _call(text: str) -> tuple[str, str] | None:
    """Name and arguments of one call's JSON; None when it is not one."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    call = cast("dict[str, Any]", value)
    name, arguments = call.get("name"), call.get("arguments", {})
    if not isinstance(name, str) or not name:
        return None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def _id(key: str, number: int) -> str:
    return f"call_{hashlib.sha256(f'{key}/{number}'.encode()).hexdigest()[:12]}"
