"""Least squares with coefficients that cannot be negative: small, dense, standard library alone."""

from __future__ import annotations

import math
from collections.abc import Sequence


def non_negative_least_squares(
    rows: Sequence[Sequence[float]],
    targets: Sequence[float],
    weights: Sequence[float],
    *,
    ridge: float = 1e-6,
    sweeps: int = 3000,
    tolerance: float = 1e-10,
) -> list[float]:
    """x >= 0 that minimises sum w_i (rows_i x - targets_i)^2, by coordinate descent on the normal
    equations of columns scaled to unit length. `ridge` keeps columns that repeat each other apart.

    Example:
        >>> x = non_negative_least_squares([[1, 0], [0, 1], [1, 1]], [2, -1, 2], [1, 1, 1])
        >>> [round(v, 3) for v in x]
        [2.0, 0.0]
    """
    n = len(rows[0])
    norms = [
        math.sqrt(sum(w * row[j] * row[j] for row, w in zip(rows, weights, strict=True))) or 1.0
        for j in range(n)
    ]
    gram = [[0.0] * n for _ in range(n)]
    right = [0.0] * n
    for row, target, w in zip(rows, targets, weights, strict=True):
        scaled = [row[j] / norms[j] for j in range(n)]
        for i in range(n):
            left = w * scaled[i]
            if left:
                right[i] += left * target
                line = gram[i]
                for j in range(n):
                    line[j] += left * scaled[j]
    for i in range(n):
        gram[i][i] += ridge
    x = [0.0] * n
    for _ in range(sweeps):
        change = 0.0
        for i in range(n):
            line = gram[i]
            gradient = right[i] - sum(g * v for g, v in zip(line, x, strict=True))
            new = max(0.0, x[i] + gradient / line[i])
            change = max(change, abs(new - x[i]))
            x[i] = new
        if change < tolerance * max(1.0, *x):
            break
    return [value / norm for value, norm in zip(x, norms, strict=True)]


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
