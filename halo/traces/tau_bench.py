"""tau-bench result lists, and tau2-bench simulations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from halo.traces.build import apply_counts, label_of, tool_specs, turns_of_messages
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.json_stream import stream_items
from halo.traces.openai_messages import openai_message, openai_messages
from halo.traces.record import Message, Trace
from halo.traces.source import Head, Source
from halo.traces.usage_fields import read_usage

NAME = "tau-bench"
_ERRORS = ("Error:", "Unknown action")


def mismatch(head: Head) -> str:
    """Why this is no tau-bench file; empty when it is one."""
    document = head.document
    if isinstance(document, list):
        first = head.objects[0] if head.objects else {}
        missing = [key for key in ("task_id", "reward", "traj") if key not in first]
        if set(missing) <= {"traj"} and "task_id" in first and "info" in first:
            return ""
        return f"items of the list lack {', '.join(missing)}" if missing else ""
    if isinstance(document, dict) and "simulations" in document:
        return ""
    return f"expected a list of results or an object with simulations; found {head.describe()}"


def is_splittable(head: Head) -> bool:
    """The file is one document."""
    return False


def read(source: Source, head: Head) -> Iterator[Trace]:
    """One trace a result, read one at a time."""
    if isinstance(head.document, list):
        for _, index, value in stream_items(source.path, source.problems):
            place = f"{source.name}#{index}"
            trace = _result(as_dict(value), place)
            if trace.turns:
                yield trace
            else:
                error = as_dict(as_dict(value).get("info")).get("error")
                source.problems.add(place, f"no model call; {error or 'the trajectory is empty'}")
        return
    info: dict[str, Any] = {}
    for kind, key, value in stream_items(source.path, source.problems, "simulations"):
        if kind == "field":
            if key == "info":
                info = as_dict(value)
            continue
        trace = _simulation(as_dict(value), info, f"{source.name}#{key}")
        if trace.turns:
            yield trace
        else:
            source.problems.add(trace.place, "no model call")


def _result(result: dict[str, Any], place: str) -> Trace:
    info = as_dict(result.get("info"))
    task = as_dict(info.get("task"))
    trace = Trace(
        id=f"task {result.get('task_id')} trial {result.get('trial', 0)}",
        format=NAME,
        place=place,
        tools=tool_specs(result.get("tools")),
        expected=", ".join(str(each) for each in as_list(task.get("outputs"))),
    )
    trace.passed, trace.score = label_of(result)
    messages = openai_messages(result.get("traj"))
    for message in messages:
        if message.role == "tool":
            message.is_error = message.text.startswith(_ERRORS)
    trace.turns, trace.trailing = turns_of_messages(messages)
    if trace.tools is None:
        trace.note("tool schemas are not in the file: prompts are underestimated by them")
    trace.note("calls of the simulated user are not recorded and not charged")
    return trace


def _simulation(simulation: dict[str, Any], info: dict[str, Any], place: str) -> Trace:
    agent = as_dict(info.get("agent_info"))
    trace = Trace(
        id=f"task {simulation.get('task_id')} trial {simulation.get('trial', 0)}",
        format=NAME,
        place=place,
        model=str(agent.get("llm") or ""),
    )
    trace.passed, trace.score = label_of(as_dict(simulation.get("reward_info")))
    messages: list[Message] = []
    usages: list[Any] = []
    for raw in as_list(simulation.get("messages")):
        fields = as_dict(raw)
        message = openai_message(fields)
        if message is None:
            for each in as_list(fields.get("tool_messages")):
                if (inner := openai_message(each)) is not None:
                    messages.append(inner)
            continue
        if message.role == "tool":
            message.call_id = str(fields.get("id") or message.call_id)
            message.is_error = bool(fields["error"]) if "error" in fields else None
            if fields.get("requestor") == "user":
                continue  # the simulated user's own tools: not in the agent's context
        messages.append(message)
        if message.role == "assistant":
            usages.append(fields.get("usage"))
    trace.turns, trace.trailing = turns_of_messages(messages)
    for turn, usage in zip(trace.turns, usages, strict=True):
        apply_counts(turn, read_usage(usage), trace)
    trace.note("calls of the simulated user are not charged")
    return trace
