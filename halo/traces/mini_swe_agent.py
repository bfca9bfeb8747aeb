"""mini-swe-agent trajectories (`*.traj.json`): chat messages with the raw responses beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from halo.traces.build import apply_counts, tool_call
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.json_stream import stream_items
from halo.traces.openai_messages import openai_message
from halo.traces.record import Message, ToolSpec, Trace, Turn
from halo.traces.source import Head, Source
from halo.traces.usage_fields import read_usage

NAME = "mini-swe-agent"
_FENCE = re.compile(r"```(?:mswea_bash_command|bash)\n(.*?)\n```", re.DOTALL)


def mismatch(head: Head) -> str:
    """Why this is no mini-swe-agent trajectory; empty when it is one."""
    if not isinstance(head.document, dict) and len(head.lines) != 1:
        return f"expected one JSON object, found {head.describe()}"
    first = head.objects[0]
    if str(first.get("trajectory_format", "")).startswith("mini-swe-agent"):
        return ""
    if "messages" not in first and "info" not in first:
        return "neither info nor messages"
    info = as_dict(first.get("info"))
    if "model_stats" in info or "mini_version" in info:
        return "" if "trajectory" not in first else "it has a trajectory, as SWE-agent's files do"
    return "info has neither model_stats nor mini_version"


def is_splittable(head: Head) -> bool:
    """The file is one document."""
    return False


def read(source: Source, head: Head) -> Iterator[Trace]:
    """The trajectory of a file."""
    fields: dict[str, Any] = {}
    raw: list[dict[str, Any]] = []
    for kind, key, value in stream_items(source.path, source.problems, "messages"):
        if kind == "field":
            fields[str(key)] = value
        else:
            raw.append(as_dict(value))
    trace = _trajectory(fields, raw, source)
    if trace.turns:
        yield trace
    else:
        source.problems.add(source.name, "the trajectory has no model call")


def _trajectory(fields: dict[str, Any], raw: list[dict[str, Any]], source: Source) -> Trace:
    info = as_dict(fields.get("info"))
    name = source.path.name.removesuffix(".json").removesuffix(".traj")
    trace = Trace(str(fields.get("instance_id") or name), NAME, source.name)
    model = as_dict(as_dict(info.get("config")).get("model"))
    trace.model = str(model.get("model_name") or "")
    trace.tools = [ToolSpec("bash")]
    if isinstance(info.get("resolved"), bool):
        trace.passed = info["resolved"]
    pending: list[Message] = []
    clock: float | None = None
    last_calls: list[str] = []
    for each in raw:
        extra = as_dict(each.get("extra"))
        stamp = extra.get("timestamp")
        now = float(stamp) if isinstance(stamp, int | float) else None
        if each.get("role") == "exit":
            trace.answer = str(extra.get("submission") or "")
            continue
        message = openai_message(each)
        if message is None:
            continue
        if message.role == "assistant":
            _actions(message, extra)
            turn = _turn(pending, message, extra, trace)
            turn.start_s, turn.end_s = clock, now
            pending = []
            last_calls = [call.id for call in message.calls]
        elif extra.get("interrupt_type") == "FormatError":
            failed = _failed(extra)
            turn = _turn(pending, failed, extra, trace)
            turn.dropped_output = True
            pending = [message]
        else:
            _observation(message, extra, last_calls)
            pending.append(message)
        clock = now or clock
    trace.trailing = pending
    return trace


def _turn(pending: list[Message], output: Message, extra: dict[str, Any], trace: Trace) -> Turn:
    response = as_dict(extra.get("response"))
    turn = Turn(pending, output, model=str(response.get("model") or ""))
    apply_counts(turn, read_usage(response.get("usage")), trace)
    trace.turns.append(turn)
    return turn


def _actions(message: Message, extra: dict[str, Any]) -> None:
    """Text models write their command in a fence: it is text, and also a call."""
    if message.calls:
        return
    commands = [
        str(as_dict(each).get("command", each)) if each else ""
        for each in as_list(extra.get("actions"))
    ] or _FENCE.findall(message.text)
    for number, command in enumerate(commands):
        call = tool_call(f"action-{number}", "bash", {"command": command})
        call.arguments_text = ""  # counted with the text
        message.calls.append(call)


def _failed(extra: dict[str, Any]) -> Message:
    """The answer of a call whose format was wrong: paid for, and in no later context."""
    choices = as_list(as_dict(extra.get("response")).get("choices"))
    found = openai_message(as_dict(choices[0]).get("message")) if choices else None
    return found or Message("assistant")


def _observation(message: Message, extra: dict[str, Any], last_calls: list[str]) -> None:
    if "returncode" not in extra and "raw_output" not in extra and message.role != "tool":
        return
    if message.role == "user":
        message.role = "tool"
        message.call_id = last_calls.pop(0) if last_calls else ""
    message.tool_name = "bash"
    code = extra.get("returncode")
    if isinstance(code, int):
        message.exit_code = code
    if extra.get("exception_info"):
        message.is_error = True
