"""Limits of a server that others share: so many requests and tokens a minute, and a pause when it
says so.

Two mechanisms, because limits come in two ways. What is known (set by the user, or announced in a
header) is kept by token buckets, so that the limit is not run into. What is not known shows as 429:
then the number of calls at once is halved, grows again slowly, and nothing is sent before the
moment that the server named.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime.clock import Clock

BURST_S = 2.0
"""A bucket holds this many seconds' worth: servers count over short windows as well."""
DECREASE = 0.5
LEAST = 1.0


class TokenBucket:
    """So much a minute, without bursts of more than `BURST_S`.

    Example:
        >>> bucket = TokenBucket(60.0, now_s=0.0)
        >>> [bucket.take(1, 0.0) for _ in range(3)]
        [0.0, 0.0, 1.0]
        >>> bucket.take(1, 10.0)
        0.0
    """

    def __init__(self, per_minute: float, now_s: float) -> None:
        self._per_s = per_minute / 60.0
        self._most = max(1.0, self._per_s * BURST_S)
        self._have = self._most
        self._at_s = now_s

    def take(self, amount: float, now_s: float) -> float:
        """Take `amount` and return the seconds to wait before using it. More than a bucket holds
        can be taken: the debt is what later takers wait for as well."""
        self._have = min(self._most, self._have + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        self._have -= amount
        # An amount larger than the bucket needs only a full bucket, or it could never go.
        missing = min(0.0, self._have + max(0.0, amount - self._most))
        return max(0.0, -missing / self._per_s)

    def correct(self, amount: float) -> None:
        """Take `amount` more (or give back) than was estimated, without waiting."""
        self._have -= amount


class RateLimit:
    """Lets calls to one server go when its limits allow.

    Args:
        requests_per_minute, tokens_per_minute: None when not known; then the server's headers may
            tell.
        most: calls at once at most.

    Attributes:
        at_once: calls at once that the server seems to bear.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        most: int = 64,
    ) -> None:
        self._clock = clock
        self._most = float(max(1, most))
        self._given = (requests_per_minute, tokens_per_minute)
        self._announced: tuple[float | None, float | None] = (None, None)
        self._requests: TokenBucket | None = None
        self._tokens: TokenBucket | None = None
        self._closed_until_s = 0.0
        self._decreased_at_s = float("-inf")
        self._at_once = self._most
        self._made = False

    @property
    def at_once(self) -> int:
        return max(1, int(self._at_once))

    async def wait(self, tokens: int) -> None:
        """Until a call of about `tokens` tokens may be sent."""
        if not self._made:
            self._make(*self._given)
        now_s = self._clock.now_s()
        waits_s = [
            bucket.take(amount, now_s)
            for bucket, amount in ((self._requests, 1), (self._tokens, tokens))
            if bucket is not None
        ]
        until_s = now_s + max(waits_s, default=0.0)
        # The server may ask for a pause while this call waits for its turn.
        while (wait_s := max(until_s, self._closed_until_s) - self._clock.now_s()) > 0:
            await self._clock.sleep_s(wait_s)

    def succeeded(self, headers: Mapping[str, str], tokens_over: int) -> bool:
        """A call was answered; it used `tokens_over` more tokens than estimated. Returns whether
        `at_once` changed."""
        if self._tokens is not None:
            self._tokens.correct(tokens_over)
        self._read(headers)
        before = self.at_once
        # One more at once for each round of calls.
        self._at_once = min(self._most, self._at_once + 1.0 / self._at_once)
        return self.at_once != before

    def refused(self, retry_after_s: float | None, headers: Mapping[str, str]) -> bool:
        """A call was refused with 429 or 503. Returns whether `at_once` changed."""
        now_s = self._clock.now_s()
        pause_s = retry_after_s if retry_after_s is not None else 1.0
        self._closed_until_s = max(self._closed_until_s, now_s + pause_s)
        self._read(headers)
        # Calls that were sent together are refused together: that is one event, not many.
        if now_s < self._decreased_at_s + max(1.0, pause_s):
            return False
        self._decreased_at_s = now_s
        before = self.at_once
        self._at_once = max(LEAST, self._at_once * DECREASE)
        return self.at_once != before

    def _read(self, headers: Mapping[str, str]) -> None:
        """Take over limits that the server announces, where the user has set none."""
        if all(limit is not None for limit in self._given):
            return
        requests = _number(headers.get("x-ratelimit-limit-requests"))
        tokens = _number(headers.get("x-ratelimit-limit-tokens"))
        if (requests, tokens) == self._announced:
            return
        self._announced = (requests, tokens)
        self._make(self._given[0] or requests, self._given[1] or tokens)

    def _make(self, requests: float | None, tokens: float | None) -> None:
        self._made = True
        now_s = self._clock.now_s()
        self._requests = TokenBucket(requests, now_s) if requests else None
        self._tokens = TokenBucket(tokens, now_s) if tokens else None


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return number if number is not None and number > 0 else None
