"""Halo's own run directories: a row of a query is a trace, an operator's calls a segment.

The journal has what models answered and what tools gave, but not the rendered prompts, so who put
which tokens into a context is known for tool answers alone. A call that several rows share is
charged to the row that asked first. A finished row is no label: runs do not say what was right.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from halo.traces.build import text_of, tool_call
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.record import Message, Trace, Turn
from halo.traces.source import Head, Source
from runtime.journal_reader import reading

NAME = "halo-run"
_FIELDS = (
    "kind, name, op, query, row_key, path, turn, value, input_tokens, output_tokens, "
    "cached_tokens, start_s, first_token_s, end_s, attempts, error"
)
_INNER = (
    "name, value, input_tokens, output_tokens, cached_tokens, first_token_s, end_s, attempts, error"
)


def mismatch(head: Head) -> str:
    """Why this is no run directory; empty when it is one."""
    return "" if head.is_run_directory else "not a folder with events.sqlite"


def is_splittable(head: Head) -> bool:
    """The journal is read as a whole."""
    return False


def read(source: Source, head: Head) -> Iterator[Trace]:
    """One trace a row that made calls, also while the run goes on."""
    labels = operator_labels(source.path)
    journal = source.path / "events.sqlite"
    with contextlib.closing(ordered_calls(journal, _FIELDS)) as rows:
        trace: Trace | None = None
        key: tuple[str, str] | None = None
        pending: list[Message] = []
        segment = ""
        for row in rows:
            (kind, name, op, query, row_key, path, turn_number, value, prompt, completion,
             cached, start_s, first_token_s, end_s, attempts, error) = row  # fmt: skip
            if (query, row_key) != key:
                if trace is not None and trace.turns:
                    trace.trailing = pending
                    yield trace
                key, pending, segment = (query, row_key), [], ""
                trace = Trace(f"{query} {row_key}", NAME, f"{source.name}#{query}/{row_key}")
            assert trace is not None
            here = segment_of(op, path)
            if kind != "model":
                pending.append(_tool_answer(name, value, error, start_s, end_s, path))
                continue
            output = _answer(value, error)
            turn = Turn(pending, output, model=name)
            turn.thread = labels.get(op) or str(op)[:8]
            turn.new_segment = bool(trace.turns) and (here != segment or turn_number == 0)
            pending, segment = [], here
            turn.prompt_tokens, turn.prompt_origin = prompt, "reported"
            turn.completion_tokens, turn.completion_origin = completion, "reported"
            turn.cached_tokens = cached
            turn.start_s, turn.first_token_s, turn.end_s = start_s, first_token_s, end_s
            if attempts > 1:
                trace.note(f"{attempts - 1} attempts of a call were repeated; the last is charged")
            trace.model = trace.model or name
            trace.turns.append(turn)
        if trace is not None and trace.turns:
            trace.trailing = pending
            yield trace


def ordered_calls(journal: Path, fields: str) -> Generator[tuple[Any, ...], None, None]:
    """Columns of the recorded calls, those of a row together: by operator, place and turn, a tool
    after the model call that asked for it."""
    columns = "query, row_key, process, op, path, turn, kind, start_s"
    with reading(journal) as connection:
        # A tool's path ends with its place in the agent's turn: cut there, it sorts beside it.
        yield from connection.execute(
            f"SELECT {fields} FROM (SELECT {columns}, {_INNER} FROM calls UNION ALL "
            f"SELECT {columns}, {_INNER} FROM failed_calls WHERE kind = 'model') "
            "ORDER BY query, row_key, process, op, "
            "CASE WHEN instr(path, 'agent[') THEN substr(path, 1, instr(path, 'agent[') - 1) "
            "ELSE path || CASE path WHEN '' THEN '' ELSE '/' END END, "
            "turn, kind <> 'model', start_s, path"
        )


def segment_of(op: str, path: str) -> str:
    """The conversation that a call belongs to."""
    return f"{op}/{path.split('agent[', 1)[0].rstrip('/')}"


def operator_labels(directory: Path) -> dict[str, str]:
    """What the manifest calls each operator, by fingerprint."""
    try:
        manifest = as_dict(json.loads((directory / "manifest.json").read_text("utf-8")))
    except (OSError, ValueError):
        return {}
    operators = as_dict(manifest.get("operators"))
    return {op: str(as_dict(about).get("label") or op[:8]) for op, about in operators.items()}


def _answer(value: str, error: str | None) -> Message:
    message = Message("assistant")
    try:
        answer: Any = json.loads(value) if value else None
    except ValueError:
        answer = value
    if isinstance(answer, dict):
        fields = as_dict(answer)
        message.text = text_of(fields.get("text"))
        for raw in as_list(fields.get("tool_calls")):
            call = as_dict(raw)
            message.calls.append(
                tool_call(str(call.get("id")), str(call.get("name")), call.get("arguments_json"))
            )
    else:
        message.text = text_of(answer)
    if error:
        message.text = message.text or f"(failed: {error})"
    return message


def _tool_answer(
    name: str, value: str, error: str | None, start_s: float, end_s: float, path: str
) -> Message:
    try:
        answer: Any = json.loads(value) if value else None
    except ValueError:
        answer = value
    text = error if error else answer if isinstance(answer, str) else json.dumps(answer)
    return Message(
        "tool", text or "", call_id=path, tool_name=name, is_error=error is not None,
        seconds=end_s - start_s,
    )  # fmt: skip
