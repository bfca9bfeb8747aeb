"""How many calls a lane lets in, and how far ahead."""

from __future__ import annotations

import asyncio

import pytest

from runtime.backends.base import Capabilities, Message, Request
from runtime.backends.simulated import SimulatedBackend
from runtime.clock import LoopClock, new_event_loop
from runtime.fleet.replicas import together
from runtime.lane import LEAST_AHEAD, LOOK_AHEAD, Lane, Ticket


def lane(capabilities: Capabilities) -> Lane:
    return Lane(SimulatedBackend("m", LoopClock(), capabilities=capabilities), prime=True)


def question(group: int, number: int) -> Request:
    """One of many about the same long document."""
    text = f"Document {group}. {f'Sentence of document {group}. ' * 40} Question {number}?"
    return Request("", "m", (Message("user", text),), priority=100 * group + number)


@pytest.mark.parametrize("slots", [2, 20])
def test_held_calls_bound_how_far_later_ones_go_ahead(slots: int) -> None:
    """Otherwise the prefixes of far later calls would push each other out of the cache."""
    groups, size = 30, 10
    ahead = max(LOOK_AHEAD * slots, slots + LEAST_AHEAD)
    entered: list[tuple[int, Ticket]] = []

    async def main() -> None:
        way = lane(Capabilities(slots, prefix_cache=True, prime_prefix=True))

        async def enter(group: int, number: int) -> None:
            entered.append((group, await way.enter(question(group, number))))

        calls = [asyncio.ensure_future(enter(g, n)) for g in range(groups) for n in range(size)]
        await asyncio.sleep(0.1)
        # One of each group is in the engine; the others of these groups are held.
        assert len(entered) == min(slots, -(-ahead // size))
        assert [group for group, _ in entered] == list(range(len(entered)))
        # A prefix is there: its group goes in before any further one begins.
        group, first = entered[0]
        way.prefilled(first)
        await asyncio.sleep(0.1)
        free = slots - min(slots, -(-ahead // size))
        assert [g for g, _ in entered].count(group) == 1 + min(size - 1, free)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        runner.run(main())


def test_replicas_take_what_they_take_together() -> None:
    here, there = Capabilities(8, machine="here"), Capabilities(8, machine="there")
    assert together([here, here]).max_in_flight == 16
    assert together([here, here]).machine == "here" and not together([here, there]).machine


def test_a_cache_is_as_large_as_its_tokens_are_long() -> None:
    """Plans count tokens of four bytes."""
    assert Capabilities(1).cache_estimated_tokens is None
    assert Capabilities(1, cache_tokens=1000).cache_estimated_tokens == 1000
    bytewise = Capabilities(1, cache_tokens=1000, bytes_per_token=1.0)
    assert bytewise.cache_estimated_tokens == 250
