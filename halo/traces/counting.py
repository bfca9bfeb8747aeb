"""Tokens that a trace does not count: by a named tokenizer, or estimated from bytes, and marked.

Message counts also say who put which tokens into a context. Where the trace reports the prompt,
the new messages of a turn share what the prompt grew by, in proportion to their own counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from costmodel.pte import Turn as PricedTurn
from costmodel.tokens import estimate_tokens
from halo.errors import InputError
from halo.traces.record import Message, Origin, Trace, Turn

MESSAGE_OVERHEAD_TOKENS = 4
"""Of a chat template, for each message (role and separators), where tokens are not reported."""


@dataclass(frozen=True, slots=True)
class Counter:
    """How texts are counted: `name` is shown in reports."""

    name: str
    origin: Origin
    count: Callable[[str], int]


BYTES = Counter("estimated from bytes (4 a token)", "estimated", estimate_tokens)


def load_tokenizer(path: Path) -> Counter:
    """A tokenizer.json (or the folder that has it) of the `tokenizers` library. Raises
    `InputError` when the library or the file is missing or wrong."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        from tokenizers import Tokenizer  # pyright: ignore
    except ImportError:
        raise InputError(
            "counting with a tokenizer needs the package `tokenizers`: "
            "pip install 'halo-flow[tokenizers]'"
        ) from None
    try:
        tokenizer = Tokenizer.from_file(str(file))  # pyright: ignore
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"{file}: cannot load the tokenizer: {error}") from error

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)  # pyright: ignore

    return Counter(f"tokenizer {file}", "tokenized", count)


def fill_tokens(trace: Trace, counter: Counter = BYTES) -> None:
    """Give every message its tokens and every turn its counts, and say where they come from."""
    schema_tokens = _schema_tokens(trace, counter)
    context = 0.0  # tokens of the context before this turn's inputs
    for place, turn in enumerate(trace.turns):
        fresh = turn.new_segment or place == 0
        if fresh:
            context = float(schema_tokens)
        own = 0.0
        for message in turn.inputs:
            message.tokens = _message_tokens(message, counter)
            own += message.tokens
        if turn.prompt_tokens is None:
            turn.prompt_tokens = round(context + own)
            turn.prompt_origin = counter.origin
        elif own:
            # Of a first prompt the inputs get at least half, however large the schemas look.
            base = min(context, turn.prompt_tokens / 2) if fresh else context
            grown = turn.prompt_tokens - base
            if grown > 0:
                for message in turn.inputs:
                    message.tokens *= grown / own
        if turn.completion_tokens is None:
            turn.output.tokens = _message_tokens(turn.output, counter)
            turn.completion_tokens = max(1, round(turn.output.tokens))
            turn.completion_origin = counter.origin
        else:
            turn.output.tokens = float(turn.completion_tokens)
        context = float(turn.prompt_tokens)
        if not turn.dropped_output:
            context += turn.completion_tokens
    for message in trace.trailing:
        message.tokens = _message_tokens(message, counter)


def _message_tokens(message: Message, counter: Counter) -> float:
    total = counter.count(message.text) + MESSAGE_OVERHEAD_TOKENS
    if message.reasoning:
        total += counter.count(message.reasoning)
    for call in message.calls:
        total += counter.count(call.name) + counter.count(call.arguments_text)
    return float(total)


def _schema_tokens(trace: Trace, counter: Counter) -> int:
    total = 0
    for tool in trace.tools or ():
        total += counter.count(tool.name) + counter.count(tool.description)
        if tool.schema:
            total += counter.count(json.dumps(tool.schema))
    return total


def priced_turns(trace: Trace) -> list[PricedTurn]:
    """The turns as `costmodel.pte` prices them; `fill_tokens` comes first. A prompt shorter than
    what came before starts a segment of its own: a compaction or an edited history."""
    priced: list[PricedTurn] = []
    tool_tokens = 0.0
    before = 0
    for place, turn in enumerate(trace.turns):
        prompt, completion = turn.prompt_tokens or 0, turn.completion_tokens or 0
        broken = turn.new_segment or (place > 0 and _shrank(trace.turns[place - 1], prompt, before))
        if broken:
            tool_tokens = 0.0
        new_tool = sum(message.tokens for message in turn.inputs if message.role == "tool")
        tool_tokens += new_tool
        cached = turn.cached_tokens
        priced.append(
            PricedTurn(
                context_tokens=prompt,
                decode_tokens=completion,
                cached_tokens=None if cached is None else min(cached, prompt),
                new_segment=broken,
                tool_tokens=min(prompt, round(tool_tokens)),
                new_tool_tokens=min(prompt, round(new_tool)),
                dropped_tokens=_dropped(trace, place),
            )
        )
        before = prompt
    return priced


def _dropped(trace: Trace, place: int) -> int:
    """Decoded tokens of a turn that the next prompt has no room for: the server drops thinking."""
    turn = trace.turns[place]
    prompt, completion = turn.prompt_tokens or 0, turn.completion_tokens or 0
    if turn.dropped_output:
        return completion
    if place + 1 == len(trace.turns):
        return 0
    after = trace.turns[place + 1]
    following = after.prompt_tokens or 0
    if after.new_segment or following < prompt or following >= prompt + completion:
        return 0
    if turn.reasoning_tokens:
        return min(completion, turn.reasoning_tokens)
    return prompt + completion - following


def _shrank(previous: Turn, prompt: int, before: int) -> bool:
    """Whether a prompt cannot continue the one before. The answer may be missing from it (dropped
    thinking), so only the earlier prompt itself counts, with room for estimates."""
    return prompt < before * (0.98 if previous.prompt_origin == "reported" else 0.9)
