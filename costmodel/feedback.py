"""What a run learns from its own first rows: how long answers are, which share of rows passes.

A belief starts at an assumption that counts as a few observations and moves to the observed mean
as they come in. Pure statistics: planner, executor and reports feed and read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from costmodel.interval import Interval

Z_95 = 1.96
"""Standard deviations of a two-sided interval of 95 %."""
PRIOR_STRENGTH = 4.0
"""Observations that an assumption counts as."""


@dataclass(slots=True)
class LengthBelief:
    """The mean of a positive quantity (answer tokens, items, rounds) from an assumed mean and
    observations.

    Attributes:
        prior: the assumed mean.
        strength: how many observations the assumption counts as.
        most: a bound that no observation exceeds (`max_tokens`); None for none.
        count, mean: of the observations.
    """

    prior: float
    strength: float = PRIOR_STRENGTH
    most: float | None = None
    count: float = 0.0
    mean: float = 0.0
    _squares: float = field(default=0.0, repr=False)
    _spread_known: bool = field(default=True, repr=False)

    def observe(self, value: float) -> None:
        """One observation (Welford's update: no cancellation)."""
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self._squares += step * (value - self.mean)

    def observe_sum(self, count: float, total: float) -> None:
        """`count` observations of which only the sum is known: their spread is taken to be as
        large as their mean."""
        if count <= 0:
            return
        self.mean = (self.mean * self.count + total) / (self.count + count)
        self.count += count
        self._spread_known = False

    @property
    def expected(self) -> float:
        """The assumption and the observations, weighted by how many they count as."""
        weight = self.strength + self.count
        if weight == 0:
            return self.prior
        return (self.strength * self.prior + self.count * self.mean) / weight

    @property
    def deviation(self) -> float:
        """Standard deviation of one observation; the mean where the spread is not known."""
        if not self._spread_known or self.count < 2:
            return self.mean if self.count else self.prior
        return math.sqrt(self._squares / (self.count - 1))

    def interval(self) -> Interval:
        """95 % for the mean: from nothing but the assumption, 0 to twice it (or the bound); else
        normal around the expectation, with the assumption counting as observations."""
        if self.count == 0:
            high = 2 * self.prior if self.most is None else self.most
            return Interval(0.0, self.prior, max(self.prior, high))
        half = Z_95 * self.deviation / math.sqrt(self.count)
        # How far the assumption still pulls the expectation away from what was seen.
        pull = abs(self.expected - self.mean)
        high = self.expected + half + pull
        if self.most is not None:
            high = min(high, max(self.most, self.expected))
        return Interval(max(0.0, self.expected - half - pull), self.expected, high)


@dataclass(slots=True)
class ShareBelief:
    """A share (rows that pass a filter, take a branch, fail) from an assumed share and counts.

    Attributes:
        prior: the assumed share.
        strength: how many rows the assumption counts as.
        passed, seen: the counts.
    """

    prior: float = 0.5
    strength: float = PRIOR_STRENGTH
    passed: float = 0.0
    seen: float = 0.0

    def observe(self, passed: bool) -> None:
        self.observe_counts(1.0 if passed else 0.0, 1.0)

    def observe_counts(self, passed: float, seen: float) -> None:
        if not 0 <= passed <= seen:
            raise ValueError(f"{passed} of {seen} passed; that is impossible")
        self.passed += passed
        self.seen += seen

    @property
    def expected(self) -> float:
        weight = self.strength + self.seen
        if weight == 0:
            return self.prior
        return (self.strength * self.prior + self.passed) / weight

    def interval(self) -> Interval:
        """95 % by Wilson's score on the counts, widened to hold the expectation; 0 to 1 before
        anything was seen."""
        if self.seen == 0:
            return Interval(0.0, self.prior, 1.0)
        n, p = self.seen, self.passed / self.seen
        z2 = Z_95 * Z_95
        center = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        # The ends hold what was seen; rounding must not say otherwise.
        low, high = min(p, max(0.0, center - half)), max(p, min(1.0, center + half))
        return Interval(min(low, self.expected), self.expected, max(high, self.expected))
