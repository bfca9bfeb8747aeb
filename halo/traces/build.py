"""From messages or calls to turns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

from halo.traces.json_shapes import is_list
from halo.traces.record import Message, ToolCall, ToolSpec, Trace, Turn
from halo.traces.usage_fields import Counts


def turns_of_messages(messages: Iterable[Message]) -> tuple[list[Turn], list[Message]]:
    """Turns of a conversation, in which each assistant message is one model call, and the messages
    after the last."""
    turns: list[Turn] = []
    pending: list[Message] = []
    for message in messages:
        if message.role == "assistant":
            turns.append(Turn(pending, message))
            pending = []
        else:
            pending.append(message)
    return turns, pending


class CallSequence:
    """Turns from calls that repeat their whole prompt each time."""

    def __init__(self) -> None:
        self._prompt: list[int] = []

    def add(self, prompt: Sequence[Message], output: Message) -> Turn:
        """The turn of a call: its new messages, or all of them as a new segment when the prompt
        does not continue the last one."""
        digests = [digest(message) for message in prompt]
        before = self._prompt
        self._prompt = digests
        known = len(before)
        if before and len(digests) > known and digests[:known] == before:
            start = known
            if prompt[start].role == "assistant":
                start += 1  # the last answer, however it is written there
            return Turn(list(prompt[start:]), output)
        return Turn(list(prompt), output, new_segment=bool(before))


def digest(message: Message) -> int:
    """A hash that equal messages share, within this process."""
    calls = tuple((call.name, call.arguments_text) for call in message.calls)
    return hash((message.role, message.text, calls, message.call_id))


def apply_counts(turn: Turn, counts: Counts, trace: Trace) -> None:
    """Put reported counts on a turn."""
    for note in counts.notes:
        trace.note(note)
    if counts.prompt is not None:
        turn.prompt_tokens, turn.prompt_origin = counts.prompt, "reported"
    if counts.completion is not None:
        turn.completion_tokens, turn.completion_origin = counts.completion, "reported"
    turn.cached_tokens = counts.cached
    turn.cache_write_tokens = counts.cache_write
    turn.reasoning_tokens = counts.reasoning


def settle_cached_tokens(trace: Trace) -> None:
    """Servers may leave the field out where nothing was cached. Where another call to the same
    model has it above zero, a missing one is 0; where none has, it stays unknown. Halo's own
    journal says what it does not know."""
    if trace.format == "halo-run":
        return
    counted = [turn for turn in trace.turns if turn.prompt_origin == "reported"]
    telling = {turn.model for turn in counted if turn.cached_tokens}
    for turn in counted:
        if turn.cached_tokens is None and turn.model in telling:
            turn.cached_tokens = 0


def tool_call(id: str, name: str, arguments: Any) -> ToolCall:
    """A call; `arguments` is its raw text, or an object."""
    if not isinstance(arguments, str):
        text = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
        return ToolCall(id, name, text, {} if arguments is None else arguments)
    if not arguments.strip():
        return ToolCall(id, name, arguments, {})
    try:
        return ToolCall(id, name, arguments, json.loads(arguments))
    except (ValueError, RecursionError) as error:
        return ToolCall(id, name, arguments, None, str(error))


def text_of(content: Any) -> str:
    """Text of a content field: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if is_list(content):
        return "\n".join(text for part in content if (text := _part_text(part)))
    if content is None:
        return ""
    return json.dumps(content, ensure_ascii=False)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        fields = cast("dict[str, Any]", part)
        for key in ("text", "output_text", "input_text"):
            if isinstance(fields.get(key), str):
                return str(fields[key])
        kind = fields.get("type")
        if kind in ("image", "image_url", "input_audio", "audio", "file", "document", "video"):
            return f"[{kind}]"
        if "content" in fields:
            return text_of(fields["content"])
    return ""


def tool_specs(tools: Any) -> list[ToolSpec] | None:
    """Declared tools of an OpenAI, Anthropic or plain list; None when there is none."""
    if not is_list(tools):
        return None
    specs: list[ToolSpec] = []
    for tool in tools:
        if isinstance(tool, str):
            specs.append(ToolSpec(tool))
            continue
        if not isinstance(tool, dict):
            continue
        fields = cast("dict[str, Any]", tool)
        inner = fields.get("function")
        if isinstance(inner, dict):
            fields = cast("dict[str, Any]", inner)
        schema = fields.get("parameters", fields.get("input_schema", fields.get("inputSchema")))
        specs.append(
            ToolSpec(
                str(fields.get("name", "")),
                cast("dict[str, Any]", schema) if isinstance(schema, dict) else None,
                str(fields.get("description") or ""),
            )
        )
    return specs


def label_of(fields: dict[str, Any]) -> tuple[bool | None, float | None]:
    """(passed, score) of the fields that commonly say so."""
    for key in ("success", "passed", "correct", "is_correct", "resolved"):
        if isinstance(fields.get(key), bool):
            return fields[key], None
    for key in ("reward", "score"):
        value = fields.get(key)
        if isinstance(value, bool):
            return value, None
        if isinstance(value, int | float):
            return value >= 1.0 - 1e-6, float(value)
    return None, None


def check_pairs(trace: Trace) -> None:
    """Note tool answers without a call, which some logs lose. Ids may repeat within a run, so an
    answer is matched with the latest open call of its id."""
    open_calls: dict[str, int] = {}
    orphans = 0
    for turn in trace.turns:
        for message in turn.inputs:
            orphans += _take(message, open_calls)
        for call in turn.output.calls:
            open_calls[call.id] = open_calls.get(call.id, 0) + 1
    for message in trace.trailing:
        orphans += _take(message, open_calls)
    if orphans:
        trace.note(f"{orphans} tool answers without a call in the trace")


def _take(message: Message, open_calls: dict[str, int]) -> int:
    if message.role != "tool":
        return 0
    if open_calls.get(message.call_id):
        open_calls[message.call_id] -= 1
        return 0
    return 1
