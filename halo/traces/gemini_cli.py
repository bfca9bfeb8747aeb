"""Gemini CLI sessions: one JSON object, or a log of records in which the last of an id wins."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from halo.traces.build import apply_counts, text_of, tool_call, turns_of_messages
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.json_stream import stream_items
from halo.traces.record import Message, Trace, Turn
from halo.traces.source import Head, Source
from halo.traces.usage_fields import Counts, count

NAME = "gemini-cli"


def mismatch(head: Head) -> str:
    """Why this is no Gemini CLI session; empty when it is one."""
    if not head.objects:
        return f"expected JSON, found {head.describe()}"
    first = head.objects[0]
    if "sessionId" not in first:
        return "the first object has no sessionId"
    if "projectHash" in first or "startTime" in first:
        return ""
    if any(as_dict(raw).get("type") == "gemini" for raw in as_list(first.get("messages"))):
        return ""
    return "neither projectHash nor startTime, and no message of type gemini"


def is_splittable(head: Head) -> bool:
    """A session's records belong together."""
    return False


def read(source: Source, head: Head) -> Iterator[Trace]:
    """The session of a file."""
    fields: dict[str, Any] = {}
    if head.lines:
        messages = _replay(source, fields)
    else:
        for _, key, value in stream_items(source.path, source.problems):
            fields[str(key)] = value
        messages = [as_dict(each) for each in as_list(fields.get("messages"))]
    trace = _session(fields, messages, source.name)
    if trace.turns:
        yield trace
    else:
        source.problems.add(source.name, "the session has no model call")


def _replay(source: Source, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages that a log ends with: later records replace earlier ones of their id, and a
    rewind drops a message and all after it."""
    messages: dict[str, dict[str, Any]] = {}
    for number, line in source.objects():
        if "$set" in line:
            changes = as_dict(line["$set"])
            fields.update(changes)
            if isinstance(changes.get("messages"), list):
                listed = [as_dict(each) for each in changes["messages"]]
                messages = {str(each.get("id")): each for each in listed}
        elif "$rewindTo" in line:
            ids = list(messages)
            if line["$rewindTo"] in messages:
                for id in ids[ids.index(line["$rewindTo"]) :]:
                    del messages[id]
        elif "id" in line and "type" in line:
            messages[str(line["id"])] = line
        elif "sessionId" in line:
            fields.update(line)
            for each in as_list(line.get("messages")):
                messages[str(as_dict(each).get("id"))] = as_dict(each)
        else:
            source.problems.add(f"{source.name}:{number}", "neither a message nor an update")
    return list(messages.values())


def _session(fields: dict[str, Any], raw: list[dict[str, Any]], place: str) -> Trace:
    trace = Trace(str(fields.get("sessionId") or place.rsplit("/", 1)[-1]), NAME, place)
    messages: list[Message] = []
    records: list[dict[str, Any]] = []
    for each in raw:
        kind = each.get("type")
        if kind == "user":
            messages.append(Message("user", text_of(each.get("content"))))
        elif kind == "gemini":
            messages.append(_answer(each))
            records.append(each)
            messages += _results(each)
    trace.turns, trace.trailing = turns_of_messages(messages)
    for turn, record in zip(trace.turns, records, strict=True):
        _count(turn, record, trace)
    trace.model = next((turn.model for turn in trace.turns if turn.model), "")
    if not any(turn.cached_tokens for turn in trace.turns):
        for turn in trace.turns:  # a missing counter is stored as 0
            turn.cached_tokens = None
    return trace


def _answer(record: dict[str, Any]) -> Message:
    message = Message("assistant", text_of(record.get("content")))
    thoughts = [as_dict(each) for each in as_list(record.get("thoughts"))]
    message.reasoning = "\n".join(
        f"{each.get('subject') or ''} {each.get('description') or ''}".strip() for each in thoughts
    )
    if not thoughts and as_dict(record.get("tokens")).get("thoughts"):
        message.reasoning_hidden = True
    for raw in as_list(record.get("toolCalls")):
        call = as_dict(raw)
        message.calls.append(
            tool_call(str(call.get("id") or ""), str(call.get("name") or ""), call.get("args"))
        )
    return message


def _results(record: dict[str, Any]) -> list[Message]:
    found: list[Message] = []
    for raw in as_list(record.get("toolCalls")):
        call = as_dict(raw)
        if "result" not in call and call.get("status") not in ("error", "cancelled"):
            continue
        found.append(
            Message(
                "tool",
                _result_text(call.get("result")),
                call_id=str(call.get("id") or ""),
                tool_name=str(call.get("name") or ""),
                is_error=call.get("status") == "error" if call.get("status") else None,
            )
        )
    return found


def _result_text(result: Any) -> str:
    texts: list[str] = []
    for raw in as_list(result):
        response = as_dict(as_dict(as_dict(raw).get("functionResponse")).get("response"))
        if response:
            value = response.get("output", response.get("error", response))
            texts.append(text_of(value))
        else:
            texts.append(text_of([raw]))
    return "\n".join(texts) if texts else text_of(result)


def _count(turn: Turn, record: dict[str, Any], trace: Trace) -> None:
    turn.model = str(record.get("model") or "")
    turn.end_s = _seconds(record.get("timestamp"))
    tokens = as_dict(record.get("tokens"))
    if not tokens:
        return
    counts = Counts()
    notes = counts.notes
    prompt = count(tokens.get("input"), "input", notes)
    tool = count(tokens.get("tool"), "tool", notes)
    output = count(tokens.get("output"), "output", notes)
    thoughts = count(tokens.get("thoughts"), "thoughts", notes)
    counts.prompt = None if prompt is None else prompt + (tool or 0)
    counts.completion = None if output is None else output + (thoughts or 0)
    counts.reasoning = thoughts
    counts.cached = count(tokens.get("cached"), "cached", notes)
    apply_counts(turn, counts, trace)


def _seconds(value: Any) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None
