"""A circuit breaker: stop asking who does not answer, look again now and then."""

from __future__ import annotations

from runtime.errors import BackendError, ContextOverflowError, EngineUnreachableError, PromptError

FAILURES_TO_OPEN = 8
"""Failures in a row, of the kind that another attempt may mend."""
REFUSALS_TO_OPEN = 40
"""Calls in a row refused for good: then it is not the rows (wrong key, wrong model, wrong
route)."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class CircuitBreaker:
    """Closed: calls may go. Open: they may not, until a health check succeeds; checks are due after
    pauses that double. Times are seconds on the caller's clock.

    Example:
        >>> breaker = CircuitBreaker()
        >>> breaker.failed(EngineUnreachableError("refused", backend="x", retryable=True), 10.0)
        >>> breaker.closed, breaker.check_due(10.0), breaker.check_due(10.5)
        (False, False, True)
        >>> breaker.succeeded()
        >>> breaker.closed
        True
    """

    def __init__(self) -> None:
        self.closed = True
        self.reason = ""
        self._failures = 0
        self._refusals = 0
        self._pause_s = FIRST_PAUSE_S
        self._check_at_s = 0.0

    def succeeded(self) -> None:
        """A call or a health check was answered."""
        self.closed = True
        self.reason = ""
        self._failures = self._refusals = 0
        self._pause_s = FIRST_PAUSE_S

    def failed(self, error: BackendError, now_s: float) -> None:
        """A call failed. A row's own fault (a prompt that is too long) says nothing about the
        server; a server that is not there needs no second opinion."""
        if isinstance(error, ContextOverflowError | PromptError):
            return
        if error.retryable:
            self._failures += 1
        else:
            self._refusals += 1
        if (
            isinstance(error, EngineUnreachableError)
            or self._failures >= FAILURES_TO_OPEN
            or self._refusals >= REFUSALS_TO_OPEN
        ):
            self.open(str(error), now_s)

    def open(self, reason: str, now_s: float) -> None:
        """Stop calls; the first check is due after a pause."""
        if self.closed:
            self.closed = False
            self.reason = reason
            self._check_at_s = now_s + self._pause_s

    def check_due(self, now_s: float) -> bool:
        """Whether it is time for a health check of an open breaker."""
        return not self.closed and now_s >= self._check_at_s

    def check_failed(self, now_s: float) -> None:
        """A health check failed: the next one is due later."""
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)
        self._check_at_s = now_s + self._pause_s

    @property
    def refuses_all(self) -> bool:
        """Whether the breaker is open because every call was refused for good: waiting will not
        help."""
        return not self.closed and self._refusals >= REFUSALS_TO_OPEN
