"""Priorities of items: in which order ready work goes first.

The soft order is nested. Row-major orders finish rows early and reuse what operations of one row
share; operator-major orders keep one static prefix and one model in use; the nested order does the
first inside a cluster of operations that share a row's prefix, and the second between clusters.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.schedule.problem import Problem


def operator_major(problem: Problem) -> list[float]:
    """Operation after operation in topological order, groups in order."""
    groups = problem.n_groups
    return [float(i) for i in range(len(problem.workload.operations) * groups)]


def row_major(problem: Problem) -> list[float]:
    """Group after group; within a group the longest remaining way first."""
    n_ops, groups = len(problem.workload.operations), problem.n_groups
    rank = _positions(problem)
    return [float(g * n_ops + rank[op]) for op in range(n_ops) for g in range(groups)]


def critical_path(problem: Problem) -> list[float]:
    """Operations with the longest remaining way first, whatever the group."""
    n_ops, groups = len(problem.workload.operations), problem.n_groups
    rank = _positions(problem)
    return [float(rank[op] * groups + g) for op in range(n_ops) for g in range(groups)]


def nearest_end(problem: Problem) -> list[float]:
    """Operations with the shortest remaining way first: rows end early, few are half done."""
    n_ops, groups = len(problem.workload.operations), problem.n_groups
    rank = _positions(problem)
    return [float((n_ops - rank[op]) * groups + g) for op in range(n_ops) for g in range(groups)]


def nested(problem: Problem) -> list[float]:
    """Clusters by the longest remaining way; inside a cluster row by row."""
    n_ops, groups = len(problem.workload.operations), problem.n_groups
    rank = _positions(problem)
    clusters = problem.clusters
    first = {c: min(rank[op] for op in range(n_ops) if clusters[op] == c) for c in set(clusters)}
    return [
        float((first[clusters[op]] * groups + g) * n_ops + rank[op])
        for op in range(n_ops)
        for g in range(groups)
    ]


def by_model(problem: Problem) -> list[float]:
    """Waves by the number of model calls before; within a wave one model after the other, the one
    with the longest remaining way first: few switches on a worker that holds one model."""
    n_ops, groups = len(problem.workload.operations), problem.n_groups
    rank = _positions(problem)
    depth = problem.model_depth
    lead: dict[tuple[int, str], int] = {}
    for op in range(n_ops):
        key = (depth[op], problem.model_of(op))
        lead[key] = min(lead.get(key, n_ops), rank[op])
    ordered = sorted(
        range(n_ops),
        key=lambda op: (depth[op], lead[(depth[op], problem.model_of(op))], rank[op]),
    )
    position = {op: i for i, op in enumerate(ordered)}
    return [float(position[op] * groups + g) for op in range(n_ops) for g in range(groups)]


ORDERS: dict[str, Callable[[Problem], list[float]]] = {
    "critical-path": critical_path,
    "row-major": row_major,
    "nested": nested,
    "operator-major": operator_major,
    "by-model": by_model,
    "nearest-end": nearest_end,
}


def _positions(problem: Problem) -> list[int]:
    """Rank of each operation by remaining seconds, longest first; a topological order."""
    remaining, depth = problem.remaining_s, problem.depth
    ordered = sorted(
        range(len(remaining)), key=lambda op: (-round(remaining[op], 9), depth[op], op)
    )
    rank = [0] * len(ordered)
    for position, op in enumerate(ordered):
        rank[op] = position
    return rank
