"""How many requests to have in a server at once: its own queue short, its batch full.

A server runs as many requests as its KV pool holds and queues the rest. Its queue should be long
enough that no prefill step starves, and no longer: what waits there can no longer be reordered by
the plan, and past 128 waiting requests SGLang's longest-prefix order turns into arrival order.

A server that keeps the order of priorities keeps the plan's order by itself: there the queue may be
long, since requests that trickle in cost a prefill step each, which every running one waits for. It
is short only while the KV pool is nearly full, when what runs would be thrown out for what comes.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_WAITING = 128
MOST_WAITING_IN_ORDER = 1024
NEARLY_FULL = 0.9
LEAST_WAITING = 8
LEAST_IN_FLIGHT = 16
STEPS_AHEAD = 2
"""Prefill steps' worth of tokens to keep waiting: one runs, the next must not have to be sent."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a server says it is doing.

    Attributes:
        waiting_tokens: prompt tokens of waiting requests that the cache does not have; None when
            the server does not say.
        cache_usage: used share of the KV pool, 0 to 1.
    """

    running: int
    waiting: int
    waiting_tokens: int | None = None
    cache_usage: float = 0.0
    cache_hit_rate: float = 0.0


class Admission:
    """The number of requests to have in one server, from what it reports.

    Args:
        keeps_order: the server runs waiting requests in the order of their priorities.

    Example:
        >>> admission = Admission(most=512, chunk_tokens=8192)
        >>> admission.limit
        256
        >>> admission.observe(Load(running=100, waiting=150, waiting_tokens=150_000), in_flight=250)
        117
        >>> admission.observe(Load(running=117, waiting=0), in_flight=117)
        175
    """

    def __init__(
        self, *, most: int, chunk_tokens: int = 8192, start: int = 256, keeps_order: bool = False
    ) -> None:
        self.most = max(1, most)
        self.limit = self.most if keeps_order else min(self.most, start)
        self._tokens_ahead = STEPS_AHEAD * chunk_tokens
        self._keeps_order = keeps_order

    def observe(self, load: Load, in_flight: int) -> int:
        """The new limit. `in_flight` is what this client has sent and not got back."""
        if load.waiting == 0:
            # Its batch may have room. Only a client that uses its limit learns anything from that.
            if in_flight >= self.limit:
                self.limit = min(self.most, max(self.limit + LEAST_IN_FLIGHT, self.limit * 3 // 2))
            return self.limit
        if self._keeps_order and load.cache_usage < NEARLY_FULL:
            self.limit = min(self.most, load.running + MOST_WAITING_IN_ORDER)
            return self.limit
        tokens_each = (
            max(1, load.waiting_tokens // load.waiting) if load.waiting_tokens is not None else 512
        )
        # Rounded up: a single long prompt is one request.
        ahead = -(-self._tokens_ahead // tokens_each)
        ahead = min(MOST_WAITING, max(LEAST_WAITING, ahead))
        self.limit = min(self.most, max(LEAST_IN_FLIGHT, load.running + ahead))
        return self.limit
