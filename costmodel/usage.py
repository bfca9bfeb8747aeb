"""What one piece of work used: the same words for estimates, engines, traces and reports."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or many model calls.

    Attributes:
        input_tokens: prompt tokens, cached ones included.
        output_tokens: decoded tokens.
        cached_tokens: prompt tokens that the engine says it read from its prefix cache; None when
            the engine does not report them. None is never the same as zero.
        predicted_cached_tokens: prompt tokens that Halo's model of the prefix cache expects to have
            been reused; None when nothing predicts them. Never shown as measured.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    predicted_cached_tokens: int | None = None

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            _add(self.cached_tokens, other.cached_tokens),
            _add(self.predicted_cached_tokens, other.predicted_cached_tokens),
        )


def _add(left: int | None, right: int | None) -> int | None:
    if left is None:
        return right
    return left if right is None else left + right


@dataclass(slots=True)
class OpMetrics:
    """What one operator did, across rows: EXPLAIN ANALYZE puts it beside the estimate.

    Attributes:
        requested: uses of the operator's answer, one a row (more inside loops and maps).
        made: calls sent to an engine or a tool, retries not counted.
        shared: uses answered by an equal call of the same batch.
        replayed: uses answered by what an earlier process of this run recorded.
        retries, errors: attempts after the first; uses that ended in an error.
        kept: of a filter, the rows among `requested` for which its predicate was true.
        busy_s: seconds of the made calls, summed (they overlap).
        usage: tokens of the made calls.
    """

    requested: int = 0
    made: int = 0
    shared: int = 0
    replayed: int = 0
    retries: int = 0
    errors: int = 0
    kept: int = 0
    busy_s: float = 0.0
    usage: Usage = field(default_factory=Usage)
