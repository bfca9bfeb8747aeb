"""Warm-up: compute the instructions that all rows share, before the rows need them.

A prompt's leading literals are the same for every row. Priming computes such a prefix with the
first
row that gets there and holds the others meanwhile; warming computes it at the start of the run,
when most engines have nothing better to do, and nobody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from planner.logical import Choose, Generate, LogicalPlan, ModelOp, Op, Prompt, Sql, Tool
from planner.physical import PhysicalPlan
from planner.stats import PlanStats
from runtime.backends.base import Message, Request
from runtime.priming import prompt_text

FEWEST_CALLS = 4


def shared_prefixes(
    plan: PhysicalPlan, stats: PlanStats, worth_chars: Mapping[str, float]
) -> list[tuple[str, Request]]:
    """For each worker, the literal prefixes that it pays to warm, as open-ended conversations.

    `worth_chars` is, by worker, the length from which sharing a prefix pays: a shorter one costs
    less than the request that would warm it. Prefixes of other prefixes are left out, and so are
    those of operators that start with the rows: their first call is no later than a warm-up.
    """
    found: dict[str, dict[str, Request]] = {}
    first = _first_calls(plan.logical)
    for op in plan.logical.walk_all():
        if not isinstance(op, Generate | Choose) or op in first:
            continue
        worker = plan.worker_of(op)
        if worker is None or not worker.prefix_cache or worker.name not in worth_chars:
            continue
        if stats.of(op).calls < FEWEST_CALLS:
            continue
        messages = _literal_messages(op.system, op.prompt)
        n_chars = sum(len(m.content) for m in messages)
        if n_chars < worth_chars[worker.name]:
            continue
        request = Request("", worker.model, messages, max_tokens=0)
        found.setdefault(worker.name, {})[prompt_text(request).rstrip("\n")] = request
    return [
        (worker, request)
        for worker, prefixes in found.items()
        for text, request in prefixes.items()
        if not any(other != text and other.startswith(text) for other in prefixes)
    ]


def _first_calls(logical: LogicalPlan) -> set[Op]:
    """The calls that wait for no other call: what rows begin with."""
    later: set[Op] = set()
    first: set[Op] = set()
    for op in logical.walk():
        waits = any(d in later for d in op.dependencies)
        calls = isinstance(op, ModelOp | Tool | Sql) or bool(op.bodies)
        if calls and not waits:
            first.add(op)
        if calls or waits:
            later.add(op)
    return first


def _literal_messages(system: Prompt | None, prompt: Prompt) -> tuple[Message, ...]:
    """The conversation up to its first reference."""
    messages: list[Message] = []
    if system is not None:
        messages.append(Message("system", system.literal_prefix))
    if system is None or not system.references:
        messages.append(Message("user", prompt.literal_prefix))
    return tuple(m for m in messages if m.content)


async def end_warming(tasks: list[asyncio.Task[int]]) -> int:
    """The tokens that were computed; what is still under way is given up."""
    for task in tasks:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    return sum(tokens for tokens in done if isinstance(tokens, int))
