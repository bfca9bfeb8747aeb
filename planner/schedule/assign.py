"""Scheduling of a placed plan over several workers of one model: what the session calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costmodel.simulator.machine import Machine
from costmodel.simulator.timer import StepTimer
from planner.physical import PhysicalPlan, Worker
from planner.schedule.auto import schedule
from planner.schedule.from_plan import PlannedWorkload, machine_for, planned_workload
from planner.schedule.objective import MAKESPAN, Objective
from planner.schedule.problem import Problem
from planner.schedule.schedule import Now, Schedule
from planner.schedule.to_plan import with_schedule
from planner.stats import CountTokens, PlanStats

GROUPS_PER_WORKER = 4
MAX_GROUPS = 128


@dataclass(frozen=True)
class ScheduledPlan:
    """A physical plan with the schedule behind it.

    Attributes:
        planned: the workload and the operators behind its operations.
        workers: by name.
    """

    physical: PhysicalPlan
    schedule: Schedule
    problem: Problem
    planned: PlannedWorkload
    machine: Machine
    workers: Mapping[str, Worker]


def schedule_plan(
    physical: PhysicalPlan,
    stats: PlanStats,
    count_tokens: CountTokens,
    workers: Mapping[str, Sequence[Worker]],
    *,
    now: Now,
    method: str = "auto",
    budget_s: float | None = 1.0,
    seed: int = 0,
    max_steps: int | None = None,
    objective: Objective = MAKESPAN,
    timers: Mapping[str, StepTimer] | None = None,
    latency_s: Mapping[str, float] | None = None,
    tool_limits: Mapping[str, int] | None = None,
) -> ScheduledPlan:
    """Decide which worker of its model runs which rows of each operator, and in which order.

    `workers`: by model name; `timers`, by worker name, `latency_s`, by tool operator, and
    `tool_limits` (calls at once), by tool name, where they are known. Raises `PlanError`.
    """
    by_name = {worker.name: worker for those in workers.values() for worker in those}
    n_groups = min(MAX_GROUPS, max(8, GROUPS_PER_WORKER * len(by_name)))
    planned = planned_workload(
        physical.logical, stats, count_tokens, n_groups=n_groups, latency_s=latency_s
    )
    machine = machine_for(planned.workload, workers, timers, tool_limits)
    problem = Problem(planned.workload, machine, objective)
    found = schedule(problem, method, now=now, budget_s=budget_s, seed=seed, max_steps=max_steps)
    decided = with_schedule(physical, problem, found, planned.fingerprints, by_name)
    return ScheduledPlan(decided, found, problem, planned, machine, by_name)
