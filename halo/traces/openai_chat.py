"""OpenAI chat traces: conversations, logs of calls, batch output and flat messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from costmodel.tokens import estimate_tokens
from halo.traces.build import (
    CallSequence,
    apply_counts,
    digest,
    label_of,
    tool_specs,
    turns_of_messages,
)
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.json_stream import stream_items
from halo.traces.openai_messages import openai_message, openai_messages
from halo.traces.record import Message, Trace
from halo.traces.source import Head, Source
from halo.traces.usage_fields import read_usage

NAME = "openai-chat"
_OPEN_CONVERSATIONS = 2000


def mismatch(head: Head) -> str:
    """Why this is no OpenAI chat file; empty when it is one."""
    objects = head.objects
    if not objects:
        return f"expected JSON objects, found {head.describe()}"
    first = objects[0]
    kind = _kind(first, isinstance(head.document, list))
    if kind is None:
        return (
            "expected messages, request and response, or role and conversation_id; found "
            f"{head.describe()}"
        )
    if kind == "conversation":
        for raw in as_list(first.get("messages")):
            fields = as_dict(raw)
            if fields and "role" not in fields:
                return "messages[0] has no role"
            for part in as_list(fields.get("content")):
                if as_dict(part).get("type") in ("tool_use", "tool_result"):
                    return "content blocks of type tool_use or tool_result are Anthropic's"
    if kind == "calls":
        response = _body(first)
        if response.get("type") == "message":
            return "the response is an Anthropic message"
        if "choices" not in response:
            return "response has no choices"
    return ""


def _kind(first: dict[str, Any], is_list: bool = False) -> str | None:
    if isinstance(first.get("messages"), list):
        if "trajectory_format" in first or "sessionId" in first or "simulations" in first:
            return None
        if isinstance(first.get("info"), dict) and "model_stats" in first["info"]:
            return None
        return "conversation"
    if isinstance(first.get("response"), dict) and ("request" in first or "custom_id" in first):
        return "calls"
    if "role" in first and ("content" in first or "tool_calls" in first) and is_list:
        return "messages"
    if "role" in first and any(key in first for key in ("conversation_id", "trace_id")):
        return "flat"
    return None


def is_splittable(head: Head) -> bool:
    """Whether lines can be read apart: conversations can, calls and flat messages belong
    together."""
    return bool(head.lines) and _kind(head.lines[0]) == "conversation"


def read(source: Source, head: Head) -> Iterator[Trace]:
    """The traces of a file."""
    kind = _kind(head.lines[0]) if head.lines else None
    if kind == "calls":
        yield from _call_log(source)
    elif kind == "flat":
        yield from _flat(source)
    elif kind is None:
        yield from _document(source)
    else:
        for number, line in source.objects():
            place = f"{source.name}:{number}"
            if "messages" not in line:
                source.problems.add(place, "no messages")
                continue
            yield conversation(line, place)


def _document(source: Source) -> Iterator[Trace]:
    """One JSON document: a conversation, a list of conversations, or a list of messages."""
    fields: dict[str, Any] = {}
    messages: list[Any] = []
    for kind, key, value in stream_items(source.path, source.problems):
        if kind == "field":
            fields[str(key)] = value
        elif "messages" in as_dict(value):
            yield conversation(as_dict(value), f"{source.name}#{key}")
        else:
            messages.append(value)
    if messages:
        fields["messages"] = messages
    if "messages" in fields:
        yield conversation(fields, source.name)


def conversation(fields: dict[str, Any], place: str) -> Trace:
    """The trace of one conversation object."""
    trace = Trace(
        id=str(fields.get("id") or fields.get("conversation_id") or place.rsplit("/", 1)[-1]),
        format=NAME,
        place=place,
        model=str(fields.get("model") or ""),
        tools=tool_specs(fields.get("tools")),
        expected=str(fields.get("expected") or fields.get("target") or ""),
    )
    trace.passed, trace.score = label_of(fields)
    raw = as_list(fields.get("messages"))
    trace.turns, trace.trailing = turns_of_messages(openai_messages(raw))
    usages = as_list(fields.get("usage"))
    if usages:
        if len(usages) != len(trace.turns):
            trace.note(f"{len(usages)} usage entries for {len(trace.turns)} model calls")
        for turn, usage in zip(trace.turns, usages, strict=False):
            apply_counts(turn, read_usage(usage), trace)
    else:
        _usage_on_messages(raw, trace)
        total = read_usage(fields.get("usage"))
        if len(trace.turns) == 1 and trace.turns[0].prompt_origin == "unknown":
            apply_counts(trace.turns[0], total, trace)
        elif (
            trace.turns
            and total.completion is not None
            and trace.turns[0].completion_tokens is None
        ):
            scale_completions(trace, total.completion)
    return trace


def _usage_on_messages(raw: list[Any], trace: Trace) -> None:
    assistants = (as_dict(each) for each in raw if as_dict(each).get("role") == "assistant")
    for turn, fields in zip(trace.turns, assistants, strict=False):
        if "usage" in fields:
            apply_counts(turn, read_usage(fields["usage"]), trace)
        turn.model = str(fields.get("model") or "")


def scale_completions(trace: Trace, total: int) -> None:
    """Share a total of completion tokens among turns that have no counts of their own."""
    sizes = [
        max(
            1,
            estimate_tokens(turn.output.text)
            + estimate_tokens(turn.output.reasoning)
            + sum(estimate_tokens(call.name + call.arguments_text) for call in turn.output.calls),
        )
        for turn in trace.turns
    ]
    for turn, size in zip(trace.turns, sizes, strict=True):
        turn.completion_tokens = max(1, round(total * size / sum(sizes)))
        turn.completion_origin = "scaled"


def _body(line: dict[str, Any]) -> dict[str, Any]:
    response = as_dict(line.get("response"))
    return as_dict(response.get("body")) or response


def _call_log(source: Source) -> Iterator[Trace]:
    """Calls with their whole prompts: one continues another when its prompt begins with that
    one's prompt and answer. Conversations that went quiet long ago are given out first."""
    open_traces: dict[int, tuple[Trace, CallSequence]] = {}
    for number, line in source.objects():
        place = f"{source.name}:{number}"
        body, request = _body(line), as_dict(line.get("request"))
        request = as_dict(request.get("body")) or request
        choices = as_list(body.get("choices"))
        output = openai_message(as_dict(choices[0]).get("message")) if choices else None
        if output is None:
            source.problems.add(place, "the response has no choices with a message")
            continue
        prompt = openai_messages(request.get("messages"))
        keys = _prefix_keys(prompt)
        found = next(
            (open_traces.pop(key) for key in reversed(keys[:-1]) if key in open_traces), None
        )
        if found is None:
            trace = Trace(
                id=str(line.get("custom_id") or line.get("id") or body.get("id") or number),
                format=NAME,
                place=place,
                model=str(body.get("model") or request.get("model") or ""),
                tools=tool_specs(request.get("tools")),
                has_content=bool(prompt),
            )
            sequence = CallSequence()
        else:
            trace, sequence = found
        turn = sequence.add(prompt, output)
        turn.model = str(body.get("model") or request.get("model") or "")
        apply_counts(turn, read_usage(body.get("usage")), trace)
        start, end = line.get("start"), line.get("end")
        turn.start_s = float(start) if isinstance(start, int | float) else None
        turn.end_s = float(end) if isinstance(end, int | float) else None
        trace.turns.append(turn)
        passed, score = label_of(line)
        if passed is not None:
            trace.passed, trace.score = passed, score
        key = keys[-1] if keys else number
        if key in open_traces:
            yield open_traces.pop(key)[0]
        open_traces[key] = (trace, sequence)
        if len(open_traces) > _OPEN_CONVERSATIONS:
            yield open_traces.pop(next(iter(open_traces)))[0]
    for trace, _ in open_traces.values():
        yield trace


def _prefix_keys(prompt: list[Message]) -> list[int]:
    """A key of every leading part of a prompt."""
    keys: list[int] = []
    key = 0
    for message in prompt:
        key = hash((key, digest(message)))
        keys.append(key)
    return keys


def _flat(source: Source) -> Iterator[Trace]:
    """Messages one a line, conversations mixed: a first pass finds the last line of each, so that
    a conversation is given out, and forgotten, as soon as it is whole."""
    last: dict[str, int] = {}
    for number, line in source.objects():
        last[_conversation_id(line)] = number
    source.problems.count, source.problems.kept = 0, []  # the second pass finds them again
    collected: dict[str, list[dict[str, Any]]] = {}
    for number, line in source.objects():
        id = _conversation_id(line)
        collected.setdefault(id, []).append(line)
        if last[id] == number:
            lines = collected.pop(id)
            fields: dict[str, Any] = {"id": id, "messages": lines}
            for each in lines:
                fields.update(
                    {
                        key: each[key]
                        for key in ("model", "tools", "reward", "success")
                        if key in each
                    }
                )
            yield conversation(fields, f"{source.name}:{number}")


def _conversation_id(line: dict[str, Any]) -> str:
    return str(line.get("conversation_id") or line.get("trace_id") or "")
