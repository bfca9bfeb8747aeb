"""The choices of Halo's published planner, for comparison: its cost terms, its epochs.

Source: the public demo code of arXiv 2509.02121 (the January 2026 tree and the later release).
Seconds of a model operation are 0.25 s a billion parameters + 0.15 s a query; a switch costs 0.75 s
a billion, half of that on an empty worker; an operation whose parent ran last on the worker costs a
tenth less, whatever the model; tool time is added to the epoch. Nothing in it knows tokens, batches
or caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from costmodel.simulator.assignment import Assignment
from costmodel.simulator.workload import ToolWork
from planner.schedule.epoch_dp import from_epochs, model_ancestors
from planner.schedule.epochs import WorkerState, solve
from planner.schedule.problem import Problem

EXECUTION_S_PER_BILLION = 0.25
EXECUTION_S_PER_QUERY = 0.15
SWITCH_S_PER_BILLION = 0.75
PARENT_FACTOR = 0.9
BYTES_PER_PARAMETER = 2


class PublishedCosts:
    """The cost terms as published, for `rows` queries."""

    remembers_operation = True

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._parents = {
            op: set(problem.workload.operations[op].inputs) for op in problem.model_ops
        }
        self._ancestors = model_ancestors(problem)
        self._n = len(problem.machine.workers)

    def billions(self, op: int) -> float:
        """Parameters, from the size of the weights."""
        model = self._problem.model_of(op)
        w = self._problem.workers_for[model][0]
        weights = self._problem.machine.workers[w].engines[model].weight_bytes
        return weights / BYTES_PER_PARAMETER / 1e9

    def model(self, op: int) -> str:
        return self._problem.model_of(op)

    def execution_s(self, op: int) -> float:
        rows = self._problem.workload.rows
        return EXECUTION_S_PER_BILLION * self.billions(op) + EXECUTION_S_PER_QUERY * rows

    def operation_s(self, op: int, worker: WorkerState) -> float:
        model, last = worker
        seconds = self.execution_s(op)
        if last in self._parents[op]:
            seconds *= PARENT_FACTOR
        if model != self.model(op):
            seconds += SWITCH_S_PER_BILLION * self.billions(op) * (1.0 if model else 0.5)
        return seconds

    def epoch_s(self, ops: Sequence[int], seconds: Sequence[float], epoch: int) -> float:
        inside = set(ops)
        depth = sum(len(self._ancestors[op] & inside) > 0 for op in ops)
        tools = 0.0
        for op in ops:
            for i in self._parents[op]:
                work = self._problem.workload.operations[i].work
                tools += work.latency_s if isinstance(work, ToolWork) else 0.0
        cpu_weight = 1.0 * (1 + 2.0 / (1 + epoch))
        penalty = 1 + 0.1 * epoch
        return penalty + 0.9 * max(seconds) + 0.1 * sum(seconds) + cpu_weight * tools + depth

    def bound_s(self, left: Sequence[int], epoch: int) -> float:
        # As published up to the locality bonus, which is counted here: admissible.
        least = sum(PARENT_FACTOR * self.execution_s(op) for op in left)
        return 0.9 * least / self._n + 0.1 * least


def published_dp(problem: Problem, *, max_states: int = 3_000) -> Assignment:
    """The published planner's placement: one operation a worker an epoch, one worker an operation.
    Where its program is too large for `max_states`, it goes on greedily by the same costs."""
    before = model_ancestors(problem)
    start: list[WorkerState] = [("", -1) for _ in problem.machine.workers]
    plan = solve(
        problem.model_ops,
        lambda op: before[op],
        lambda op: problem.workers_for[problem.model_of(op)],
        start,
        PublishedCosts(problem),
        max_states=max_states,
        max_assignments=24,
    )
    return replace(from_epochs(problem, plan, fill=False), preload=True)
