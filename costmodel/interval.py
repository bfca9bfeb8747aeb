"""A number that is not known exactly: low, expected, high."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """`low <= mid <= high`. Sums take ends with ends: errors are taken to go the same way, so that
    an interval is never too narrow for want of independence.

    Example:
        >>> Interval(1, 2, 4) + Interval.exact(10)
        Interval(low=11, mid=12, high=14)
    """

    low: float = 0.0
    mid: float = 0.0
    high: float = 0.0

    @classmethod
    def exact(cls, value: float) -> Interval:
        return cls(value, value, value)

    @classmethod
    def within(cls, value: float, low_factor: float, high_factor: float) -> Interval:
        """`value`, from `low_factor` to `high_factor` times it."""
        return cls(value * low_factor, value, value * high_factor)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.mid + other.mid, self.high + other.high)

    def times(self, other: Interval) -> Interval:
        """The product of two numbers that are not negative."""
        return Interval(self.low * other.low, self.mid * other.mid, self.high * other.high)

    def scaled(self, factor: float) -> Interval:
        return Interval(self.low * factor, self.mid * factor, self.high * factor)

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    def to_json(self) -> dict[str, float]:
        return {"low": self.low, "expected": self.mid, "high": self.high}


def summed(intervals: Iterable[Interval]) -> Interval:
    """The sum; zero for none."""
    total = Interval()
    for interval in intervals:
        total += interval
    return total
