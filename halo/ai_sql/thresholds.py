"""Thresholds of a model cascade, learnt from a sample with a guarantee.

A cheap model scores every input from 0 to 100; on a uniform sample the trusted model answers too.
Scores at or above `accept` are taken as yes, scores below `reject` as no, and what lies between is
asked of the trusted model. The thresholds are chosen so that, with probability `confidence` over
the draw of the sample, the answers have at least the wished precision and recall, both measured
against the trusted model.

The bounds are those of Clopper and Pearson (Biometrika 26, 1934) for a binomial proportion, which
also hold, with room to spare, for a sample drawn without replacement. The candidates are fixed
before any answer of the trusted model is looked at (quantiles of the cheap scores of all inputs),
and the error probability is divided among them (Bonferroni), so the guarantee holds for whichever
is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MAX_SCORE = 100
CANDIDATES = 8
ACCEPT_NONE, REJECT_NONE = MAX_SCORE + 1, 0


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Scores at or above `accept` are yes, below `reject` no."""

    accept: int = ACCEPT_NONE
    reject: int = REJECT_NONE


def learn_thresholds(
    population: Mapping[int, int],
    sample: Mapping[int, tuple[int, int]],
    *,
    precision: float,
    recall: float,
    confidence: float,
) -> Thresholds:
    """The thresholds that spare the trusted model most calls within the guarantee.

    Args:
        population: inputs by cheap score.
        sample: (inputs, of them those that the trusted model says yes to) by cheap score.
        precision, recall: the least that the answers may have, between 0 and 1.
        confidence: the probability with which both hold.
    """
    total = sum(population.values())
    seen = sum(n for n, _ in sample.values())
    if not total or not seen:
        return Thresholds()
    candidates = _candidates(population, total)
    error = (1.0 - confidence) / 2
    accept = _accept(candidates, sample, precision, error / len(candidates))
    reject = _reject(candidates, population, sample, recall, error)
    return Thresholds(accept, min(reject, accept))


def _candidates(population: Mapping[int, int], total: int) -> list[int]:
    """Quantiles of the cheap scores, ascending, without repetition."""
    found: list[int] = []
    below, next_share = 0, 1
    for score in sorted(population):
        while next_share <= CANDIDATES and below + population[score] > (
            total * next_share / (CANDIDATES + 1)
        ):
            if not found or found[-1] != score:
                found.append(score)
            next_share += 1
        below += population[score]
    return found or [min(population)]


def _accept(
    candidates: Sequence[int], sample: Mapping[int, tuple[int, int]], precision: float, error: float
) -> int:
    """The lowest candidate above which the share of yes is surely at least `precision`: what is
    accepted has that precision, and what is asked is right, so the whole has it."""
    for threshold in candidates:
        n = sum(count for score, (count, _) in sample.items() if score >= threshold)
        yes = sum(count for score, (_, count) in sample.items() if score >= threshold)
        # The lower bound is at least `precision`, without solving for it.
        if n and _tail(yes, n, precision) <= error:
            return threshold
    return ACCEPT_NONE


def _reject(
    candidates: Sequence[int],
    population: Mapping[int, int],
    sample: Mapping[int, tuple[int, int]],
    recall: float,
    error: float,
) -> int:
    """The highest candidate below which surely few yes are lost: at most (1 - recall) of all yes,
    whose number is bounded from below by the sample too."""
    total = sum(population.values())
    n = sum(count for count, _ in sample.values())
    yes = sum(count for _, count in sample.values())
    all_yes = lower_bound(yes, n, error / 2) * total
    each = error / 2 / len(candidates)
    for threshold in reversed(candidates):
        inside = sum(count for score, count in population.items() if score < threshold)
        n_inside = sum(count for score, (count, _) in sample.items() if score < threshold)
        yes_inside = sum(count for score, (_, count) in sample.items() if score < threshold)
        if not n_inside:
            continue
        # The share of yes below the threshold that may be lost; the upper bound is at most that.
        share = min(1.0, (1.0 - recall) * all_yes / inside) if inside else 1.0
        if yes_inside < n_inside and 1.0 - _tail(yes_inside + 1, n_inside, share) <= each:
            return threshold
    return REJECT_NONE


def lower_bound(successes: int, trials: int, error: float) -> float:
    """The least proportion that `successes` of `trials` leave possible with probability `error`.

    Example:
        >>> round(lower_bound(60, 60, 0.0025), 3)
        0.905
    """
    if successes <= 0:
        return 0.0
    return _solve(lambda p: _tail(successes, trials, p), error, rising=True)


def upper_bound(successes: int, trials: int, error: float) -> float:
    """The largest proportion that `successes` of `trials` leave possible with that probability.

    Example:
        >>> round(upper_bound(0, 100, 0.05), 4)
        0.0295
    """
    if successes >= trials:
        return 1.0
    return _solve(lambda p: 1.0 - _tail(successes + 1, trials, p), error, rising=False)


def _tail(successes: int, trials: int, p: float) -> float:
    """P(X >= successes) for X binomial."""
    if successes <= 0:
        return 1.0
    if p <= 0.0:
        return 0.0
    if p >= 1.0:
        return 1.0
    # From the first term on, each follows from the one before.
    log_term = (
        math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
        + successes * math.log(p) + (trials - successes) * math.log1p(-p)
    )  # fmt: skip
    term, odds = math.exp(log_term), p / (1.0 - p)
    total = 0.0
    for k in range(successes, trials + 1):
        total += term
        term *= odds * (trials - k) / (k + 1)
    return min(1.0, total)


def _solve(function: Callable[[float], float], target: float, *, rising: bool) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if (function(middle) < target) == rising:
            low = middle
        else:
            high = middle
    return (low + high) / 2
