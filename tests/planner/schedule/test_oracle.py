"""The exact oracle: agrees with trying everything, and with the simulator to the tick."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import permutations, product

import pytest
from small_problems import diamond, engine, ticking

from costmodel.errors import SimulationError
from costmodel.simulator import (
    Assignment,
    Machine,
    ModelWork,
    Operation,
    PromptPart,
    ToolLaneSpec,
    ToolWork,
    WorkerSpec,
    Workload,
)
from planner.errors import PlanError
from planner.schedule.auto import schedule
from planner.schedule.oracle import solve_exactly
from planner.schedule.problem import Problem

SIZE = 4


def exact_problem(n_workers: int, *, tools: bool, groups: int = 1) -> Problem:
    def work(model: str, own: int, out: int) -> ModelWork:
        parts = (
            PromptPart("instructions", 300),
            PromptPart("document", 200, True),
            PromptPart(f"own {own}", own, True),
        )
        return ModelWork(model, parts, out)

    operations = [
        Operation("a", work("x", 10, 20)),
        Operation("b", work("x", 20, 30)),
        Operation("c", work("y", 30, 10), (0,)),
        Operation("d", work("x", 40, 10), (1,)),
    ]
    if tools:
        operations.append(Operation("t", ToolWork("tools", 0.4), (0,)))
        operations.append(Operation("e", work("y", 50, 15), (4,)))
    engines = {
        m: replace(engine(weights=10e9, load_s=0.25), wake_s=0.25, max_running=SIZE)
        for m in ("x", "y")
    }
    workers = tuple(
        WorkerSpec(f"w{i}", engines, 15e9, ("x",) if i == 0 else ()) for i in range(n_workers)
    )
    workload = Workload(tuple(operations), (SIZE,) * groups)
    return Problem(workload, Machine(workers, (ToolLaneSpec("tools", SIZE),)))


def best_sequence(problem: Problem) -> float:
    """The shortest makespan over all placements and all strict orders."""
    n = problem.n_items
    models = [i for i in range(n) if i // problem.n_groups in problem.calls_models]
    n_workers = len(problem.machine.workers)
    best = float("inf")
    for places in product(range(n_workers), repeat=len(models)):
        worker = [-1] * n
        for item, place in zip(models, places, strict=True):
            worker[item] = place
        for order in permutations(range(n)):
            priority = [0.0] * n
            for rank, item in enumerate(order):
                priority[item] = float(rank)
            try:
                run = problem.simulate(Assignment(worker, priority, order="strict"))
            except SimulationError:
                continue
            best = min(best, run.makespan_s)
    return best


@pytest.fixture(autouse=True)
def _solver() -> None:
    pytest.importorskip("ortools.sat.python.cp_model", reason="needs the extra `oracle`")


@pytest.mark.parametrize(
    ("n_workers", "tools", "groups"), [(1, False, 1), (2, False, 1), (1, True, 1)]
)
def test_nothing_is_shorter_than_the_optimum(n_workers: int, tools: bool, groups: int) -> None:
    problem = exact_problem(n_workers, tools=tools, groups=groups)
    found = solve_exactly(problem, limit_s=60)
    assert found.proven
    assert found.gap == pytest.approx(0, abs=1e-6)
    assert found.makespan_s == pytest.approx(best_sequence(problem), abs=2e-3)
    assert found.simulated_s == pytest.approx(found.makespan_s, abs=2e-3)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_the_scheduler_is_near_the_optimum_and_never_below_it(n_workers: int) -> None:
    problem = exact_problem(n_workers, tools=n_workers > 1, groups=2)
    mine = schedule(problem, now=ticking(), budget_s=None, max_steps=200)
    exact = solve_exactly(problem, limit_s=60, hint=mine.assignment)
    assert exact.proven
    assert exact.bound_s - 2e-3 <= mine.score <= exact.makespan_s * 1.05


def test_a_solve_that_was_stopped_is_not_called_optimal() -> None:
    problem = exact_problem(3, tools=True, groups=4)
    found = solve_exactly(problem, limit_s=0.2)
    if not found.proven:
        assert found.bound_s < found.makespan_s
        assert found.gap > 0


def test_instances_of_another_kind_are_refused_with_the_reason() -> None:
    problem = exact_problem(1, tools=True)
    uneven = Problem(replace(problem.workload, group_rows=(4, 3)), problem.machine)
    with pytest.raises(PlanError, match="row groups of one size"):
        solve_exactly(uneven)
    batched = Problem(replace(problem.workload, group_rows=(2,)), problem.machine)
    with pytest.raises(PlanError, match="one group of 2 at a time"):
        solve_exactly(batched)
    with pytest.raises(PlanError, match="beside another one"):
        spec = replace(problem.machine.workers[0], memory_bytes=25e9)
        solve_exactly(Problem(problem.workload, replace(problem.machine, workers=(spec,))))
    with pytest.raises(PlanError, match="batches, not arrivals"):
        timed = replace(problem.workload, arrival_s=(0.0,))
        solve_exactly(Problem(timed, problem.machine))
    with pytest.raises(PlanError, match="tool lanes that take whole groups"):
        lane = replace(problem.machine, lanes=(ToolLaneSpec("tools", 3),))
        solve_exactly(Problem(problem.workload, lane))


def test_without_the_extra_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(PlanError, match=r"halo-flow\[oracle\]"):
        solve_exactly(diamond())
