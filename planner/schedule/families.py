"""Families of placements: structured starting points that the local search improves.

Rows everywhere: each worker takes whole rows, so what a row's operations share stays in one cache.
Model pools: each worker keeps one model, workers are shared out by the models' work. List
scheduling: item after item where it would end first, switches and cached prefixes counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from costmodel.simulator.workload import ModelWork, ToolWork
from planner.schedule.problem import Problem, split_evenly


def rows_everywhere(problem: Problem, workers: Sequence[int] | None = None) -> list[int]:
    """Every operation on every worker that can hold its model; each worker has the same rows of
    all operations as far as it can hold their models."""
    allowed = set(workers) if workers is not None else set(range(len(problem.machine.workers)))
    placement = [-1] * problem.n_items
    groups = problem.n_groups
    for position in problem.model_ops:
        possible = problem.workers_for[problem.model_of(position)]
        chosen = [w for w in possible if w in allowed] or possible
        shares = [1 / problem.call_s[position][w] if problem.call_s[position][w] else 1.0
                  for w in chosen]  # fmt: skip
        placement[position * groups : (position + 1) * groups] = split_by(groups, chosen, shares)
    return placement


def model_pools(problem: Problem) -> list[int] | None:
    """Workers shared out between models by their work; None with fewer workers than models."""
    models = problem.models
    n = len(problem.machine.workers)
    if n < len(models):
        return None
    work = dict.fromkeys(models, 0.0)
    for position in problem.model_ops:
        op = problem.workload.operations[position]
        name = problem.model_of(position)
        work[name] += op.calls_per_row * min(problem.call_s[position])
    pools: dict[str, list[int]] = {m: [] for m in models}
    left = set(range(n))
    # The hardest to place first; then each further worker where the work per worker is largest.
    for model in sorted(models, key=lambda m: (len(problem.workers_for[m]), -work[m])):
        free = [w for w in problem.workers_for[model] if w in left]
        if not free:
            return None
        pools[model].append(free[0])
        left.discard(free[0])
    for w in sorted(left):
        able = [m for m in models if w in problem.workers_for[m]]
        if able:
            pools[max(able, key=lambda m: work[m] / len(pools[m]))].append(w)
    placement = [-1] * problem.n_items
    groups = problem.n_groups
    for position in problem.model_ops:
        pool = sorted(pools[problem.model_of(position)])
        placement[position * groups : (position + 1) * groups] = split_evenly(groups, pool)
    return placement


def models_by_worker_sets(problem: Problem) -> Iterator[tuple[str, list[int]]]:
    """Placements in which some models share a pool of workers and others have their own: each way
    to cut the models into two sides, workers by work."""
    models = problem.models
    n = len(problem.machine.workers)
    if not 2 <= len(models) <= 6 or n < 2:
        return
    work = dict.fromkeys(models, 0.0)
    for position in problem.model_ops:
        op = problem.workload.operations[position]
        work[problem.model_of(position)] += op.calls_per_row * min(problem.call_s[position])
    total = sum(work.values()) or 1.0
    for mask in range(1, 2 ** (len(models) - 1)):
        side = {m for i, m in enumerate(models) if mask >> i & 1}
        share = sum(work[m] for m in side) / total
        exact = n * share
        cuts = {min(n - 1, max(1, cut)) for cut in (int(exact), int(exact) + 1)}
        for cut in sorted(cuts, key=lambda cut: abs(cut - exact)):
            placement = _two_pools(problem, side, cut)
            if placement is not None:
                yield f"{'+'.join(sorted(side))} apart on {cut}", placement


def _two_pools(problem: Problem, side: set[str], cut: int) -> list[int] | None:
    """Models of `side` on the first `cut` workers, the others on the rest."""
    pools = (range(cut), range(cut, len(problem.machine.workers)))
    placement = [-1] * problem.n_items
    groups = problem.n_groups
    for position in problem.model_ops:
        name = problem.model_of(position)
        pool = [w for w in pools[name not in side] if w in problem.workers_for[name]]
        if not pool:
            return None
        placement[position * groups : (position + 1) * groups] = split_evenly(groups, pool)
    return placement


def earliest_end(problem: Problem, priority: Sequence[float], stickiness: float = 1.0) -> list[int]:
    """List scheduling: items by priority, each where it would end first.

    A worker's time counts the work of its items, the load of a model that it has not, and the
    prefix of rows whose other operations ran elsewhere (times `stickiness`).
    """
    machine = problem.machine
    ops = problem.workload.operations
    groups = problem.n_groups
    free_s = [0.0] * len(machine.workers)
    held: list[str] = [w.resident[0] if w.resident else "" for w in machine.workers]
    side_by_side = [w.fits(tuple(m for m in problem.models if m in w.engines), 1024)
                    for w in machine.workers]  # fmt: skip
    loaded: list[set[str]] = [set(w.resident) for w in machine.workers]
    end_s = [0.0] * problem.n_items
    placement = [-1] * problem.n_items
    at: dict[tuple[int, int], int] = {}
    clusters = problem.clusters
    calls = problem.simulator.compiled.calls
    order = _ready_order(problem, priority)
    for item in order:
        position, g = divmod(item, groups)
        op = ops[position]
        ready = max((end_s[i * groups + g] for i in op.inputs), default=0.0)
        if isinstance(op.work, ToolWork):
            end_s[item] = ready + op.work.latency_s
            continue
        work: ModelWork = op.work
        name = work.model
        home = at.get((clusters[position], g))
        best, best_end, best_busy = -1, float("inf"), 0.0
        for w in problem.workers_for[name]:
            engine = machine.workers[w].engines[name]
            switch = 0.0
            if side_by_side[w]:
                switch = 0.0 if name in loaded[w] else engine.load_s
            elif held[w] != name:
                switch = engine.wake_s if name in loaded[w] else engine.load_s
            busy = problem.call_s[position][w] * calls[item]
            if home is not None and home != w:
                busy += stickiness * calls[item] * _shared_prefix_s(problem, work, w)
            start = max(ready, free_s[w] + switch)
            end = start + max(busy, problem.latency_s[position])
            if end < best_end:
                best, best_end, best_busy = w, end, start + busy
        placement[item] = best
        end_s[item] = best_end
        free_s[best] = best_busy
        held[best] = name
        loaded[best].add(name)
        at.setdefault((clusters[position], g), best)
    return placement


def split_by(n_groups: int, workers: Sequence[int], shares: Sequence[float]) -> list[int]:
    """A worker for each group, contiguous runs in proportion to `shares`.

    Example:
        >>> split_by(6, [0, 1], [2.0, 1.0])
        [0, 0, 0, 0, 1, 1]
    """
    total = sum(shares) or 1.0
    chosen: list[int] = []
    reached = 0.0
    for worker, share in zip(workers, shares, strict=True):
        reached += share
        until = round(n_groups * reached / total)
        chosen.extend([worker] * (until - len(chosen)))
    chosen.extend([workers[-1]] * (n_groups - len(chosen)))
    return chosen


def _ready_order(problem: Problem, priority: Sequence[float]) -> list[int]:
    """Items in an order that respects dependencies and otherwise follows the priority."""
    groups = problem.n_groups
    depth = problem.depth
    if all(
        priority[i * groups] <= priority[position * groups]
        for position, op in enumerate(problem.workload.operations)
        for i in op.inputs
        if groups
    ):
        return sorted(range(problem.n_items), key=lambda item: priority[item])
    return sorted(range(problem.n_items), key=lambda item: (depth[item // groups], priority[item]))


def _shared_prefix_s(problem: Problem, work: ModelWork, worker: int) -> float:
    """Seconds to compute a row's common prefix again on another worker, for one call."""
    differs = 0
    for part in work.prompt:
        if part.per_row:
            differs = part.tokens
            break
    engine = problem.machine.workers[worker].engines[work.model]
    chunk = engine.chunk_tokens
    return engine.timer.step_s(chunk, 0, 0, 0) / chunk * differs
