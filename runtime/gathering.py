"""Gathering: let calls that become ready at nearly the same time into an engine together.

An engine that computes prompts before it goes on decoding (SGLang does, unless it mixes both) takes
a step for the prompts that wait, and every running request waits for that step. A step with few
prompt tokens takes nearly as long as one with many: reading the weights costs the same. Calls that
trickle in one by one so cost their neighbours a step each; calls that come together cost one, and
since they began together they end together, and what follows them is ready together again.

Waiting for company has a price too: the calls that wait decode later. So it is short, and ends as
soon as the prompts fill a step.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatherRule:
    """How long ready calls wait for company.

    Attributes:
        pause_s: until no call has become ready for this long, nobody goes: answers of requests that
            ended in the same step arrive one after the other.
        longest_s: nobody waits longer.
        enough_tokens: prompt tokens to compute from which a step is worth its time; calls that have
            these between them wait for the pause only.
    """

    pause_s: float
    longest_s: float
    enough_tokens: int


class Gathering:
    """When the calls that wait for an engine may go."""

    def __init__(self, rule: GatherRule) -> None:
        self._rule = rule
        self._first_s = 0.0
        self._last_s = 0.0
        self._tokens = 0
        self._calls = 0

    def arrived(self, tokens: int, now_s: float) -> None:
        """A call with `tokens` prompt tokens to compute is ready."""
        if not self._calls:
            self._first_s = now_s
        self._last_s = now_s
        self._calls += 1
        self._tokens += tokens

    def left(self) -> None:
        """Those that waited went, as far as there was room: a new group begins."""
        self._calls = self._tokens = 0

    def wait_s(self, now_s: float, *, idle: bool) -> float:
        """Seconds until the group may go, unless more becomes ready; 0 when it may go now. An
        engine that is `idle` loses time while others wait for company."""
        if not self._calls:
            return 0.0
        rule = self._rule
        go_s = self._last_s + rule.pause_s
        if not idle and self._tokens < rule.enough_tokens:
            go_s = self._first_s + rule.longest_s
        return max(0.0, min(go_s, self._first_s + rule.longest_s) - now_s)
