"""OpenAI chat messages as messages of a trace; several formats carry them."""

from __future__ import annotations

from typing import Any

from halo.traces.build import text_of, tool_call
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.record import Message

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def openai_message(raw: Any) -> Message | None:
    """A message, or None for what is none."""
    fields = as_dict(raw)
    role = fields.get("role")
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        return None
    content = fields.get("content")
    text = content if isinstance(content, str) else text_of(content)
    if known == "assistant":
        message = Message("assistant", text)
        reasoning = fields.get("reasoning_content") or fields.get("reasoning")
        if isinstance(reasoning, str):
            message.reasoning = reasoning
        for part in as_list(content):
            kind = as_dict(part)
            if kind.get("type") in ("thinking", "reasoning"):
                shown = kind.get("thinking") or kind.get("reasoning") or ""
                message.reasoning += shown if isinstance(shown, str) else ""
        for call in as_list(fields.get("tool_calls")):
            outer = as_dict(call)
            inner = as_dict(outer.get("function")) or outer
            message.calls.append(
                tool_call(
                    str(outer.get("id") or ""), str(inner.get("name") or ""), inner.get("arguments")
                )
            )
        old = as_dict(fields.get("function_call"))
        if old.get("name"):
            message.calls.append(tool_call("", str(old["name"]), old.get("arguments")))
        return message
    if known == "tool":
        error = fields.get("is_error")
        return Message(
            "tool",
            text,
            call_id=str(fields.get("tool_call_id") or ""),
            tool_name=str(fields.get("name") or ""),
            is_error=error if isinstance(error, bool) else None,
        )
    return Message("system" if known == "system" else "user", text)


def openai_messages(raw: Any) -> list[Message]:
    """The messages of a list."""
    return [message for each in as_list(raw) if (message := openai_message(each)) is not None]
