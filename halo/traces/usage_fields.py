"""Token counts as providers write them, turned into one convention.

`prompt` includes cached tokens and `completion` includes thinking. What a provider leaves out is
None. Each function notes what it had to decide in `notes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

MOST_TOKENS = 100_000_000
"""A count above this in one call is absurd."""


@dataclass(slots=True)
class Counts:
    """Tokens of one call."""

    prompt: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    completion: int | None = None
    reasoning: int | None = None
    notes: list[str] = field(default_factory=list[str])


def count(value: Any, name: str, notes: list[str]) -> int | None:
    """A token count, or None; an impossible one is noted and unknown."""
    if type(value) is int and 0 <= value <= MOST_TOKENS:
        return value
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):  # 64-bit integers are strings in OTLP JSON
        try:
            value = int(value)
        except ValueError:
            notes.append(f"{name} is {value[:20]!r}, not a number: taken as unknown")
            return None
    if not isinstance(value, int | float) or value != value or value in (float("inf"),):
        notes.append(f"{name} is not a number: taken as unknown")
        return None
    if value < 0 or value > MOST_TOKENS or value != int(value):
        notes.append(f"{name} is {value!r}, which no call can have: taken as unknown")
        return None
    return int(value)


def _inner(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = usage.get(name)
    if value is None:
        return {}
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def read_usage(usage: Any) -> Counts:
    """Counts of a provider's usage object: OpenAI chat and responses, DeepSeek, Anthropic, or what
    LangChain and Inspect make of them. The names of the fields tell the convention, and a total,
    where there is one, decides whether cached tokens are inside the prompt count."""
    if not isinstance(usage, Mapping):
        return Counts()
    fields = cast("Mapping[str, Any]", usage)
    if "prompt_tokens" in fields or "completion_tokens" in fields:
        return _openai_chat(fields)
    if "cache_read_input_tokens" in fields or "cache_creation_input_tokens" in fields:
        return _anthropic(fields)
    if "input_tokens_details" in fields or "output_tokens_details" in fields:
        return _openai_responses(fields)
    if "input_token_details" in fields:
        details = _inner(fields, "input_token_details")
        return _summed(
            fields, details.get("cache_read"), details.get("cache_creation"),
            _inner(fields, "output_token_details").get("reasoning"), excluded_by_default=False,
        )  # fmt: skip
    if "input_tokens_cache_read" in fields or "input_tokens_cache_write" in fields:
        return _summed(
            fields, fields.get("input_tokens_cache_read"), fields.get("input_tokens_cache_write"),
            fields.get("reasoning_tokens"), excluded_by_default=True,
        )  # fmt: skip
    if "input_tokens" in fields:
        return _summed(
            fields, None, None, fields.get("reasoning_tokens"), excluded_by_default=False
        )
    return Counts()


def _openai_chat(usage: Mapping[str, Any]) -> Counts:
    found = Counts()
    notes = found.notes
    found.prompt = count(usage.get("prompt_tokens"), "prompt_tokens", notes)
    found.completion = count(usage.get("completion_tokens"), "completion_tokens", notes)
    details = _inner(usage, "prompt_tokens_details")
    cached = details.get("cached_tokens")
    if cached is None:
        cached = usage.get("prompt_cache_hit_tokens")
    if cached is None:
        cached = usage.get("cache_read_input_tokens")  # gateways to Anthropic
    found.cached = count(cached, "cached_tokens", notes)
    found.cache_write = count(details.get("cache_write_tokens"), "cache_write_tokens", notes)
    found.reasoning = count(
        _inner(usage, "completion_tokens_details").get("reasoning_tokens"),
        "reasoning_tokens", notes,
    )  # fmt: skip
    return _checked(found)


def _openai_responses(usage: Mapping[str, Any]) -> Counts:
    found = Counts()
    notes = found.notes
    details = _inner(usage, "input_tokens_details")
    found.prompt = count(usage.get("input_tokens"), "input_tokens", notes)
    found.completion = count(usage.get("output_tokens"), "output_tokens", notes)
    found.cached = count(details.get("cached_tokens"), "cached_tokens", notes)
    found.cache_write = count(details.get("cache_write_tokens"), "cache_write_tokens", notes)
    found.reasoning = count(
        _inner(usage, "output_tokens_details").get("reasoning_tokens"), "reasoning_tokens", notes
    )
    return _checked(found)


def _anthropic(usage: Mapping[str, Any]) -> Counts:
    """Cached tokens and cache writes are outside `input_tokens`, which may be 0 or 1."""
    found = Counts()
    notes = found.notes
    fresh = count(usage.get("input_tokens"), "input_tokens", notes)
    found.cached = count(usage.get("cache_read_input_tokens"), "cache_read_input_tokens", notes)
    found.cache_write = count(
        usage.get("cache_creation_input_tokens"), "cache_creation_input_tokens", notes
    )
    if fresh is not None:
        found.prompt = fresh + (found.cached or 0) + (found.cache_write or 0)
    found.completion = count(usage.get("output_tokens"), "output_tokens", notes)
    return _checked(found)


def _summed(
    usage: Mapping[str, Any], cached: Any, written: Any, reasoning: Any, *,
    excluded_by_default: bool,
) -> Counts:  # fmt: skip
    """A convention that differs between sources: the total decides, or the default with a note."""
    found = Counts()
    notes = found.notes
    given = count(usage.get("input_tokens"), "input_tokens", notes)
    found.completion = count(usage.get("output_tokens"), "output_tokens", notes)
    found.cached = count(cached, "cached tokens", notes)
    found.cache_write = count(written, "cache write tokens", notes)
    found.reasoning = count(reasoning, "reasoning_tokens", notes)
    total = count(usage.get("total_tokens"), "total_tokens", notes)
    if given is None:
        return found
    beside = (found.cached or 0) + (found.cache_write or 0)
    excluded = excluded_by_default
    if beside and total is not None and found.completion is not None:
        if total == given + found.completion:
            excluded = False
        elif total == given + beside + found.completion:
            excluded = True
        else:
            notes.append("total_tokens fits neither convention of cached tokens")
    elif beside:
        side = "outside" if excluded else "inside"
        notes.append(f"no total says whether cached tokens are inside the prompt; taken as {side}")
    found.prompt = given + beside if excluded else given
    return _checked(found)


def _checked(found: Counts) -> Counts:
    if found.cached is not None and found.prompt is not None and found.cached > found.prompt:
        found.notes.append("cached tokens exceed the prompt count: taken as counted beside it")
        found.prompt += found.cached
    if (
        found.reasoning is not None
        and found.completion is not None
        and found.reasoning > found.completion
    ):
        found.notes.append("reasoning tokens exceed the completion: taken as counted beside it")
        found.completion += found.reasoning
    return found
