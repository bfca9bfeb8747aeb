"""Simple policies, as published systems use them: what a schedule has to beat.

All place whole operations or all rows of them, keep one model at a time on a worker, and run on the
same simulator with the same soft readiness; operator-wise alone has barriers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from costmodel.simulator.assignment import Assignment
from costmodel.simulator.workload import ToolWork
from planner.schedule.orders import critical_path, operator_major, row_major
from planner.schedule.problem import Problem, split_evenly


def operator_wise(problem: Problem) -> Assignment:
    """One model operation after the other, its rows split over all workers that can hold the
    model, with a barrier between operations. Tools run as soon as their inputs are there."""
    ops = problem.workload.operations
    worker = _nowhere(problem)
    stage: list[int] = []
    last = -1
    for position, op in enumerate(ops):
        if isinstance(op.work, ToolWork):
            stage.append(max((stage[i] for i in op.inputs), default=0))
            continue
        last = max(last + 1, max((stage[i] for i in op.inputs), default=0))
        stage.append(last)
        _place(problem, worker, position, split_evenly(
            problem.n_groups, problem.workers_for[op.work.model]))  # fmt: skip
    return Assignment(worker, operator_major(problem), stage=stage, preload=False)


def greedy(problem: Problem) -> Assignment:
    """Operations by critical path, each whole on the worker where it would end first, by estimated
    load and the switch it needs."""
    free_s = [0.0] * len(problem.machine.workers)
    ends: list[float] = [0.0] * len(problem.workload.operations)
    model: list[str] = [w.resident[0] if w.resident else "" for w in problem.machine.workers]
    rows = problem.workload.rows

    def choose(position: int) -> int:
        op = problem.workload.operations[position]
        name = problem.model_of(position)
        ready_s = max((ends[i] for i in op.inputs), default=0.0)
        best, best_end = -1, float("inf")
        for w in problem.workers_for[name]:
            switch = 0.0 if model[w] == name else problem.machine.workers[w].engines[name].load_s
            end = max(free_s[w] + switch, ready_s) + _work_s(problem, position, w, rows)
            if end < best_end:
                best, best_end = w, end
        free_s[best], ends[position], model[best] = best_end, best_end, name
        return best

    return _whole(problem, choose, ends)


def min_switch(problem: Problem) -> Assignment:
    """Operations in topological order, each on the least loaded worker that holds its model last;
    on the least loaded one without a model, else of all, when there is none."""
    free_s = [0.0] * len(problem.machine.workers)
    model: list[str] = [""] * len(problem.machine.workers)
    rows = problem.workload.rows

    def choose(position: int) -> int:
        name = problem.model_of(position)
        possible = problem.workers_for[name]
        same = [w for w in possible if model[w] == name]
        empty = [w for w in possible if not model[w]]
        best = min(same or empty or possible, key=lambda w: (free_s[w], w))
        model[best] = name
        free_s[best] += _work_s(problem, position, best, rows)
        return best

    return _whole(problem, choose)


def round_robin(problem: Problem) -> Assignment:
    """Operations in topological order, dealt to the workers in turn."""
    turn = -1

    def choose(position: int) -> int:
        nonlocal turn
        turn += 1
        possible = problem.workers_for[problem.model_of(position)]
        return possible[turn % len(possible)]

    return _whole(problem, choose)


def random(problem: Problem, seed: int = 0) -> Assignment:
    """Each operation on any worker that can hold its model."""
    draw = Random(seed)
    return _whole(problem, lambda op: draw.choice(problem.workers_for[problem.model_of(op)]))


def longest_prefix_first(problem: Problem) -> Assignment:
    """All operations on all workers, rows dealt out evenly, and each worker's queue by the longest
    cached prefix: an engine's own scheduler behind a load balancer."""
    worker = _nowhere(problem)
    for position in problem.model_ops:
        workers = problem.workers_for[problem.model_of(position)]
        _place(problem, worker, position, [workers[g % len(workers)]
                                           for g in range(problem.n_groups)])  # fmt: skip
    return Assignment(worker, operator_major(problem), order="longest_prefix", preload=False)


def query_wise(problem: Problem) -> Assignment:
    """One row group after the other through all operations, groups dealt out to the workers: as
    many at once as there are workers."""
    worker = longest_prefix_first(problem).worker
    n = max(1, len(problem.machine.workers))
    return Assignment(worker, row_major(problem), preload=False, groups_in_flight=n)


BASELINES: dict[str, Callable[[Problem], Assignment]] = {
    "operator-wise": operator_wise,
    "greedy": greedy,
    "min-switch": min_switch,
    "round-robin": round_robin,
    "random": random,
    "longest-prefix-first": longest_prefix_first,
    "query-wise": query_wise,
}


def with_co_residency(problem: Problem, assignment: Assignment) -> Assignment:
    """The same, with models side by side on every worker whose memory holds all that it is
    assigned: what a baseline would do with this project's residency."""
    return replace(assignment, co_resident=co_resident(problem, assignment))


def co_resident(problem: Problem, assignment: Assignment) -> list[bool]:
    """For each worker, whether its models fit together with room for the KV cache of a call."""
    models: list[set[str]] = [set() for _ in problem.machine.workers]
    groups = problem.n_groups
    largest: dict[str, int] = {}
    for position in problem.model_ops:
        work = problem.workload.operations[position].work
        assert not isinstance(work, ToolWork)
        need = work.prompt_tokens + work.output_tokens
        largest[work.model] = max(largest.get(work.model, 0), need)
        for g in range(groups):
            w = assignment.worker[position * groups + g]
            if w >= 0:
                models[w].add(work.model)
    fits: list[bool] = []
    for spec, mine in zip(problem.machine.workers, models, strict=True):
        weights = sum(spec.engines[m].weight_bytes for m in mine)
        room = (spec.memory_bytes - weights) / max(1, len(mine))
        fits.append(
            len(mine) > 1
            and room > 0
            and all(room >= largest[m] * spec.engines[m].kv_bytes_per_token for m in mine)
        )
    return fits


def _whole(
    problem: Problem, choose: Callable[[int], int], ends: list[float] | None = None
) -> Assignment:
    worker = _nowhere(problem)
    ops = problem.workload.operations
    for position, op in enumerate(ops):
        if isinstance(op.work, ToolWork):
            if ends is not None:
                before = max((ends[i] for i in op.inputs), default=0.0)
                ends[position] = before + op.work.latency_s
            continue
        _place(problem, worker, position, [choose(position)] * problem.n_groups)
    return Assignment(worker, critical_path(problem), preload=False)


def _work_s(problem: Problem, position: int, worker: int, rows: int) -> float:
    op = problem.workload.operations[position]
    return max(
        problem.call_s[position][worker] * rows * op.calls_per_row, problem.latency_s[position]
    )


def _nowhere(problem: Problem) -> list[int]:
    return [-1] * problem.n_items


def _place(problem: Problem, worker: list[int], position: int, of_groups: list[int]) -> None:
    start = position * problem.n_groups
    worker[start : start + problem.n_groups] = of_groups
