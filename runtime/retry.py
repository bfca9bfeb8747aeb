"""When to ask an engine again: exponential backoff with a jitter that is the same on every run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from runtime.errors import BackendError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `max_attempts` attempts; waits of `base_s`, doubling up to `max_s`, each shortened by
    up to half so that calls that failed together do not return together.

    Example:
        >>> policy = RetryPolicy(max_attempts=3)
        >>> 0.25 <= policy.delay_s("a", 1) <= 0.5 <= policy.delay_s("a", 2) <= 1.0
        True
        >>> policy.delay_s("a", 1) == policy.delay_s("b", 1)
        False
    """

    max_attempts: int = 4
    base_s: float = 0.5
    max_s: float = 30.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts}; it must be at least 1")

    def again(self, error: BackendError, attempt: int) -> bool:
        """Whether to try again after `error` in attempt number `attempt` (from 1)."""
        return error.retryable and attempt < self.max_attempts

    def delay_s(self, key: str, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt` (from 1) of the call `key`."""
        digest = hashlib.sha256(f"{key}/{attempt}".encode()).digest()
        jitter = int.from_bytes(digest[:8], "big") / 2**64
        # The exponent is bounded so that it cannot overflow a float.
        return min(self.max_s, self.base_s * 2.0 ** min(attempt - 1, 60)) * (1.0 - jitter / 2)
