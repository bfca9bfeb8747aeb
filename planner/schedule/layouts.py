"""The choice between machines: the same accelerators as single workers or tensor-parallel groups,
with more or fewer models resident, or rented in other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from costmodel.simulator.machine import Machine
from costmodel.simulator.workload import Workload
from planner.errors import PlanError
from planner.schedule.auto import schedule
from planner.schedule.objective import MAKESPAN, Objective
from planner.schedule.problem import Problem
from planner.schedule.schedule import Now, Schedule


@dataclass(frozen=True)
class LayoutChoice:
    """The best layout with its schedule.

    Attributes:
        scores: of every layout that could run the workload.
        refused: why the others could not.
    """

    layout: str
    machine: Machine
    schedule: Schedule
    scores: Mapping[str, float]
    refused: Mapping[str, str]


def choose_layout(
    workload: Workload,
    layouts: Mapping[str, Machine],
    *,
    now: Now,
    budget_s: float | None = 2.0,
    objective: Objective = MAKESPAN,
    method: str = "auto",
    seed: int = 0,
    max_steps: int | None = None,
) -> LayoutChoice:
    """Schedule `workload` on each of `layouts` (by name), an equal share of the budget each, and
    take the best; the first of equal ones.

    Raises `PlanError` when none can run it, with the reason of each.
    """
    scores: dict[str, float] = {}
    refused: dict[str, str] = {}
    best: tuple[str, Schedule] | None = None
    share = budget_s / max(1, len(layouts)) if budget_s is not None else None
    for name, machine in layouts.items():
        try:
            found = schedule(
                Problem(workload, machine, objective),
                method,
                now=now,
                budget_s=share,
                seed=seed,
                max_steps=max_steps,
            )
        except PlanError as error:
            refused[name] = str(error)
            continue
        scores[name] = found.score
        if best is None or found.score < best[1].score:
            best = name, found
    if best is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise PlanError(f"no layout can run this plan: {reasons or 'none was given'}")
    return LayoutChoice(best[0], layouts[best[0]], best[1], scores, refused)
