"""The record that every reader gives: a trajectory as turns, each one model call.

A count that a trace does not have is None, never 0. Where a count comes from is said beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Origin = Literal["reported", "scaled", "tokenized", "estimated", "unknown"]
"""Where a count comes from: the trace; an estimate scaled to totals of the trace; a named
tokenizer; bytes; nowhere."""


@dataclass(slots=True)
class ToolCall:
    """A call as the model wrote it.

    Attributes:
        arguments_text: raw text of the arguments.
        arguments: parsed; None when they do not parse.
        problem: why the arguments do not parse; empty when they do.
    """

    id: str
    name: str
    arguments_text: str = ""
    arguments: Any = None
    problem: str = ""


@dataclass(slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        reasoning: thinking that the trace shows; empty when it shows none.
        reasoning_hidden: thinking took place, and the trace does not show it.
        calls: of an assistant message.
        call_id, tool_name: of a tool answer: the call that it answers.
        is_error: what the trace says about a tool answer; None when it says nothing.
        exit_code: of a command; None when the trace has none.
        seconds: how long a tool took; None when unknown.
        tokens: tokens of the message, filled in by `halo.traces.counting`.
    """

    role: Role
    text: str = ""
    reasoning: str = ""
    reasoning_hidden: bool = False
    calls: list[ToolCall] = field(default_factory=list[ToolCall])
    call_id: str = ""
    tool_name: str = ""
    is_error: bool | None = None
    exit_code: int | None = None
    seconds: float | None = None
    tokens: float = 0.0


@dataclass(slots=True)
class Turn:
    """One model call.

    Attributes:
        inputs: messages that are new to the context; all of it at the start of a segment.
        output: what the model answered.
        prompt_tokens: the whole prompt, cached part included.
        cached_tokens: what was read from a cache; None is unknown.
        completion_tokens: everything generated, thinking included.
        new_segment: the context does not continue that of the turn before.
        dropped_output: the answer was paid for, but is not in the context of later turns.
        thread: label of a sub-agent or role; empty for the main thread.
    """

    inputs: list[Message]
    output: Message
    model: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    prompt_origin: Origin = "unknown"
    completion_origin: Origin = "unknown"
    new_segment: bool = False
    dropped_output: bool = False
    thread: str = ""
    start_s: float | None = None
    end_s: float | None = None
    first_token_s: float | None = None


@dataclass(slots=True)
class ToolSpec:
    """A tool that a trace declares; `schema` is the JSON schema of its arguments, if given."""

    name: str
    schema: dict[str, Any] | None = None
    description: str = ""


@dataclass(slots=True)
class Trace:
    """A trajectory.

    Attributes:
        place: file, and line, member or index within it.
        tools: declared tools; None when the trace does not say.
        passed: outcome label; None without one.
        score: the label as a number, where it is one.
        expected: the right answer, where the trace has it.
        answer: the final answer, where the trace marks it.
        trailing: messages after the last model call.
        has_content: whether the trace has texts (telemetry often has counts alone).
        notes: what the reader had to assume or repair.
    """

    id: str
    format: str
    place: str
    model: str = ""
    tools: list[ToolSpec] | None = None
    turns: list[Turn] = field(default_factory=list[Turn])
    trailing: list[Message] = field(default_factory=list[Message])
    passed: bool | None = None
    score: float | None = None
    expected: str = ""
    answer: str = ""
    has_content: bool = True
    notes: list[str] = field(default_factory=list[str])

    def note(self, text: str) -> None:
        """Remember what was assumed, once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something of a file that could not be used; the rest was.

    Attributes:
        place: file and line, member or index.
        text: what is wrong there.
    """

    place: str
    text: str


@dataclass(slots=True)
class Problems:
    """Problems found while reading: all counted, the first `limit` kept."""

    limit: int = 50
    count: int = 0
    kept: list[Problem] = field(default_factory=list[Problem])

    def add(self, place: str, text: str) -> None:
        """Count a problem."""
        self.count += 1
        if len(self.kept) < self.limit:
            self.kept.append(Problem(place, text[:500]))
