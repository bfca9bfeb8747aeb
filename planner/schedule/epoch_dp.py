"""The epoch DP on this project's costs: for small graphs, and a check of the heuristics.

An epoch costs its slowest worker. Operations of one epoch that depend on each other are charged the
time that the second needs after the first has ended its first rows, so pipelining is not free.
Epochs only give priorities: the simulator, like the runtime, has no barrier between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from costmodel.simulator.assignment import Assignment
from planner.schedule.baselines import with_co_residency
from planner.schedule.epochs import EpochPlan, WorkerState, solve
from planner.schedule.problem import Problem, split_evenly
from planner.schedule.schedule import Search

MAX_OPERATIONS = 16


class _TokenCosts:
    """Seconds by tokens, batch and switches."""

    remembers_operation = False

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        rows = problem.workload.rows
        ops = problem.workload.operations
        self._work = {
            op: max(min(problem.call_s[op]) * rows * ops[op].calls_per_row, problem.latency_s[op])
            for op in problem.model_ops
        }
        self._n = len(problem.machine.workers)

    def model(self, op: int) -> str:
        return self._problem.model_of(op)

    def operation_s(self, op: int, worker: WorkerState) -> float:
        model = self._problem.model_of(op)
        if worker[0] == model:
            return self._work[op]
        w = self._problem.workers_for[model][0]
        engine = self._problem.machine.workers[w].engines[model]
        return self._work[op] + engine.load_s

    def epoch_s(self, ops: Sequence[int], seconds: Sequence[float], epoch: int) -> float:
        # Workers without an operation take rows of the longest ones: splitting is possible.
        idle = self._n - len(ops)
        longest = max(seconds)
        if idle and len(ops) < self._n:
            longest = max(sum(seconds) / self._n, longest / (idle + 1))
        chained = 0.0
        inside = set(ops)
        for op in ops:
            for i in self._problem.workload.operations[op].inputs:
                if i in inside:
                    chained = max(chained, self._problem.latency_s[op])
        return longest + chained

    def bound_s(self, left: Sequence[int], epoch: int) -> float:
        # Without switches, perfectly split: nothing can be cheaper, so the bound is admissible.
        return sum(self._work[op] for op in left) / self._n


def epoch_dp(search: Search, seed: int = 0, *, max_states: int = 20_000) -> EpochPlan | None:
    """Score the DP's plan, whole and with idle workers filled; None when the graph is too large."""
    problem = search.problem
    if not 0 < len(problem.model_ops) <= MAX_OPERATIONS:
        return None
    before = model_ancestors(problem)
    start = [(w.resident[0] if w.resident else "", -1) for w in problem.machine.workers]
    plan = solve(
        problem.model_ops,
        lambda op: before[op],
        lambda op: problem.workers_for[problem.model_of(op)],
        start,
        _TokenCosts(problem),
        max_states=max_states,
        over=lambda: search.over,
    )
    for name, filled in (("dp", False), ("dp, rows split", True)):
        assignment = from_epochs(problem, plan, fill=filled)
        search.score(assignment, name)
        side_by_side = with_co_residency(problem, assignment)
        if any(side_by_side.co_resident):
            search.score(side_by_side, f"{name}, models side by side")
    return plan


def model_ancestors(problem: Problem) -> dict[int, set[int]]:
    """For each model operation, the model operations that must come before it."""
    ops = problem.workload.operations
    above: list[set[int]] = []
    for op in ops:
        mine: set[int] = set()
        for i in op.inputs:
            mine |= above[i]
            if i in problem.calls_models:
                mine.add(i)
        above.append(mine)
    return {op: above[op] for op in problem.model_ops}


def from_epochs(problem: Problem, plan: EpochPlan, *, fill: bool) -> Assignment:
    """An assignment with the plan's workers; epochs become priorities. With `fill`, workers
    without an operation in an epoch take a share of the rows of the largest ones."""
    groups = problem.n_groups
    n_workers = len(problem.machine.workers)
    worker = [-1] * problem.n_items
    rank: dict[int, int] = {}
    for chosen in plan.epochs:
        homes: dict[int, list[int]] = {op: [w] for op, w in chosen}
        if fill:
            used = {w for _, w in chosen}
            for w in range(n_workers):
                able = [op for op in homes if w in problem.workers_for[problem.model_of(op)]]
                if w not in used and able:
                    largest = max(able, key=lambda op: problem.call_s[op][w] / len(homes[op]))
                    homes[largest].append(w)
        for op, workers in homes.items():
            rank[op] = len(rank)
            start = op * groups
            worker[start : start + groups] = split_evenly(groups, sorted(workers))
    priority: list[float] = []
    level = _levels(problem, rank)
    for op in range(len(problem.workload.operations)):
        priority.extend(float(level[op] * groups + g) for g in range(groups))
    return replace(Assignment(worker, priority), co_resident=[False] * n_workers)


def _levels(problem: Problem, rank: dict[int, int]) -> list[float]:
    """Tools get the rank of the first model call that waits for them."""
    n = len(problem.workload.operations)
    level = [float("inf")] * n
    for op in range(n - 1, -1, -1):
        if op in rank:
            level[op] = float(rank[op])
        for i in problem.workload.operations[op].inputs:
            if i not in rank:
                level[i] = min(level[i], level[op])
    return [x if x != float("inf") else float(n) for x in level]
