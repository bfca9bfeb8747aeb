"""Beam search over placements: operations by rank, a few ways to place each, the best kept.

A partial placement is priced by its workers' estimated ends plus the work that is left; complete
ones are scored by the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from costmodel.simulator.assignment import Assignment
from planner.schedule.baselines import co_resident
from planner.schedule.orders import critical_path
from planner.schedule.problem import Problem, split_evenly
from planner.schedule.schedule import Search

WIDTH = 8


@dataclass(frozen=True, slots=True)
class _Partial:
    pools: tuple[tuple[int, ...], ...]
    free_s: tuple[float, ...]
    held: tuple[str, ...]
    ends_s: dict[int, float]

    def price(self, left_s: float) -> float:
        return max(self.free_s) + (left_s - sum(max(self.free_s) - f for f in self.free_s)) / len(
            self.free_s
        )


def beam_search(search: Search, seed: int = 0, *, width: int = WIDTH) -> None:
    """Score the `width` best placements of a beam."""
    problem = search.problem
    rows = problem.workload.rows
    ops = problem.workload.operations
    n = len(problem.machine.workers)
    order = sorted(problem.model_ops, key=lambda op: (problem.model_depth[op],
                                                      -problem.remaining_s[op], op))  # fmt: skip
    work = {op: min(problem.call_s[op]) * rows * ops[op].calls_per_row for op in order}
    left_s = sum(work.values())
    start = tuple(w.resident[0] if w.resident else "" for w in problem.machine.workers)
    beam = [_Partial((), (0.0,) * n, start, {})]
    for op in order:
        grown: list[_Partial] = []
        left_s -= work[op]
        for partial in beam:
            for pool in _pools(problem, op, partial):
                grown.append(_place(problem, partial, op, pool, rows))
        grown.sort(key=lambda p: p.price(left_s))
        beam = grown[:width]
        if search.over:
            break
    priority = critical_path(problem)
    groups = problem.n_groups
    for partial in beam:
        if len(partial.pools) < len(order):
            return
        worker = [-1] * problem.n_items
        for op, pool in zip(order, partial.pools, strict=True):
            worker[op * groups : (op + 1) * groups] = split_evenly(groups, pool)
        plan = Assignment(worker, priority)
        flags = co_resident(problem, plan)
        search.score(replace(plan, co_resident=flags), "beam")
        if search.over:
            return


def _pools(problem: Problem, op: int, partial: _Partial) -> list[tuple[int, ...]]:
    """Ways to place an operation: the least loaded workers, those that hold its model, all."""
    model = problem.model_of(op)
    able = problem.workers_for[model]
    by_load = sorted(able, key=lambda w: (partial.free_s[w], w))
    pools = {tuple(sorted(able))}
    holding = tuple(w for w in able if partial.held[w] == model)
    if holding:
        pools.add(holding)
        pools.add((min(holding, key=lambda w: partial.free_s[w]),))
    size = 1
    while size < len(able):
        pools.add(tuple(sorted(by_load[:size])))
        size *= 2
    return sorted(pools)


def _place(
    problem: Problem, partial: _Partial, op: int, pool: Sequence[int], rows: int
) -> _Partial:
    operation = problem.workload.operations[op]
    model = problem.model_of(op)
    free, held = list(partial.free_s), list(partial.held)
    ready = 0.0
    stack = list(operation.inputs)
    waited = 0.0
    while stack:
        i = stack.pop()
        if i in partial.ends_s:
            ready = max(ready, partial.ends_s[i])
        elif i not in problem.calls_models:
            waited = max(waited, problem.latency_s[i])
            stack.extend(problem.workload.operations[i].inputs)
    # Rows flow: an operation may begin when the first rows of its inputs have ended.
    end = 0.0
    calls = rows * operation.calls_per_row / len(pool)
    for w in pool:
        switch = 0.0
        if held[w] != model:
            switch = problem.machine.workers[w].engines[model].load_s
        busy = problem.call_s[op][w] * calls
        free[w] = max(free[w] + switch + busy, ready + waited + problem.latency_s[op])
        held[w] = model
        end = max(end, free[w])
    return _Partial(
        (*partial.pools, tuple(pool)), tuple(free), tuple(held), {**partial.ends_s, op: end}
    )
