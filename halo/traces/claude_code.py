"""Claude Code: session transcripts from disk, and the stream-json dialect.

One API call is written as several lines, one per content block, each with the usage so far: lines
are grouped by message id, and the line with the most output tokens counts. In the stream dialect
even that is a placeholder, and completions are scaled to the totals of the result line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from halo.traces.anthropic_messages import add_block, user_messages
from halo.traces.build import apply_counts
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.openai_chat import scale_completions
from halo.traces.record import Message, ToolSpec, Trace, Turn
from halo.traces.source import Head, Source
from halo.traces.usage_fields import count, read_usage

NAME = "claude-code"


def mismatch(head: Head) -> str:
    """Why this is no Claude Code file; empty when it is one."""
    if not head.lines:
        return f"expected JSON Lines, found {head.describe()}"
    for line in head.lines:
        if line.get("type") == "system" and line.get("subtype") == "init":
            return ""
        if line.get("type") in ("assistant", "user") and isinstance(line.get("message"), dict):
            if "sessionId" in line or "session_id" in line or "parentUuid" in line:
                return ""
            return "lines have a message, but neither sessionId nor session_id"
    return "no line of type assistant, user or system with a message"


def is_splittable(head: Head) -> bool:
    """A session's lines belong together."""
    return False


@dataclass(slots=True)
class _Thread:
    """The main conversation of a session, or one of its sub-agents."""

    turns: list[Turn] = field(default_factory=list[Turn])
    pending: list[Message] = field(default_factory=list[Message])
    by_message: dict[str, Turn] = field(default_factory=dict[str, Turn])
    compacted: bool = False


@dataclass(slots=True)
class _Session:
    id: str
    place: str
    threads: dict[str, _Thread] = field(default_factory=dict[str, _Thread])
    tools: list[ToolSpec] | None = None
    model: str = ""
    result: dict[str, Any] | None = None
    is_stream: bool = False
    notes: list[str] = field(default_factory=list[str])


def read(source: Source, head: Head) -> Iterator[Trace]:
    """One trace a session."""
    sessions: dict[str, _Session] = {}
    for number, line in source.objects():
        kind = line.get("type")
        if kind not in ("system", "assistant", "user", "result"):
            continue
        id = str(line.get("sessionId") or line.get("session_id") or "session")
        session = sessions.get(id)
        if session is None:
            session = sessions[id] = _Session(id, f"{source.name}:{number}")
        if kind == "system":
            _system(session, line)
        elif kind == "assistant":
            _assistant(session, line)
        elif kind == "user":
            _user(session, line)
        elif kind == "result":
            session.result = line
    for session in sessions.values():
        trace = _finish(session)
        if trace.turns:
            yield trace
        else:
            source.problems.add(session.place, f"session {session.id} has no model call")


def _thread(session: _Session, line: dict[str, Any]) -> _Thread:
    name = str(line.get("parent_tool_use_id") or "")
    if not name and line.get("isSidechain"):
        name = str(line.get("agentId") or "sidechain")
    return session.threads.setdefault(name, _Thread())


def _system(session: _Session, line: dict[str, Any]) -> None:
    if line.get("subtype") == "init":
        session.is_stream = True
        session.model = str(line.get("model") or "")
        session.tools = [ToolSpec(str(name)) for name in as_list(line.get("tools"))]
    elif line.get("subtype") == "compact_boundary":
        _thread(session, line).compacted = True


def _assistant(session: _Session, line: dict[str, Any]) -> None:
    message = as_dict(line.get("message"))
    thread = _thread(session, line)
    id = f"{message.get('id')}/{line.get('requestId') or ''}"
    turn = thread.by_message.get(id) if message.get("id") else None
    if turn is None:
        turn = Turn(thread.pending, Message("assistant"), model=str(message.get("model") or ""))
        turn.new_segment, thread.compacted = thread.compacted, False
        thread.pending = []
        thread.turns.append(turn)
        thread.by_message[id] = turn
        turn.start_s = _seconds(line.get("timestamp"))
    for block in as_list(message.get("content")):
        add_block(turn.output, as_dict(block))
    turn.end_s = _seconds(line.get("timestamp"))
    counts = read_usage(message.get("usage"))
    if turn.prompt_tokens is None or (counts.completion or 0) >= (turn.completion_tokens or 0):
        holder = Trace("", NAME, "")
        apply_counts(turn, counts, holder)
        session.notes += [note for note in holder.notes if note not in session.notes]


def _user(session: _Session, line: dict[str, Any]) -> None:
    thread = _thread(session, line)
    if line.get("isCompactSummary"):
        thread.compacted = True
    thread.pending += user_messages(as_dict(line.get("message")).get("content"))


def _finish(session: _Session) -> Trace:
    trace = Trace(session.id, NAME, session.place, session.model, session.tools)
    for note in session.notes:
        trace.note(note)
    for name, thread in session.threads.items():
        for turn in thread.turns:
            turn.thread = name
        if trace.turns and thread.turns:
            thread.turns[0].new_segment = True
        trace.turns += thread.turns
        trace.trailing += thread.pending
    if not trace.model and trace.turns:
        trace.model = trace.turns[0].model
    if session.result is not None:
        _apply_result(trace, session.result, session.is_stream)
    return trace


def _apply_result(trace: Trace, result: dict[str, Any], is_stream: bool) -> None:
    if isinstance(result.get("is_error"), bool):
        trace.passed = None if not result["is_error"] else False
    if isinstance(result.get("result"), str):
        trace.answer = result["result"]
    if not is_stream:
        return
    total = count(as_dict(result.get("usage")).get("output_tokens"), "output_tokens", [])
    if total:
        scale_completions(trace, total)
        trace.note("completion tokens are scaled to the session's total: the stream has no others")
    others = [name for name in as_dict(result.get("modelUsage")) if name != trace.model]
    if others:
        trace.note(f"calls to {', '.join(others)} are in the totals alone, not in this report")


def _seconds(value: Any) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None
