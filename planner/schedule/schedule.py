"""A schedule: an assignment with its simulated run and how it was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from costmodel.simulator.assignment import Assignment
from costmodel.simulator.result import Simulation
from planner.schedule.problem import Problem

Now = Callable[[], float]
"""Seconds on a monotonic clock: `Clock.now_s` of the caller."""


@dataclass(frozen=True)
class Schedule:
    """What a scheduler returns.

    Attributes:
        assignment: the decision. simulation: its run on the problem's simulator.
        score: the objective's price of that run.
        method: which scheduler made it, and from what.
        tried: (method, score) of everything that was scored, in order.
        curve: (seconds since planning began, best score) at each improvement.
        given_up: limits that even this schedule does not keep, in words.
    """

    assignment: Assignment
    simulation: Simulation
    score: float
    method: str
    tried: tuple[tuple[str, float], ...] = ()
    curve: tuple[tuple[float, float], ...] = ()
    given_up: tuple[str, ...] = ()
    planning_s: float = 0.0

    def summary(self) -> str:
        """One line: what was picked, out of what, and what it promises."""
        s = self.simulation
        text = (
            f"{self.method}: {s.makespan_s:.2f} s, {s.hit_share:.0%} of prompt tokens reused, "
            f"{s.switches} loads, workers busy {s.utilisation:.0%}; "
            f"{len(self.tried)} schedules scored in {self.planning_s:.2f} s"
        )
        return text + "".join(f"; {note}" for note in self.given_up)


@dataclass
class Search:
    """Scores assignments and remembers the best within a time limit.

    Attributes:
        until_s: on `now`; scoring goes on until then, and at least once.
        allow_waiting: whether strict orders may be answered.
        pool: (score, method, assignment) of everything that was noted.
    """

    problem: Problem
    now: Now
    until_s: float = float("inf")
    allow_waiting: bool = True
    best: Assignment | None = None
    best_run: Simulation | None = None
    best_score: float = float("inf")
    best_method: str = ""
    refusal: str = ""
    tried: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    curve: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    pool: list[tuple[float, str, Assignment]] = field(
        default_factory=list[tuple[float, str, Assignment]]
    )

    def __post_init__(self) -> None:
        self.began_s = self.now()

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return self.now() >= self.until_s

    def score(self, assignment: Assignment, method: str, *, note: bool = True) -> float:
        """Simulate and price `assignment`; infinite when it cannot run."""
        from costmodel.errors import SimulationError

        problem = self.problem
        try:
            run = problem.simulate(assignment)
        except SimulationError as error:
            price = float("inf")
            self.refusal = str(error)
        else:
            price = problem.objective.score(run, problem.workload)
            if price < self.best_score:
                self.best, self.best_run, self.best_score = assignment, run, price
                self.best_method = method
                self.curve.append((self.now() - self.began_s, price))
        if note:
            self.tried.append((method, price))
            self.pool.append((price, method, assignment))
        return price

    def schedule(self, method: str | None = None) -> Schedule:
        """The best so far. Raises `PlanError` when nothing could run."""
        from planner.errors import PlanError

        if self.best is None or self.best_run is None:
            raise PlanError(
                f"no schedule can run this plan: {self.refusal}. Use a larger worker, a smaller "
                "model or shorter prompts"
            )
        problem = self.problem
        return Schedule(
            self.best,
            self.best_run,
            self.best_score,
            method or self.best_method,
            tuple(self.tried),
            tuple(self.curve),
            tuple(problem.objective.given_up(self.best_run, problem.workload)),
            self.now() - self.began_s,
        )
