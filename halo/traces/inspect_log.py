"""Inspect AI evaluation logs: `.eval` archives and `.json` files, sample by sample.

Model calls come from a sample's model events; a log without events gives them from its messages,
with tokens estimated. Long strings are resolved from `attachments`, repeated inputs from
`events_data`.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from halo.traces.build import (
    CallSequence,
    apply_counts,
    text_of,
    tool_call,
    tool_specs,
    turns_of_messages,
)
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.json_stream import stream_items
from halo.traces.openai_chat import scale_completions
from halo.traces.record import Message, Trace, Turn
from halo.traces.source import Head, Source
from halo.traces.usage_fields import read_usage

NAME = "inspect"
_UNREADABLE = (
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    NotImplementedError,
    OSError,
    EOFError,
)
_LARGEST_SAMPLE_BYTES = 1024 * 1024 * 1024


def mismatch(head: Head) -> str:
    """Why this is no Inspect log; empty when it is one."""
    if head.is_zip:
        return ""  # `read` says what is missing inside
    if not isinstance(head.document, dict) and len(head.lines) != 1:
        return f"expected a ZIP archive or one JSON object, found {head.describe()}"
    first = head.objects[0]
    missing = [key for key in ("version", "eval") if key not in first]
    return f"it lacks {', '.join(missing)}" if missing else ""


def is_splittable(head: Head) -> bool:
    """The file is one document or archive."""
    return False


def read(source: Source, head: Head) -> Iterator[Trace]:
    """One trace a sample and epoch."""
    if head.is_zip:
        yield from _archive(source)
        return
    task: dict[str, Any] = {}
    for kind, key, value in stream_items(source.path, source.problems, "samples"):
        if kind == "field":
            if key == "eval":
                task = as_dict(value)
            continue
        yield from _checked(_sample(as_dict(value), task, f"{source.name}#{key}"), source)


def _archive(source: Source) -> Iterator[Trace]:
    try:
        archive = zipfile.ZipFile(source.path)
    except (zipfile.BadZipFile, OSError) as error:
        source.problems.add(source.name, f"not a whole ZIP archive: {error}")
        return
    with archive:
        task: dict[str, Any] = {}
        names = archive.namelist()
        for header in ("header.json", "_journal/start.json"):
            if header in names:
                task = as_dict(as_dict(_member(archive, header, source)).get("eval"))
                break
        samples = [name for name in names if name.startswith("samples/")]
        if not samples:
            source.problems.add(source.name, "the archive has no samples/; is it an Inspect log?")
        for name in samples:
            value = _member(archive, name, source)
            if value is not None:
                trace = _sample(as_dict(value), task, f"{source.name}#{name}")
                yield from _checked(trace, source)


def _member(archive: zipfile.ZipFile, name: str, source: Source) -> Any:
    place = f"{source.name}#{name}"
    if archive.getinfo(name).file_size > _LARGEST_SAMPLE_BYTES:
        source.problems.add(place, f"larger than {_LARGEST_SAMPLE_BYTES:,} bytes")
        return None
    try:
        return json.loads(archive.read(name))
    except _UNREADABLE as error:
        source.problems.add(place, f"cannot read it: {error}")
        return None


def _checked(trace: Trace, source: Source) -> Iterator[Trace]:
    if trace.turns:
        yield trace
    else:
        source.problems.add(trace.place, "the sample has no model call")


class _Texts:
    """Resolves what a log stores once and refers to."""

    def __init__(self, sample: dict[str, Any]) -> None:
        self._attachments = as_dict(sample.get("attachments"))
        data = as_dict(sample.get("events_data"))
        self._messages = as_list(data.get("messages"))

    def text(self, text: str) -> str:
        if not text.startswith("attachment://"):
            return text
        found = self._attachments.get(text.removeprefix("attachment://"))
        return found if isinstance(found, str) else text

    def inputs(self, event: dict[str, Any]) -> list[Any]:
        given = as_list(event.get("input"))
        if given:
            return given
        found: list[Any] = []
        for pair in as_list(event.get("input_refs")):
            if isinstance(pair, list) and len(as_list(pair)) == 2:
                found += self._messages[pair[0] : pair[1]]
        return found


def _sample(sample: dict[str, Any], task: dict[str, Any], place: str) -> Trace:
    texts = _Texts(sample)
    target = sample.get("target")
    trace = Trace(
        id=f"{sample.get('id')}" + (f" epoch {sample['epoch']}" if "epoch" in sample else ""),
        format=NAME,
        place=place,
        model=str(task.get("model") or ""),
        expected=target if isinstance(target, str) else text_of(target),
    )
    _label(trace, sample)
    threads: dict[str, tuple[CallSequence, list[Turn]]] = {}
    errors: dict[str, tuple[str, float | None]] = {}
    spans: dict[str, str] = {}
    compacted: set[str] = set()
    for raw in as_list(sample.get("events")):
        event = as_dict(raw)
        kind = event.get("event")
        if kind == "span_begin":
            spans[str(event.get("id"))] = str(event.get("type") or "")
        elif kind == "compaction":
            compacted.add(str(event.get("span_id") or ""))
        elif kind == "tool":
            error = as_dict(event.get("error"))
            seconds = event.get("working_time")
            errors[str(event.get("id"))] = (
                str(error.get("type") or ""),
                float(seconds) if isinstance(seconds, int | float) else None,
            )
        elif kind == "model":
            _model_event(event, texts, trace, threads, spans, compacted)
    for name, (_, turns) in threads.items():
        for turn in turns:
            turn.thread = name
        if trace.turns and turns:
            turns[0].new_segment = True
        trace.turns += turns
    if not trace.turns:
        _from_messages(sample, texts, trace)
    for turn in trace.turns:
        for message in turn.inputs:
            known = errors.get(message.call_id)
            if message.role == "tool" and known is not None:
                message.is_error = bool(known[0]) or bool(message.is_error)
                message.seconds = known[1]
    return trace


def _label(trace: Trace, sample: dict[str, Any]) -> None:
    for raw in as_dict(sample.get("scores")).values():
        score = as_dict(raw)
        value = score.get("value")
        if isinstance(value, bool):
            trace.passed = value
        elif value in ("C", "I", "P", "N"):
            trace.passed = value == "C"
        elif isinstance(value, int | float):
            trace.passed, trace.score = value >= 1, float(value)
        if isinstance(score.get("answer"), str):
            trace.answer = score["answer"]
        if trace.passed is not None:
            return


def _model_event(
    event: dict[str, Any],
    texts: _Texts,
    trace: Trace,
    threads: dict[str, tuple[CallSequence, list[Turn]]],
    spans: dict[str, str],
    compacted: set[str],
) -> None:
    if event.get("cache") == "read":
        trace.note("calls answered by Inspect's own response cache are not charged")
        return
    span = str(event.get("span_id") or "")
    if spans.get(span) in ("scorer", "scorers"):
        trace.note("calls of scorers are not charged")
        return
    output = as_dict(event.get("output"))
    choices = as_list(output.get("choices"))
    if not choices:
        trace.note("a model call ended without an answer")
        return
    role = str(event.get("role") or "")
    sequence, turns = threads.setdefault(
        role or (span if spans.get(span) == "agent" else ""), (CallSequence(), [])
    )
    answer = _message(as_dict(choices[0]).get("message"), texts)
    prompt = [m for raw in texts.inputs(event) if (m := _message(raw, texts)) is not None]
    turn = sequence.add(prompt, answer or Message("assistant"))
    if span in compacted:
        turn.new_segment = True
        compacted.discard(span)
    turn.model = str(event.get("model") or output.get("model") or "")
    if trace.tools is None:
        trace.tools = tool_specs(event.get("tools"))
    apply_counts(turn, read_usage(output.get("usage")), trace)
    turn.start_s, turn.end_s = _seconds(event.get("timestamp")), _seconds(event.get("completed"))
    turns.append(turn)


def _message(raw: Any, texts: _Texts) -> Message | None:
    fields = as_dict(raw)
    role = fields.get("role")
    content = fields.get("content")
    if isinstance(content, list):
        text = "\n".join(
            texts.text(str(as_dict(p).get("text") or ""))
            for p in as_list(content)
            if as_dict(p).get("type") == "text"
        )
    else:
        text = texts.text(text_of(content))
    if role == "assistant":
        message = Message("assistant", text)
        for part in as_list(content):
            block = as_dict(part)
            if block.get("type") == "reasoning":
                message.reasoning_hidden |= bool(block.get("redacted"))
                if not block.get("redacted"):
                    message.reasoning += texts.text(str(block.get("reasoning") or ""))
        for each in as_list(fields.get("tool_calls")):
            call = as_dict(each)
            made = tool_call(
                str(call.get("id") or ""), str(call.get("function") or ""), call.get("arguments")
            )
            made.problem = str(call.get("parse_error") or made.problem)
            message.calls.append(made)
        return message
    if role == "tool":
        error = fields.get("error")
        return Message(
            "tool",
            text or str(as_dict(error).get("message") or ""),
            call_id=str(fields.get("tool_call_id") or ""),
            tool_name=str(fields.get("function") or ""),
            is_error=bool(error),
        )
    if role in ("system", "user"):
        return Message("system" if role == "system" else "user", text)
    return None


def _from_messages(sample: dict[str, Any], texts: _Texts, trace: Trace) -> None:
    messages = [
        message
        for raw in as_list(sample.get("messages"))
        if (message := _message(raw, texts)) is not None
    ]
    trace.turns, trace.trailing = turns_of_messages(messages)
    usages = [read_usage(each) for each in as_dict(sample.get("model_usage")).values()]
    total = sum(usage.completion or 0 for usage in usages)
    if total and trace.turns:
        scale_completions(trace, total)
        trace.note("the sample has no model events: completions are scaled to its total")


def _seconds(value: Any) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None
