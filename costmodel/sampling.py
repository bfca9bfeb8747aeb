"""Which batches a calibration measures: sweeps to fit, random mixtures to judge.

Sizes follow from what the engine can do in the time there is: a probe tells tokens a second, and
every batch stays within `tokens` of work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.errors import ProfileError


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call to make: new prompt tokens behind a warmed prefix (its index, or None), and the answer
    tokens asked for at most."""

    new_tokens: int
    answer_tokens: int
    prefix: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A closed batch to measure; `prefixes` (tokens each) are computed first, unmeasured."""

    name: str
    calls: tuple[PlannedCall, ...]
    prefixes: tuple[int, ...] = ()
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What batches must respect.

    Attributes:
        max_calls: calls in the engine at once.
        context_tokens: prompt and answer of one call together, at most.
        tokens: prompt tokens that one batch computes, at most.
        answer_tokens: longest answer.
    """

    max_calls: int = 32
    context_tokens: int = 4096
    tokens: int = 4096
    answer_tokens: int = 32

    def __post_init__(self) -> None:
        for name in ("max_calls", "context_tokens", "tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise ProfileError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def longest_prompt(self) -> int:
        return max(16, min(self.tokens, self.context_tokens - self.answer_tokens))


def sweep_batches(limits: Limits) -> tuple[PlannedBatch, ...]:
    """Prompts by length, by number and behind hits; decodes by number and by context."""
    batches: list[PlannedBatch] = []
    for n in _powers(16, limits.longest_prompt):
        batches.append(PlannedBatch(f"prefill {n}", (PlannedCall(n, 1),)))
    for count in _powers(4, limits.max_calls):
        n = max(16, min(limits.longest_prompt, limits.tokens // 2 // count))
        batches.append(PlannedBatch(f"prefill {count} x {n}", (PlannedCall(n, 1),) * count))
    hit = limits.longest_prompt // 2
    for n in (16, min(256, max(16, hit // 2))):
        for count in (1, min(8, limits.max_calls)):
            calls = (PlannedCall(n, 1, prefix=0),) * count
            batches.append(PlannedBatch(f"prefill {count} x {n} behind {hit}", calls, (hit,)))
    answer = limits.answer_tokens
    for count in _powers(1, limits.max_calls):
        calls = (PlannedCall(32, answer),) * count
        batches.append(PlannedBatch(f"decode {count} at 32", calls))
    for count in (1, min(8, limits.max_calls), limits.max_calls):
        calls = (PlannedCall(16, answer, prefix=0),) * count
        batches.append(PlannedBatch(f"decode {count} behind {hit}", calls, (hit,)))
    return tuple(batches)


def mixed_batches(count: int, limits: Limits, rng: random.Random) -> tuple[PlannedBatch, ...]:
    """Held-out mixtures: random numbers of calls, prompt lengths, hits and answer lengths, each
    spread evenly over orders of magnitude."""
    batches: list[PlannedBatch] = []
    while len(batches) < count:
        size = _log_uniform(rng, 1, limits.max_calls)
        longest = _log_uniform(rng, 24, max(24, limits.longest_prompt // 2))
        answers = _log_uniform(rng, min(2, limits.answer_tokens), limits.answer_tokens)
        n_prefixes = rng.choice((0, 0, 1, 1, 2))
        prefixes = tuple(
            _log_uniform(rng, 64, max(64, limits.longest_prompt // 2)) for _ in range(n_prefixes)
        )
        calls = tuple(
            PlannedCall(
                _log_uniform(rng, 16, longest),
                rng.randint(1, answers),
                rng.randrange(n_prefixes) if n_prefixes and rng.random() < 0.7 else None,
            )
            for _ in range(size)
        )
        if sum(call.new_tokens for call in calls) <= limits.tokens:
            batches.append(PlannedBatch(f"mixed {len(batches)}", calls, prefixes, held_out=True))
    return tuple(batches)


def planned_tokens(batches: Sequence[PlannedBatch]) -> tuple[int, int]:
    """(prompt tokens computed, answer steps) of all batches: for an estimate of the time."""
    prompts = sum(
        sum(call.new_tokens for call in batch.calls) + sum(batch.prefixes) for batch in batches
    )
    steps = sum(max(call.answer_tokens for call in batch.calls) for batch in batches)
    return prompts, steps


def _powers(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first ... and last; last alone when it is smaller."""
    sizes: list[int] = []
    n = first
    while n < last:
        sizes.append(n)
        n *= 2
    return [*sizes, last]


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(max(low, high)))))
