"""Anthropic messages: conversations, and logs of requests with their responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from halo.traces.build import (
    CallSequence,
    apply_counts,
    label_of,
    text_of,
    tool_call,
    tool_specs,
    turns_of_messages,
)
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.json_stream import stream_items
from halo.traces.record import Message, Trace
from halo.traces.source import Head, Source
from halo.traces.usage_fields import read_usage

NAME = "anthropic-messages"
_BLOCKS = ("tool_use", "tool_result", "thinking", "redacted_thinking")


def mismatch(head: Head) -> str:
    """Why this is no file of Anthropic messages; empty when it is one."""
    if not head.objects:
        return f"expected JSON objects, found {head.describe()}"
    first = head.objects[0]
    if as_dict(first.get("response")).get("type") == "message":
        return ""
    if not isinstance(first.get("messages"), list):
        return f"expected messages or a response of type message; found {head.describe()}"
    for each in head.objects:
        if isinstance(each.get("system"), str | list):
            return ""
        if any("input_schema" in as_dict(tool) for tool in as_list(each.get("tools"))):
            return ""
        for raw in as_list(each.get("messages")):
            for part in as_list(as_dict(raw).get("content")):
                if as_dict(part).get("type") in _BLOCKS:
                    return ""
    return "no system field, no input_schema and no content block of type tool_use or tool_result"


def is_splittable(head: Head) -> bool:
    """Conversations can be read apart; calls of a log belong together."""
    return bool(head.lines) and "messages" in head.lines[0]


def read(source: Source, head: Head) -> Iterator[Trace]:
    """The traces of a file."""
    if not head.lines:
        fields: dict[str, Any] = {}
        for kind, key, value in stream_items(source.path, source.problems):
            if kind == "field":
                fields[str(key)] = value
            else:
                yield conversation_of(as_dict(value), f"{source.name}#{key}")
        if fields:
            yield conversation_of(fields, source.name)
        return
    if "messages" in head.lines[0]:
        for number, line in source.objects():
            yield conversation_of(line, f"{source.name}:{number}")
        return
    trace: Trace | None = None
    sequence = CallSequence()
    for number, line in source.objects():
        request, response = as_dict(line.get("request")), as_dict(line.get("response"))
        if response.get("type") != "message":
            source.problems.add(f"{source.name}:{number}", "the response is no message")
            continue
        prompt = _system(request.get("system")) + messages_of(request.get("messages"))
        turn = sequence.add(prompt, assistant_of(as_list(response.get("content"))))
        if trace is None or turn.new_segment:
            if trace is not None:
                yield trace
            turn.new_segment = False
            trace = Trace(
                id=str(line.get("id") or response.get("id") or number),
                format=NAME,
                place=f"{source.name}:{number}",
                model=str(response.get("model") or ""),
                tools=tool_specs(request.get("tools")),
            )
        turn.model = str(response.get("model") or "")
        apply_counts(turn, read_usage(response.get("usage")), trace)
        trace.turns.append(turn)
    if trace is not None:
        yield trace


def conversation_of(fields: dict[str, Any], place: str) -> Trace:
    """The trace of one conversation object."""
    trace = Trace(
        id=str(fields.get("id") or place.rsplit("/", 1)[-1]),
        format=NAME,
        place=place,
        model=str(fields.get("model") or ""),
        tools=tool_specs(fields.get("tools")),
        expected=str(fields.get("expected") or ""),
    )
    trace.passed, trace.score = label_of(fields)
    raw = as_list(fields.get("messages"))
    messages = _system(fields.get("system")) + messages_of(raw)
    trace.turns, trace.trailing = turns_of_messages(messages)
    answers = [as_dict(each) for each in raw if as_dict(each).get("role") == "assistant"]
    usages = as_list(fields.get("usage")) or [each.get("usage") for each in answers]
    for turn, usage in zip(trace.turns, usages, strict=False):
        apply_counts(turn, read_usage(usage), trace)
    return trace


def _system(system: Any) -> list[Message]:
    return [Message("system", text_of(system))] if system else []


def messages_of(raw: Any) -> list[Message]:
    """Messages of a list. A user message with tool results becomes one message a result, and one
    for the text beside them."""
    found: list[Message] = []
    for each in as_list(raw):
        fields = as_dict(each)
        content = fields.get("content")
        if fields.get("role") == "assistant":
            blocks = as_list(content) or [{"type": "text", "text": text_of(content)}]
            found.append(assistant_of(blocks))
        elif fields.get("role") in ("user", "system"):
            found += user_messages(content, "user" if fields["role"] == "user" else "system")
    return found


def assistant_of(blocks: list[Any]) -> Message:
    """An assistant message of content blocks."""
    message = Message("assistant")
    for block in blocks:
        add_block(message, as_dict(block))
    return message


def add_block(message: Message, block: dict[str, Any]) -> None:
    """Add a content block to an assistant message."""
    kind = block.get("type")
    if kind == "text":
        message.text += ("\n" if message.text else "") + str(block.get("text") or "")
    elif kind == "thinking":
        thinking = str(block.get("thinking") or "")
        message.reasoning += thinking
        message.reasoning_hidden |= not thinking
    elif kind == "redacted_thinking":
        message.reasoning_hidden = True
    elif kind in ("tool_use", "server_tool_use"):
        message.calls.append(
            tool_call(str(block.get("id") or ""), str(block.get("name") or ""), block.get("input"))
        )


def user_messages(content: Any, role: str = "user") -> list[Message]:
    """Tool results and text of a user message's content."""
    if not isinstance(content, list):
        return [Message("system" if role == "system" else "user", text_of(content))]
    found: list[Message] = []
    texts: list[Any] = []
    for raw in as_list(content):
        block = as_dict(raw)
        if block.get("type") == "tool_result":
            error = block.get("is_error")
            found.append(
                Message(
                    "tool",
                    text_of(block.get("content")),
                    call_id=str(block.get("tool_use_id") or ""),
                    is_error=error if isinstance(error, bool) else None,
                )
            )
        else:
            texts.append(raw)
    text = text_of(texts)
    if text or not found:
        found.append(Message("system" if role == "system" else "user", text))
    return found
