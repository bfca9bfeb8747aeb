"""Least squares with coefficients that cannot be negative: small, dense, standard library alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence


def non_negative_least_squares(
    rows: Sequence[Sequence[float]],
    targets: Sequence[float],
    weights: Sequence[float],
    *,
    ridge: float = 1e-6,
) -> list[float]:
    """x >= 0 that minimises sum w_i (rows_i x - targets_i)^2: the active-set method of Lawson and
    Hanson (Solving Least Squares Problems, 1974, chapter 23) on the normal equations of columns
    scaled to unit length. `ridge` keeps columns that repeat each other apart.

    Example:
        >>> x = non_negative_least_squares([[1, 0], [0, 1], [1, 1]], [2, -1, 2], [1, 1, 1])
        >>> [round(v, 3) for v in x]
        [2.0, 0.0]
    """
    gram, right, norms = _normal_equations(rows, targets, weights, ridge)
    n = len(right)
    x = [0.0] * n
    free: list[int] = []
    # Each round frees one coefficient or fixes some at zero; no set of free ones comes back.
    for _ in range(10 * n):
        gradient = [
            right[i] - sum(g * v for g, v in zip(gram[i], x, strict=True)) for i in range(n)
        ]
        fixed = [i for i in range(n) if i not in free]
        best = max(fixed, key=gradient.__getitem__, default=-1)
        if best < 0 or gradient[best] <= 1e-12 * (1 + abs(right[best])):
            break
        free.append(best)
        while free:
            solution = _solved(gram, right, free)
            if min(solution) > 0:
                x = [0.0] * n
                for i, value in zip(free, solution, strict=True):
                    x[i] = value
                break
            # Go towards the solution until the first coefficient reaches zero.
            step = min(
                x[i] / (x[i] - value)
                for i, value in zip(free, solution, strict=True)
                if value <= 0 and x[i] > value
            )
            for i, value in zip(free, solution, strict=True):
                x[i] += step * (value - x[i])
            free = [i for i in free if x[i] > 1e-15]
            x = [value if i in free else 0.0 for i, value in enumerate(x)]
    return [value / norm for value, norm in zip(x, norms, strict=True)]


def _normal_equations(
    rows: Sequence[Sequence[float]],
    targets: Sequence[float],
    weights: Sequence[float],
    ridge: float,
) -> tuple[list[list[float]], list[float], list[float]]:
    """(A'WA + ridge, A'Wb, column lengths) with columns scaled to unit length."""
    n = len(rows[0])
    norms = [
        math.sqrt(sum(w * row[j] * row[j] for row, w in zip(rows, weights, strict=True))) or 1.0
        for j in range(n)
    ]
    gram = [[0.0] * n for _ in range(n)]
    right = [0.0] * n
    for row, target, w in zip(rows, targets, weights, strict=True):
        scaled = [value / norm for value, norm in zip(row, norms, strict=True)]
        for i in range(n):
            left = w * scaled[i]
            if left:
                right[i] += left * target
                line = gram[i]
                for j in range(i + 1):
                    line[j] += left * scaled[j]
    for i in range(n):
        gram[i][i] += ridge
        for j in range(i):
            gram[j][i] = gram[i][j]
    return gram, right, norms


def _solved(gram: list[list[float]], right: list[float], chosen: list[int]) -> list[float]:
    """The least-squares solution over some columns, by Cholesky factors."""
    n = len(chosen)
    lower: list[list[float]] = []
    for r, i in enumerate(chosen):
        line: list[float] = []
        for c in range(r + 1):
            rest = gram[i][chosen[c]] - sum(
                map(operator.mul, line, lower[c][:c] if c < r else line)
            )
            line.append(math.sqrt(max(rest, 1e-18)) if c == r else rest / lower[c][c])
        lower.append(line)
    y: list[float] = []
    for r in range(n):
        y.append((right[chosen[r]] - sum(map(operator.mul, lower[r], y))) / lower[r][r])
    solution = [0.0] * n
    for r in range(n - 1, -1, -1):
        rest = y[r] - sum(lower[k][r] * solution[k] for k in range(r + 1, n))
        solution[r] = rest / lower[r][r]
    return solution


def robust_non_negative_least_squares(
    rows: Sequence[Sequence[float]], targets: Sequence[float], *, rounds: int = 8
) -> list[float]:
    """x >= 0 with small *relative* residuals, outliers counting little: least squares weighted by
    1 / target^2, then again with weights 1 / |relative residual| (near least absolute deviation).
    Targets must be positive.
    """
    base = [1.0 / (target * target) for target in targets]
    weights = base
    x: list[float] = []
    for _ in range(rounds):
        x = non_negative_least_squares(rows, targets, weights)
        errors = [
            abs(sum(a * b for a, b in zip(row, x, strict=True)) / target - 1)
            for row, target in zip(rows, targets, strict=True)
        ]
        weights = [w / max(error, 0.01) for w, error in zip(base, errors, strict=True)]
        scale = len(weights) / sum(w / b for w, b in zip(weights, base, strict=True))
        weights = [w * scale for w in weights]
    return x
