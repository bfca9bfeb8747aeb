"""SWE-agent trajectories (`.traj`): steps with their observations, counts as totals alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from halo.traces.build import CallSequence, text_of, tool_call
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.json_stream import stream_items
from halo.traces.openai_chat import scale_completions
from halo.traces.openai_messages import openai_messages
from halo.traces.record import Message, Trace, Turn
from halo.traces.source import Head, Source
from halo.traces.usage_fields import count

NAME = "swe-agent"


def mismatch(head: Head) -> str:
    """Why this is no SWE-agent trajectory; empty when it is one."""
    if not isinstance(head.document, dict) and len(head.lines) != 1:
        return f"expected one JSON object, found {head.describe()}"
    first = head.objects[0]
    if not isinstance(first.get("trajectory"), list):
        return "no list under trajectory"
    steps = as_list(first["trajectory"])
    if steps and not {"action", "observation"} & set(as_dict(steps[0])):
        return "steps of the trajectory have neither action nor observation"
    return ""


def is_splittable(head: Head) -> bool:
    """The file is one document."""
    return False


def read(source: Source, head: Head) -> Iterator[Trace]:
    """The trajectory of a file."""
    fields: dict[str, Any] = {}
    steps: list[dict[str, Any]] = []
    for kind, key, value in stream_items(source.path, source.problems, "trajectory"):
        if kind == "field":
            fields[str(key)] = value
        else:
            steps.append(as_dict(value))
    trace = _trajectory(fields, steps, source)
    if trace.turns:
        yield trace
    else:
        source.problems.add(source.name, "the trajectory has no step with a response")


def _trajectory(fields: dict[str, Any], steps: list[dict[str, Any]], source: Source) -> Trace:
    info = as_dict(fields.get("info"))
    name = source.path.name.removesuffix(".traj").removesuffix(".json")
    trace = Trace(name, NAME, source.name)
    model = as_dict(as_dict(as_dict(fields.get("replay_config")).get("agent")).get("model"))
    trace.model = str(model.get("name") or info.get("model") or "")
    if isinstance(info.get("resolved"), bool):
        trace.passed = info["resolved"]
    elif info.get("exit_status") and info["exit_status"] != "submitted":
        trace.note(f"ended with {str(info['exit_status'])[:60]}")
    sequence = CallSequence()
    history = _history(fields)
    before: list[Message] = [m for m in history if m.role in ("system", "user")][:2]
    for number, step in enumerate(steps):
        response = step.get("response")
        if not isinstance(response, str) and not step.get("tool_calls"):
            continue  # a step of the harness, not of the model
        output = _output(step, number)
        query = step.get("query", step.get("messages"))
        if isinstance(query, list) and query:
            turn = sequence.add(openai_messages(query), output)
            _observations_as_tools(turn)
        else:
            turn = Turn(before, output)
        trace.turns.append(turn)
        observation = step.get("observation")
        seconds = step.get("execution_time")
        before = [
            Message(
                "tool",
                text_of(observation),
                call_id=output.calls[0].id if output.calls else "",
                seconds=float(seconds) if isinstance(seconds, int | float) else None,
            )
        ]
    trace.trailing = before if trace.turns else []
    _scale(trace, as_dict(info.get("model_stats")))
    return trace


def _output(step: dict[str, Any], number: int) -> Message:
    output = Message("assistant", str(step.get("response") or ""))
    for raw in as_list(step.get("tool_calls")):
        call = as_dict(raw)
        inner = as_dict(call.get("function")) or call
        output.calls.append(
            tool_call(
                str(call.get("id") or ""), str(inner.get("name") or ""), inner.get("arguments")
            )
        )
    action = step.get("action")
    if not output.calls and isinstance(action, str) and action.strip():
        made = tool_call(f"step-{number}", "bash", {"command": action})
        # The action is text of the response already: its tokens are not counted twice.
        made.arguments_text = ""
        output.calls.append(made)
    return output


def _observations_as_tools(turn: Turn) -> None:
    """Text models get observations as user messages; within a trajectory those are tool answers."""
    if turn.new_segment:
        return
    for message in turn.inputs:
        if message.role == "user" and len(turn.inputs) == 1:
            message.role = "tool"


def _history(fields: dict[str, Any]) -> list[Message]:
    return openai_messages(
        [each for each in as_list(fields.get("history")) if not as_dict(each).get("is_demo")]
    )


def _scale(trace: Trace, stats: dict[str, Any]) -> None:
    """Only totals are counted: completions share theirs, prompts are estimated."""
    notes: list[str] = []
    received = count(stats.get("tokens_received"), "tokens_received", notes)
    calls = count(stats.get("api_calls"), "api_calls", notes)
    for note in notes:
        trace.note(note)
    if received and trace.turns:
        scale_completions(trace, received)
        trace.note("completion tokens are scaled to the total; prompts are estimated")
    if calls and calls > len(trace.turns):
        trace.note(f"{calls - len(trace.turns)} paid calls left no step (retries, requeries)")
