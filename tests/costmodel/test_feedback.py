"""Beliefs move from what was assumed to what was seen, and say how sure they are."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.feedback import LengthBelief, ShareBelief
from costmodel.interval import Interval, summed

lengths = st.lists(st.floats(0, 1e4), min_size=1, max_size=60)


@given(prior=st.floats(0.1, 1e4), seen=lengths)
def test_a_length_lies_between_assumption_and_observation(prior: float, seen: list[float]) -> None:
    belief = LengthBelief(prior)
    for value in seen:
        belief.observe(value)
    mean = sum(seen) / len(seen)
    assert belief.mean == pytest.approx(mean, abs=1e-6)
    low, high = min(prior, mean), max(prior, mean)
    assert low - 1e-6 <= belief.expected <= high + 1e-6
    interval = belief.interval()
    assert interval.low <= interval.mid <= interval.high
    # What was seen is inside: the assumption must not push the interval past it.
    assert interval.low - 1e-6 <= mean <= interval.high + 1e-6


def test_many_observations_outweigh_the_assumption_and_narrow_the_interval() -> None:
    rng = random.Random(7)
    belief = LengthBelief(prior=128, most=256)
    widths: list[float] = []
    for n in range(1, 401):
        belief.observe(rng.gauss(40, 8))
        if n in (10, 100, 400):
            interval = belief.interval()
            widths.append(interval.high - interval.low)
            assert interval.low <= 40 <= interval.high
    assert widths[0] > widths[1] > widths[2]
    assert belief.expected == pytest.approx(40, rel=0.05)


def test_sums_alone_teach_the_mean_with_a_wide_interval() -> None:
    summed_up, one_by_one = LengthBelief(100), LengthBelief(100)
    summed_up.observe_sum(50, 50 * 40)
    for _ in range(50):
        one_by_one.observe(40)
    assert summed_up.expected == pytest.approx(one_by_one.expected)
    wide, narrow = summed_up.interval(), one_by_one.interval()
    assert wide.high - wide.low > narrow.high - narrow.low
    summed_up.observe_sum(0, 0)
    assert summed_up.count == 50


def test_nothing_seen_is_from_zero_to_the_bound() -> None:
    assert LengthBelief(128, most=256).interval() == Interval(0, 128, 256)
    assert LengthBelief(128).interval() == Interval(0, 128, 256)
    assert ShareBelief(0.5).interval() == Interval(0, 0.5, 1)
    assert (LengthBelief(3, strength=0).expected, ShareBelief(0.3, strength=0).expected) == (3, 0.3)


@given(passed=st.lists(st.booleans(), min_size=1, max_size=200), prior=st.floats(0, 1))
def test_a_share_stays_a_share(passed: list[bool], prior: float) -> None:
    belief = ShareBelief(prior)
    for each in passed:
        belief.observe(each)
    interval = belief.interval()
    assert 0 <= interval.low <= belief.expected <= interval.high <= 1
    assert interval.low <= sum(passed) / len(passed) <= interval.high


def test_wilson_by_hand() -> None:
    belief = ShareBelief(0.1, strength=0)
    belief.observe_counts(10, 100)
    interval = belief.interval()
    assert (interval.low, interval.high) == (
        pytest.approx(0.0552, abs=1e-4),
        pytest.approx(0.1744, abs=1e-4),
    )


@pytest.mark.parametrize("counts", [(-1, 5), (6, 5)])
def test_impossible_counts_are_refused(counts: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="impossible"):
        ShareBelief().observe_counts(*counts)


def test_intervals_add_and_multiply() -> None:
    total = summed([Interval(1, 2, 3), Interval.exact(4), Interval.within(10, 0.5, 2)])
    assert total == Interval(10, 16, 27)
    assert Interval(1, 2, 3).times(Interval(2, 2, 4)) == Interval(2, 4, 12)
    assert Interval(1, 2, 3).scaled(2) == Interval(2, 4, 6)
    assert Interval.exact(4).is_exact
    assert summed([]).to_json() == {"low": 0.0, "expected": 0.0, "high": 0.0}
