"""What templates see of a conversation: its turns and tools as the objects of the usual chat
format, every text of them guarded first, so that none can become a control token."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from runtime.backends.base import Message, ToolSchema

Guard = Callable[[str], str]
"""Makes a text of the data harmless."""


def turn_of(message: Message, content: str, guard: Guard) -> dict[str, Any]:
    """A turn with `content`, which is guarded already or stands for the message's own."""
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.name:
        turn["name"] = guard(message.name)
    if message.tool_call_id:
        turn["tool_call_id"] = guard(message.tool_call_id)
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": guard(call.id),
                "type": "function",
                "function": {
                    "name": guard(call.name),
                    "arguments": _arguments(call.arguments_json, guard),
                },
            }
            for call in message.tool_calls
        ]
    return turn


def offer_of(tool: ToolSchema, guard: Guard) -> dict[str, Any]:
    """A tool that the model may call."""
    return {
        "type": "function",
        "function": {
            "name": guard(tool.name),
            "description": guard(tool.description),
            "parameters": guarded(json.loads(tool.parameters_json), guard),
        },
    }


def guarded(value: Any, guard: Guard) -> Any:
    """A JSON value with its texts guarded, names of members too."""
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, list):
        return [guarded(each, guard) for each in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {guard(str(k)): guarded(v, guard) for k, v in value.items()}  # pyright: ignore
    return value


def _arguments(text: str, guard: Guard) -> Any:
    """A call's arguments as an object, so that templates print them as JSON; as text if they are
    no JSON. They are guarded after parsing: JSON can spell a control token with escapes."""
    try:
        return guarded(json.loads(text), guard) if text.strip() else {}
    except ValueError:
        return guard(text)
