"""Every scheduler returns something that runs, and `auto` the best of what it has seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_problems import call, diamond, engine, random_problem, ticking

from costmodel.simulator import (
    Assignment,
    Machine,
    Operation,
    ToolLaneSpec,
    ToolWork,
    WorkerSpec,
    Workload,
    even_groups,
)
from planner.errors import PlanError
from planner.schedule.auto import METHODS, schedule
from planner.schedule.baselines import BASELINES, with_co_residency
from planner.schedule.candidates import candidates
from planner.schedule.families import earliest_end, model_pools, rows_everywhere
from planner.schedule.objective import Objective
from planner.schedule.orders import ORDERS
from planner.schedule.problem import Problem
from planner.schedule.schedule import Schedule, Search


def plan(problem: Problem, method: str = "auto", steps: int = 40) -> Schedule:
    return schedule(problem, method, now=ticking(), budget_s=None, max_steps=steps)


@pytest.mark.parametrize("method", METHODS)
def test_each_scheduler_makes_all_calls(method: str) -> None:
    problem = diamond()
    found = plan(problem, method)
    assert found.simulation.calls == 7 * 32
    assert found.score == found.simulation.makespan_s
    assert not found.given_up
    assert found.score == problem.simulate(found.assignment).makespan_s
    assert method in found.method or method == "auto"


@pytest.mark.parametrize("seed", range(12))
def test_auto_is_never_worse_than_a_baseline(seed: int) -> None:
    problem = random_problem(seed)
    found = plan(problem)
    for name, baseline in BASELINES.items():
        assert found.score <= problem.simulate(baseline(problem)).makespan_s + 1e-9, name
    assert found.score >= problem.lower_bound_s() - 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_equal_problems_get_equal_schedules(seed: int) -> None:
    first, second = plan(random_problem(seed)), plan(random_problem(seed))
    assert first.assignment == second.assignment
    assert first.tried == second.tried


def test_auto_says_what_it_picked_and_what_it_tried() -> None:
    found = plan(diamond())
    assert found.method.startswith("auto: ")
    assert len(found.tried) > 20
    assert found.summary().startswith(found.method)
    times, scores = zip(*found.curve, strict=True)
    assert list(times) == sorted(times)
    assert list(scores) == sorted(scores, reverse=True)
    assert scores[-1] == found.score


def test_a_budget_is_kept_and_a_tiny_one_still_gives_a_schedule() -> None:
    clock = ticking(0.001)
    found = schedule(diamond(), now=clock, budget_s=0.5)
    assert found.planning_s <= 0.55
    tiny = schedule(diamond(), now=ticking(1.0), budget_s=0.001)
    assert tiny.simulation.calls == 7 * 32


def test_large_problems_are_screened_on_smaller_ones() -> None:
    problem = diamond(rows=4000, groups=8)
    small = problem.reduced(2000)
    assert small.n_items == problem.n_items
    assert sum(small.simulator.compiled.calls) == pytest.approx(2000, rel=0.05)
    found = plan(problem, steps=10)
    assert any("screened" in name for name, _ in found.tried)
    for name, baseline in BASELINES.items():
        assert found.score <= problem.simulate(baseline(problem)).makespan_s * 1.01, name


def test_models_that_fit_together_stay_loaded_and_others_are_switched() -> None:
    roomy = plan(diamond(n_workers=1))
    assert roomy.simulation.switches == 2
    tight = plan(diamond(n_workers=1, memory=12e9))
    assert tight.simulation.switches > 2
    assert tight.score > roomy.score


def test_rows_are_split_when_there_are_more_workers_than_operations() -> None:
    operations = (call("a", "m"), call("b", "m", 0))
    workload = Workload(operations, even_groups(400, 16))
    specs = tuple(WorkerSpec(f"w{i}", {"m": engine()}, 1e12, ("m",)) for i in range(4))
    problem = Problem(workload, Machine(specs))
    found = plan(problem)
    assert set(found.assignment.worker) == {0, 1, 2, 3}
    one = plan(Problem(workload, Machine(specs[:1])))
    assert found.score < one.score / 2.5


def test_models_go_only_where_they_fit() -> None:
    engines = {"small": engine(), "large": engine(weights=50e9)}
    machine = Machine(
        (WorkerSpec("big", engines, 60e9), WorkerSpec("little", engines, 20e9)),
        (ToolLaneSpec("http"),),
    )
    problem = Problem(diamond().workload, machine)
    for _, assignment in candidates(problem):
        for op in problem.model_ops:
            if problem.model_of(op) == "large":
                start = op * problem.n_groups
                assert set(assignment.worker[start : start + problem.n_groups]) == {0}


@pytest.mark.parametrize("name", ORDERS)
def test_orders_rank_every_item(name: str) -> None:
    problem = diamond()
    priority = ORDERS[name](problem)
    assert len(set(priority)) == problem.n_items


def test_families_place_every_model_item() -> None:
    problem = diamond(n_workers=3)
    pools = model_pools(problem)
    assert pools is not None
    for placement in (
        rows_everywhere(problem),
        pools,
        earliest_end(problem, ORDERS["critical-path"](problem)),
    ):
        for op, operation in enumerate(problem.workload.operations):
            for g in range(problem.n_groups):
                w = placement[op * problem.n_groups + g]
                assert (w == -1) == isinstance(operation.work, ToolWork)
    by_model = {
        problem.model_of(op): {pools[op * problem.n_groups + g] for g in range(problem.n_groups)}
        for op in problem.model_ops
    }
    assert not by_model["small"] & by_model["large"]


def test_baselines_with_residency_are_another_column() -> None:
    problem = diamond(n_workers=1)
    alone = problem.simulate(BASELINES["greedy"](problem))
    together = problem.simulate(with_co_residency(problem, BASELINES["greedy"](problem)))
    assert together.switches < alone.switches


class TestObjectives:
    def test_money_is_saved_by_fewer_workers(self) -> None:
        # 400 rows: long enough that a second worker pays for its time, or not.
        fast = plan(diamond(rows=64, n_workers=4))
        cheap = plan(diamond(rows=64, n_workers=4, objective=Objective("money")))
        assert cheap.simulation.money < fast.simulation.money
        assert cheap.simulation.makespan_s >= fast.simulation.makespan_s - 1e-9

    def test_energy_counts_idle_workers(self) -> None:
        found = plan(diamond(objective=Objective("energy")))
        run = found.simulation
        busy = sum(w.busy_s for w in run.workers)
        idle = 2 * run.makespan_s - busy
        assert run.energy_j == pytest.approx(500 * busy + 100 * idle)

    def test_mean_latency_prefers_rows_that_end_early(self) -> None:
        makespan = plan(diamond(rows=200, n_workers=1))
        mean = plan(diamond(rows=200, n_workers=1, objective=Objective("mean_latency")))
        problem = diamond(rows=200, n_workers=1, objective=Objective("mean_latency"))
        by_makespan = problem.objective.score(makespan.simulation, problem.workload)
        assert mean.score <= by_makespan

    def test_priorities_weigh_latencies(self) -> None:
        base = diamond(rows=200, n_workers=1, objective=Objective("mean_latency"))
        weights = (100.0,) + (1.0,) * (base.n_groups - 1)
        urgent = Problem(replace(base.workload, priority=weights), base.machine, base.objective)
        found = plan(urgent)
        ends = found.simulation.group_end_s
        assert ends[0] <= sorted(ends)[1]

    def test_a_deadline_of_a_group_moves_it_forward(self) -> None:
        base = diamond(rows=200, n_workers=1)
        free = plan(base).simulation
        last = max(range(base.n_groups), key=lambda g: free.group_end_s[g])
        due = [1e9] * base.n_groups
        due[last] = 0.8 * free.group_end_s[last]
        workload = replace(base.workload, deadline_s=tuple(due))
        found = plan(Problem(workload, base.machine), steps=80)
        assert not found.given_up
        assert found.simulation.group_end_s[last] <= due[last]

    def test_what_cannot_be_kept_is_said(self) -> None:
        objective = Objective(deadline_s=0.001, budget=1e-9)
        found = plan(diamond(objective=objective))
        assert len(found.given_up) == 2
        assert "deadline of 0.001 s is missed" in found.given_up[0]
        assert "budget of 1e-09 is exceeded" in found.given_up[1]
        assert all(note in found.summary() for note in found.given_up)
        base = diamond()
        due = Problem(replace(base.workload, deadline_s=(0.001,) * 8), base.machine)
        assert "8 of 8 row groups end after their deadline" in plan(due).given_up[0]

    def test_impossible_objectives_are_refused(self) -> None:
        with pytest.raises(PlanError, match="no objective 'speed'"):
            Objective("speed")  # type: ignore[arg-type]
        with pytest.raises(PlanError, match="deadline_s is -1"):
            Objective(deadline_s=-1)
        for limit in ("deadline_s", "budget"):
            with pytest.raises(PlanError, match=f"{limit} is nan"):
                Objective(**{limit: float("nan")})  # type: ignore[arg-type]
        with pytest.raises(PlanError, match="percentile"):
            Objective("percentile_latency", percentile=0)


class TestBadInput:
    def test_an_unknown_scheduler_lists_the_known_ones(self) -> None:
        with pytest.raises(PlanError, match=r"no scheduler 'magic'.*greedy"):
            plan(diamond(), "magic")

    def test_a_model_that_fits_no_worker_says_why(self) -> None:
        with pytest.raises(PlanError, match=r"'large' fits no worker: w0 has 5 GB, it needs 10 GB"):
            engines = {"small": engine(weights=1e9), "large": engine()}
            machine = Machine((WorkerSpec("w0", engines, 5e9),), (ToolLaneSpec("http"),))
            Problem(diamond().workload, machine)

    @pytest.mark.parametrize("method", METHODS)
    def test_operations_that_one_worker_alone_can_run(self, method: str) -> None:
        engines = {"small": engine(), "large": engine(weights=50e9)}
        workers = [WorkerSpec("big", engines, 55e9)]
        workers += [WorkerSpec(f"w{i}", {"small": engine()}, 20e9) for i in range(2)]
        operations = tuple(call(f"c{i}", "large") for i in range(5))
        problem = Problem(Workload(operations, even_groups(8, 2)), Machine(tuple(workers)))
        assert plan(problem, method).simulation.calls == 40

    def test_no_workers_at_all(self) -> None:
        with pytest.raises(PlanError, match="no worker is there"):
            Problem(diamond().workload, Machine((), (ToolLaneSpec("http"),)))

    def test_room_for_weights_but_not_for_a_call(self) -> None:
        problem = diamond(n_workers=1, memory=10e9 + 1e5 * 50)
        with pytest.raises(PlanError, match=r"no schedule can run this plan.*KV cache"):
            plan(problem)

    def test_a_cycle_through_placements_is_no_schedule(self) -> None:
        operations = (call("a", "m"), call("b", "m", 0))
        workers = tuple(WorkerSpec(f"w{i}", {"m": engine()}, 1e12) for i in range(2))
        problem = Problem(Workload(operations, (1, 1)), Machine(workers))
        search = Search(problem, lambda: 0.0)
        cyclic = Assignment([0, 1, 1, 0], [1.0, 1.0, 0.0, 0.0], order="strict")
        assert search.score(cyclic, "by hand") == float("inf")
        with pytest.raises(PlanError, match=r"no schedule can run this plan.*waits for itself"):
            search.schedule()
        assert plan(problem).simulation.calls == 4

    def test_a_missing_tool_lane(self) -> None:
        with pytest.raises(PlanError, match="tool lane 'http'"):
            Problem(diamond().workload, Machine(diamond().machine.workers))

    def test_the_epoch_dp_refuses_large_graphs(self) -> None:
        operations = tuple(call(f"c{i}", "m") for i in range(20))
        machine = Machine((WorkerSpec("w", {"m": engine()}, 1e12),))
        with pytest.raises(PlanError, match="this plan has 20"):
            plan(Problem(Workload(operations, (4,)), machine), "dp")

    @pytest.mark.parametrize("method", [m for m in METHODS if m != "dp"])
    def test_nothing_to_do(self, method: str) -> None:
        empty = Problem(Workload((), (3,)), Machine(()))
        assert plan(empty, method).score == 0
        tools = Workload((Operation("t", ToolWork("http", 1.0)),), (4,))
        only_tools = Problem(tools, Machine((), (ToolLaneSpec("http", 2),)))
        assert plan(only_tools, method).score == 2.0
        no_rows = diamond(rows=0, groups=1)
        assert plan(no_rows, method).simulation.calls == 0
