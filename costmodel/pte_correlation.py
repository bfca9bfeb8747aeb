"""How well a metric follows a measurement: Pearson's and Spearman's coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pearson(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Pearson's r, or None when it is undefined (fewer than two pairs, or no variation).

    Example:
        >>> pearson([1, 2, 3], [2, 4, 6])
        1.0
    """
    if len(left) != len(right):
        raise ValueError(f"{len(left)} values against {len(right)}; they must come in pairs")
    if len(left) < 2:
        return None
    mean_left, mean_right = math.fsum(left) / len(left), math.fsum(right) / len(right)
    both = math.fsum((x - mean_left) * (y - mean_right) for x, y in zip(left, right, strict=True))
    spread_left = math.fsum((x - mean_left) ** 2 for x in left)
    spread_right = math.fsum((y - mean_right) ** 2 for y in right)
    if not spread_left or not spread_right:
        return None
    return max(-1.0, min(1.0, both / math.sqrt(spread_left * spread_right)))


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's rho: Pearson's r of the ranks, equal values sharing their mean rank.

    Example:
        >>> spearman([1, 2, 3], [1, 8, 27]), spearman([1, 1, 2], [3, 3, 3])
        (1.0, None)
    """
    return pearson(_ranks(left), _ranks(right))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in range(start, end + 1):
            ranks[order[place]] = (start + end) / 2
        start = end + 1
    return ranks
