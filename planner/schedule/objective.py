"""What a schedule is to minimise, and the price of a simulated run under it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from costmodel.simulator.result import Simulation
from costmodel.simulator.workload import Workload
from planner.errors import PlanError

Goal = Literal["makespan", "mean_latency", "percentile_latency", "money", "energy"]
GOALS: tuple[Goal, ...] = ("makespan", "mean_latency", "percentile_latency", "money", "energy")

LATE_WEIGHT = 1e6
"""A second of lateness, or a unit over the budget, outweighs any amount of the goal itself."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A goal with limits.

    Attributes:
        goal: `makespan` (s), `mean_latency` (s; over rows, weighted by their priorities),
            `percentile_latency` (s), `money` (in the unit of the workers' prices), `energy` (J).
        percentile: of `percentile_latency`.
        deadline_s: for the whole batch; groups may have their own in the workload.
        budget: upper limit of money.
        tie_break_s: share of the makespan added to goals that ignore time, so that of two equally
            cheap plans the faster wins.
    """

    goal: Goal = "makespan"
    percentile: float = 95.0
    deadline_s: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise PlanError(f"no objective {self.goal!r}; the objectives are: {', '.join(GOALS)}")
        if not 0 < self.percentile <= 100:
            raise PlanError(f"percentile is {self.percentile}; it must be in (0, 100]")
        for name in ("deadline_s", "budget"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise PlanError(f"{name} is {value}; it cannot be kept, it must be >= 0")

    def score(self, simulation: Simulation, workload: Workload) -> float:
        """The price of a run: smaller is better."""
        return self.value(simulation, workload) + LATE_WEIGHT * self.excess(simulation, workload)

    def value(self, simulation: Simulation, workload: Workload) -> float:
        """The goal alone, without limits."""
        if self.goal == "makespan":
            return simulation.makespan_s
        if self.goal == "money":
            return simulation.money + 1e-9 * simulation.makespan_s
        if self.goal == "energy":
            return simulation.energy_j + 1e-9 * simulation.makespan_s
        latencies = group_latencies(simulation, workload)
        weights = [
            rows * (workload.priority[g] if workload.priority else 1.0)
            for g, rows in enumerate(workload.group_rows)
        ]
        if self.goal == "mean_latency":
            total = sum(weights)
            if not total:
                return 0.0
            return sum(s * w for s, w in zip(latencies, weights, strict=True)) / total
        return weighted_percentile(latencies, weights, self.percentile)

    def excess(self, simulation: Simulation, workload: Workload) -> float:
        """By how much the limits are broken: seconds of lateness and money over the budget."""
        over = 0.0
        if self.deadline_s is not None:
            over += max(0.0, simulation.makespan_s - self.deadline_s)
        if workload.deadline_s is not None:
            over += sum(
                max(0.0, end - due)
                for end, due in zip(simulation.group_end_s, workload.deadline_s, strict=True)
            )
        if self.budget is not None:
            over += max(0.0, simulation.money - self.budget)
        return over

    def given_up(self, simulation: Simulation, workload: Workload) -> list[str]:
        """What the run does not keep, in words; empty when it keeps everything."""
        notes: list[str] = []
        if self.deadline_s is not None and simulation.makespan_s > self.deadline_s:
            notes.append(
                f"the deadline of {self.deadline_s:g} s is missed: the batch is expected to take "
                f"{simulation.makespan_s:.1f} s"
            )
        if workload.deadline_s is not None:
            late = [
                end - due
                for end, due in zip(simulation.group_end_s, workload.deadline_s, strict=True)
                if end > due
            ]
            if late:
                notes.append(
                    f"{len(late)} of {len(workload.group_rows)} row groups end after their "
                    f"deadline, the worst {max(late):.1f} s late"
                )
        if self.budget is not None and simulation.money > self.budget:
            notes.append(
                f"the budget of {self.budget:g} is exceeded: the batch is expected to cost "
                f"{simulation.money:.3g}"
            )
        return notes


MAKESPAN = Objective()


def group_latencies(simulation: Simulation, workload: Workload) -> list[float]:
    """Seconds from each group's arrival to its end."""
    arrivals = workload.arrival_s or (0.0,) * len(workload.group_rows)
    return [end - start for end, start in zip(simulation.group_end_s, arrivals, strict=True)]


def weighted_percentile(values: list[float], weights: list[float], percentile: float) -> float:
    """The smallest value that `percentile` percent of the weight does not exceed.

    Example:
        >>> weighted_percentile([3.0, 1.0, 2.0], [1, 1, 2], 50), weighted_percentile([], [], 95)
        (2.0, 0.0)
    """
    pairs = sorted(zip(values, weights, strict=True))
    total = sum(weights)
    reached = 0.0
    for value, weight in pairs:
        reached += weight
        if reached >= total * percentile / 100 - 1e-12:
            return value
    return pairs[-1][0] if pairs else 0.0
