"""The epoch program finds what trying everything finds, on any costs; and the published costs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from random import Random

import pytest
from small_problems import diamond, engine, ticking

from costmodel.simulator import Machine, ModelWork, Operation, PromptPart, WorkerSpec, Workload
from planner.schedule.auto import schedule
from planner.schedule.epochs import WorkerState, solve
from planner.schedule.problem import Problem
from planner.schedule.published import PublishedCosts, published_dp


class RandomCosts:
    """Times by operation and by whether the worker has its model; the bound is admissible."""

    remembers_operation = False

    def __init__(self, n: int, n_workers: int, seed: int) -> None:
        draw = Random(seed)
        self.work = [draw.randint(1, 9) for _ in range(n)]
        self.models = [draw.choice("ab") for _ in range(n)]
        self.n_workers = n_workers

    def model(self, op: int) -> str:
        return self.models[op]

    def operation_s(self, op: int, worker: WorkerState) -> float:
        return self.work[op] + (0 if worker[0] == self.models[op] else 3)

    def epoch_s(self, ops: Sequence[int], seconds: Sequence[float], epoch: int) -> float:
        return max(seconds) + 0.1 * epoch

    def bound_s(self, left: Sequence[int], epoch: int) -> float:
        return sum(self.work[op] for op in left) / self.n_workers


def brute_force(n: int, before: list[set[int]], n_workers: int, costs: RandomCosts) -> float:
    best = float("inf")
    stack = [(frozenset[int](), tuple([("", -1)] * n_workers), 0, 0.0)]
    while stack:
        done, workers, epoch, cost = stack.pop()
        if len(done) == n:
            best = min(best, cost)
            continue
        if cost >= best:
            continue
        left = [op for op in range(n) if op not in done]
        for size in range(1, min(n_workers, len(left)) + 1):
            for group in combinations(left, size):
                if any(not before[op] <= done | set(group) for op in group):
                    continue
                for places in permutations(range(n_workers), size):
                    pairs = list(zip(group, places, strict=True))
                    seconds = [costs.operation_s(op, workers[w]) for op, w in pairs]
                    after = list(workers)
                    for op, w in pairs:
                        after[w] = (costs.model(op), op)
                    stack.append(
                        (
                            done | set(group),
                            tuple(after),
                            epoch + 1,
                            cost + costs.epoch_s(group, seconds, epoch),
                        )
                    )
    return best


@pytest.mark.parametrize("seed", range(12))
def test_the_program_is_optimal_for_its_costs(seed: int) -> None:
    draw = Random(seed)
    n, n_workers = draw.randint(2, 5), draw.randint(1, 3)
    before = [set(draw.sample(range(i), draw.randint(0, min(i, 2)))) for i in range(n)]
    for i in range(n):
        for j in list(before[i]):
            before[i] |= before[j]
    costs = RandomCosts(n, n_workers, seed)
    plan = solve(
        range(n),
        lambda op: before[op],
        lambda op: range(n_workers),
        [("", -1)] * n_workers,
        costs,
        slack=n_workers,
        max_assignments=10_000,
    )
    assert plan.complete
    assert plan.cost == pytest.approx(brute_force(n, before, n_workers, costs))
    assert sorted(op for epoch in plan.epochs for op, _ in epoch) == list(range(n))


def test_equal_workers_share_states() -> None:
    costs = RandomCosts(6, 1, 0)
    expanded: list[int] = []
    for n_workers in (2, 4):
        everyone = range(n_workers)
        plan = solve(
            range(6), lambda op: set(), lambda op, e=everyone: e, [("", -1)] * n_workers, costs
        )
        expanded.append(plan.states)
    # Four interchangeable workers need no more states than four factorial times two would.
    assert expanded[1] < 24 * expanded[0]


def test_a_limit_ends_the_search_with_a_whole_plan_that_says_so() -> None:
    costs = RandomCosts(9, 3, 1)
    plan = solve(
        range(9),
        lambda op: set(),
        lambda op: range(3),
        [("", -1)] * 3,
        costs,
        max_states=3,
    )
    assert not plan.complete
    assert sorted(op for epoch in plan.epochs for op, _ in epoch) == list(range(9))


def published_problem(rows: int, billions: dict[str, float]) -> Problem:
    operations = tuple(
        Operation(m, ModelWork(m, (PromptPart("p", 10, True),), 5)) for m in billions
    )
    engines = {m: engine(weights=2e9 * b) for m, b in billions.items()}
    machine = Machine((WorkerSpec("w", engines, 1e12),))
    return Problem(Workload(operations, (rows,)), machine)


def test_published_terms_are_the_published_ones() -> None:
    """At 1,024 queries they cannot tell models apart: 157, 159 and 162 s for 14, 20 and 32 B; the
    locality bonus of 16 s outweighs a reload of 20 B, 15 s."""
    costs = PublishedCosts(published_problem(1024, {"14b": 14, "20b": 20, "32b": 32}))
    assert [round(costs.execution_s(op)) for op in range(3)] == [157, 159, 162]
    full = costs.operation_s(1, ("14b", -1)) - costs.execution_s(1)
    assert full == pytest.approx(15)
    assert costs.operation_s(1, ("", -1)) - costs.execution_s(1) == pytest.approx(7.5)


def test_the_published_planner_places_one_operation_on_one_worker() -> None:
    problem = diamond(n_workers=2)
    plan = published_dp(problem)
    for op in problem.model_ops:
        start = op * problem.n_groups
        assert len(set(plan.worker[start : start + problem.n_groups])) == 1
    found = schedule(problem, "published-dp", now=ticking(), budget_s=None)
    assert found.simulation.calls == 7 * 32
