"""OTLP JSON with `gen_ai.*` spans (and OpenInference's): a trace id is a trajectory.

Lines are unordered. A first pass finds the last line of every trace id, so that each trace is given
out, and forgotten, when its last span has been read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from halo.traces import gen_ai_names as names
from halo.traces.build import CallSequence, apply_counts, text_of, tool_call, tool_specs
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.json_stream import stream_items
from halo.traces.record import Message, ToolCall, Trace, Turn
from halo.traces.source import Head, Source
from halo.traces.usage_fields import Counts, count

NAME = "otlp"


@dataclass(slots=True)
class _Span:
    trace_id: str
    id: str
    parent: str
    name: str
    start_s: float | None
    end_s: float | None
    attributes: dict[str, Any]
    error: bool
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def get(self, keys: Iterable[str]) -> Any:
        """The first of these attributes that the span has."""
        for key in keys:
            if key in self.attributes:
                return self.attributes[key]
        return None

    @property
    def is_model_call(self) -> bool:
        operation = self.get(names.OPERATION)
        if operation is not None:
            return bool(operation in names.MODEL_OPERATIONS)
        return self.get(names.SPAN_KIND) == "LLM" or self.get(names.INPUT_TOKENS) is not None

    @property
    def is_tool_call(self) -> bool:
        kind: str | None = self.get(names.SPAN_KIND)
        return self.get(names.OPERATION) == "execute_tool" or kind == "TOOL"

    @property
    def is_agent(self) -> bool:
        kind: str | None = self.get(names.SPAN_KIND)
        return self.get(names.OPERATION) == "invoke_agent" or kind == "AGENT"


def mismatch(head: Head) -> str:
    """Why this is no OTLP JSON; empty when it is."""
    if not head.objects:
        return f"expected JSON objects, found {head.describe()}"
    if not any("resourceSpans" in each for each in head.objects):
        return "no resourceSpans"
    return ""


def is_splittable(head: Head) -> bool:
    """Spans of a trace may be on any line."""
    return False


def read(source: Source, head: Head) -> Iterator[Trace]:
    """The traces of a file that have model calls."""
    if not head.lines:
        spans: dict[str, list[_Span]] = {}
        for kind, _, value in stream_items(source.path, source.problems, "resourceSpans"):
            if kind == "item":
                for span in _resource_spans(value):
                    spans.setdefault(span.trace_id, []).append(span)
        for id, found in spans.items():
            yield from _traces(id, found, source.name)
        return
    last: dict[str, int] = {}
    for number, line in source.objects():
        for span in _spans(line):
            last[span.trace_id] = number
    source.problems.count, source.problems.kept = 0, []  # the second pass finds them again
    ends: dict[int, list[str]] = {}
    for id, number in last.items():
        ends.setdefault(number, []).append(id)
    open_traces: dict[str, list[_Span]] = {}
    for number, line in source.objects():
        if "resourceSpans" not in line:
            source.problems.add(f"{source.name}:{number}", "no resourceSpans")
        for span in _spans(line):
            open_traces.setdefault(span.trace_id, []).append(span)
        for id in ends.get(number, ()):
            yield from _traces(id, open_traces.pop(id), f"{source.name}:{number}")


def _spans(line: dict[str, Any]) -> Iterator[_Span]:
    for resource in as_list(line.get("resourceSpans")):
        yield from _resource_spans(resource)


def _resource_spans(resource: Any) -> Iterator[_Span]:
    for scope in as_list(as_dict(resource).get("scopeSpans")):
        for raw in as_list(as_dict(scope).get("spans")):
            span = as_dict(raw)
            yield _Span(
                trace_id=str(span.get("traceId") or ""),
                id=str(span.get("spanId") or ""),
                parent=str(span.get("parentSpanId") or ""),
                name=str(span.get("name") or ""),
                start_s=_nanoseconds(span.get("startTimeUnixNano")),
                end_s=_nanoseconds(span.get("endTimeUnixNano")),
                attributes=_attributes(span.get("attributes")),
                error=as_dict(span.get("status")).get("code") in (2, "STATUS_CODE_ERROR"),
                events=[as_dict(each) for each in as_list(span.get("events"))],
            )


def _nanoseconds(value: Any) -> float | None:
    try:
        return int(value) / 1e9
    except (TypeError, ValueError):
        return None


def _attributes(raw: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in as_list(raw):
        pair = as_dict(each)
        found[str(pair.get("key"))] = _value(pair.get("value"))
    return found


def _value(raw: Any, depth: int = 0) -> Any:
    """An attribute's value; 64-bit integers are strings there."""
    value = as_dict(raw)
    if depth > 32:
        return None
    if "intValue" in value:
        try:
            return int(value["intValue"])
        except (TypeError, ValueError):
            return None
    for key in ("stringValue", "doubleValue", "boolValue"):
        if key in value:
            return value[key]
    if "arrayValue" in value:
        values = as_list(as_dict(value["arrayValue"]).get("values"))
        return [_value(each, depth + 1) for each in values]
    if "kvlistValue" in value:
        pairs = as_list(as_dict(value["kvlistValue"]).get("values"))
        return {
            str(as_dict(each).get("key")): _value(as_dict(each).get("value"), depth + 1)
            for each in pairs
        }
    return None


def _traces(id: str, spans: list[_Span], place: str) -> Iterator[Trace]:
    spans.sort(key=lambda span: (span.start_s or 0.0, span.id))
    by_id = {span.id: span for span in spans}
    calls = [span for span in spans if span.is_model_call]
    # A framework's span around a client's describes the same call: the innermost with usage counts.
    outer: set[str] = set()
    for span in calls:
        if span.get(names.INPUT_TOKENS) is None and span.get(names.OUTPUT_TOKENS) is None:
            continue
        parent, steps = by_id.get(span.parent), 0
        while parent is not None and steps < 64:
            if parent.is_model_call:
                outer.add(parent.id)
            parent, steps = by_id.get(parent.parent), steps + 1
    calls = [span for span in calls if span.id not in outer]
    if not calls:
        return
    trace = Trace(id, NAME, place, has_content=False)
    trace.model = str(calls[0].get(names.MODEL) or "")
    agents = [_agent(span, by_id) for span in calls]
    threads: dict[str, tuple[CallSequence, list[Turn]]] = {}
    tools = [span for span in spans if span.is_tool_call]
    taken = 0
    for span, agent in zip(calls, agents, strict=True):
        sequence, turns = threads.setdefault(agent, (CallSequence(), []))
        prompt, output = _content(span, trace)
        if prompt or output.text or output.calls:
            trace.has_content = True
            turn = sequence.add(prompt, output)
        else:
            turn = Turn([], output)
        if not prompt:  # tools that ran between the calls stand in for the hidden messages
            while taken < len(tools) and (tools[taken].start_s or 0) < (span.start_s or 0):
                answer = _tool_answer(tools[taken])
                if turns:
                    turns[-1].output.calls.append(_call_of(tools[taken], answer))
                    turn.inputs.append(answer)
                taken += 1
        _count(span, turn, trace)
        turns.append(turn)
    for name, (_, turns) in threads.items():
        for turn in turns:
            turn.thread = name
        if trace.turns:
            turns[0].new_segment = True
        trace.turns += turns
    _mark_tools(trace, tools)
    yield trace


def _agent(span: _Span, by_id: dict[str, _Span]) -> str:
    """The sub-agent that a call belongs to; the outermost agent is the main thread."""
    found: list[str] = []
    parent, steps = by_id.get(span.parent), 0
    while parent is not None and steps < 64:
        if parent.is_agent:
            found.append(str(parent.get(names.AGENT) or parent.id))
        parent, steps = by_id.get(parent.parent), steps + 1
    return found[0] if len(found) > 1 else ""


def _tool_answer(span: _Span) -> Message:
    result = span.get(names.TOOL_RESULT)
    start, end = span.start_s, span.end_s
    return Message(
        "tool",
        result if isinstance(result, str) else text_of(result),
        call_id=str(span.get(names.TOOL_CALL_ID) or span.id),
        tool_name=str(span.get(names.TOOL_NAME) or ""),
        is_error=span.error or span.get(names.ERROR_TYPE) is not None,
        seconds=end - start if start is not None and end is not None else None,
    )


def _call_of(span: _Span, answer: Message) -> ToolCall:
    """The call that a tool span answers, where the model's message is not recorded."""
    return tool_call(answer.call_id, answer.tool_name, span.get(names.TOOL_ARGUMENTS))


def _mark_tools(trace: Trace, tools: list[_Span]) -> None:
    """What tool spans know of answers that the messages have: errors and times."""
    by_call = {str(span.get(names.TOOL_CALL_ID)): span for span in tools}
    for turn in trace.turns:
        for message in turn.inputs:
            span = by_call.get(message.call_id) if message.role == "tool" else None
            if span is not None:
                answer = _tool_answer(span)
                message.is_error, message.seconds = answer.is_error, answer.seconds
                message.tool_name = message.tool_name or answer.tool_name


def _count(span: _Span, turn: Turn, trace: Trace) -> None:
    counts = Counts()
    notes = counts.notes
    counts.prompt = count(span.get(names.INPUT_TOKENS), "input tokens", notes)
    counts.completion = count(span.get(names.OUTPUT_TOKENS), "output tokens", notes)
    counts.cached = count(span.get(names.CACHE_READ), "cache read tokens", notes)
    counts.cache_write = count(span.get(names.CACHE_WRITE), "cache write tokens", notes)
    counts.reasoning = count(span.get(names.REASONING), "reasoning tokens", notes)
    if counts.cached is not None and counts.prompt is not None and counts.cached > counts.prompt:
        notes.append("cached tokens exceed the prompt count: taken as counted beside it")
        counts.prompt += counts.cached + (counts.cache_write or 0)
    apply_counts(turn, counts, trace)
    turn.model = str(span.get(names.MODEL) or "")
    turn.start_s, turn.end_s = span.start_s, span.end_s
    if trace.tools is None:
        trace.tools = tool_specs(_json(span.get(names.TOOL_DEFINITIONS)))


def _content(span: _Span, trace: Trace) -> tuple[list[Message], Message]:
    attributes = dict(span.attributes)
    for event in span.events:
        if event.get("name") == names.DETAILS_EVENT:
            attributes.update(_attributes(event.get("attributes")))
    prompt: list[Message] = []
    system = _json(attributes.get(names.SYSTEM[0]))
    if system:
        prompt.append(Message("system", _parts_text(as_list(system)) or text_of(system)))
    for raw in as_list(_json(attributes.get(names.INPUT_MESSAGES[0]))):
        prompt += _messages(as_dict(raw))
    output = Message("assistant")
    for raw in as_list(_json(attributes.get(names.OUTPUT_MESSAGES[0]))):
        for message in _messages({**as_dict(raw), "role": "assistant"}):
            output = message
    return prompt, output


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _parts_text(parts: list[Any]) -> str:
    texts = [as_dict(part) for part in parts]
    return "\n".join(
        str(part.get("content", part.get("text")) or "")
        for part in texts
        if part.get("type", "text") == "text"
    )


def _messages(raw: dict[str, Any]) -> list[Message]:
    role = raw.get("role")
    parts = as_list(raw.get("parts"))
    if not parts and "content" in raw:
        parts = [{"type": "text", "content": text_of(raw["content"])}]
    if role == "assistant":
        message = Message("assistant", _parts_text(parts))
        for each in parts:
            part = as_dict(each)
            if part.get("type") in ("reasoning", "thinking"):
                message.reasoning += str(part.get("content") or part.get("text") or "")
            elif part.get("type") == "tool_call":
                message.calls.append(
                    tool_call(
                        str(part.get("id") or ""),
                        str(part.get("name") or ""),
                        part.get("arguments"),
                    )
                )
        return [message]
    answers = [
        Message(
            "tool",
            text_of(part.get("response", part.get("result"))),
            call_id=str(part.get("id") or ""),
        )
        for each in parts
        if (part := as_dict(each)).get("type") == "tool_call_response"
    ]
    if answers:
        return answers
    return [Message("system" if role == "system" else "user", _parts_text(parts))]
