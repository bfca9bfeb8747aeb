"""Planning again while a run is under way, when what is measured leaves what was estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from costmodel.simulator.workload import ModelWork, Operation, ToolWork, Workload, even_groups
from costmodel.usage import OpMetrics
from planner.errors import PlanError
from planner.physical import PhysicalPlan, worker_at
from planner.schedule.assign import ScheduledPlan
from planner.schedule.auto import schedule
from planner.schedule.problem import Problem
from planner.schedule.schedule import Now, Schedule
from planner.schedule.to_plan import with_schedule

MIN_CALLS = 16
"""Calls of an operator that must have been made before its mean means anything."""

LENGTH_FACTOR = 1.5
PASS_RATE_FACTOR = 1.25
LATENCY_FACTOR = 2.0
"""A mean outside the estimate by more than this factor, up or down, has left its interval."""

MIN_ROWS_LEFT = 8


class Measured(Protocol):
    """What a run has measured; the runtime's `Observed`."""

    @property
    def metrics(self) -> Mapping[str, OpMetrics]: ...
    @property
    def rows_started(self) -> int: ...
    @property
    def rows_ended(self) -> int: ...
    @property
    def rows_total(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Drift:
    """One estimate that did not hold: the operation, which number, both values."""

    operation: str
    what: str
    estimated: float
    measured: float

    def __str__(self) -> str:
        return f"{self.operation}: {self.what} {self.estimated:.3g} expected, {self.measured:.3g}"


def drifts(
    operations: tuple[Operation, ...],
    fingerprints: tuple[str, ...],
    measured: Measured,
) -> list[Drift]:
    """Estimates outside their intervals: lengths of answers, calls a row, latencies of tools."""
    found: list[Drift] = []
    for op, fingerprint in zip(operations, fingerprints, strict=True):
        metrics = measured.metrics.get(fingerprint)
        if metrics is None or metrics.made < MIN_CALLS:
            continue
        work = op.work
        if isinstance(work, ModelWork):
            mean = metrics.usage.output_tokens / metrics.made
            if _outside(work.output_tokens, mean, LENGTH_FACTOR):
                found.append(Drift(op.name, "answer tokens", work.output_tokens, mean))
        else:
            mean = metrics.busy_s / metrics.made
            if _outside(work.latency_s, mean, LATENCY_FACTOR):
                found.append(Drift(op.name, "seconds", work.latency_s, mean))
        if measured.rows_ended >= MIN_CALLS:
            # Rows under way have made some of their calls: counted against those that ended, the
            # rate is too high by their share.
            rate = metrics.made / max(measured.rows_started, 1)
            upper = metrics.made / measured.rows_ended
            if op.calls_per_row > upper * PASS_RATE_FACTOR:
                found.append(Drift(op.name, "calls a row", op.calls_per_row, upper))
            elif op.calls_per_row * PASS_RATE_FACTOR < rate:
                found.append(Drift(op.name, "calls a row", op.calls_per_row, rate))
    return found


def corrected(operations: tuple[Operation, ...], found: list[Drift]) -> tuple[Operation, ...]:
    """The operations with what was measured in place of what did not hold."""
    by_name: dict[str, list[Drift]] = {}
    for drift in found:
        by_name.setdefault(drift.operation, []).append(drift)
    result: list[Operation] = []
    for op in operations:
        for drift in by_name.get(op.name, ()):
            work = op.work
            if drift.what == "calls a row":
                op = replace(op, calls_per_row=drift.measured)
            elif isinstance(work, ModelWork):
                op = replace(op, work=replace(work, output_tokens=round(drift.measured)))
            else:
                assert isinstance(work, ToolWork)
                op = replace(op, work=replace(work, latency_s=drift.measured))
        result.append(op)
    return tuple(result)


@dataclass
class Replanner:
    """The `replan` function of a run: keeps the plan while its estimates hold.

    Rows that have started keep their workers; only the shares of rows behind them change. When the
    new schedule is not better for them than the old one, the old one stays.

    Attributes:
        notes: why and how the plan was changed, for the trace.
    """

    scheduled: ScheduledPlan
    now: Now
    budget_s: float | None = 0.25
    max_steps: int | None = None
    notes: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self._physical = self.scheduled.physical
        self._operations = self.scheduled.planned.workload.operations
        self._looks = 0

    def __call__(self, measured: Measured) -> PhysicalPlan | None:
        """A plan for the rows that have not started, or None."""
        left = measured.rows_total - measured.rows_started
        if left < MIN_ROWS_LEFT:
            return None
        fingerprints = self.scheduled.planned.fingerprints
        found = drifts(self._operations, fingerprints, measured)
        if not found:
            return None
        self._operations = corrected(self._operations, found)
        groups = max(1, self.scheduled.problem.n_groups)
        workload = Workload(self._operations, even_groups(left, groups))
        problem = Problem(workload, self.scheduled.machine, self.scheduled.problem.objective)
        try:
            better = schedule(
                problem,
                now=self.now,
                budget_s=self.budget_s,
                seed=self._looks,
                max_steps=self.max_steps,
                allow_waiting=False,
            )
        except PlanError as error:
            self.notes.append(f"kept the plan: {error}")
            return None
        self._looks += 1
        reasons = "; ".join(map(str, found))
        before = self._score_of_now(problem, measured.rows_started)
        if before is not None and better.score >= before * 0.99:
            self.notes.append(f"kept the plan ({reasons}): {before:.4g} is not beaten")
            return None
        self._physical = with_schedule(
            self._physical,
            problem,
            better,
            fingerprints,
            self.scheduled.workers,
            first_row=measured.rows_started,
        )
        # Rows under way keep the nesting that their priorities were made with.
        self._physical = replace(
            self._physical,
            row_block=self.scheduled.physical.row_block,
            workers=self.scheduled.physical.workers
            + tuple(w for w in self._physical.workers if w not in self.scheduled.physical.workers),
        )
        self.notes.append(f"planned {left} rows again ({reasons}): {_describe(better)}")
        return self._physical

    def _score_of_now(self, problem: Problem, started: int) -> float | None:
        """What the present shares would make of the rows that are left."""
        names = {spec.name: i for i, spec in enumerate(problem.machine.workers)}
        groups = problem.n_groups
        worker = [-1] * problem.n_items
        for position, fingerprint in enumerate(self.scheduled.planned.fingerprints):
            if position not in problem.calls_models:
                continue
            runs = self._physical.shares.get(fingerprint)
            at = started
            for g, rows in enumerate(problem.workload.group_rows):
                name = self._physical.placements[fingerprint]
                if runs is not None:
                    name = worker_at(runs, at + rows // 2)
                worker[position * groups + g] = names[name]
                at += rows
        plan = replace(
            self.scheduled.schedule.assignment,
            worker=worker,
            priority=[float(i) for i in range(problem.n_items)],
        )
        run = problem.simulate(replace(plan, order="soft", stage=None, groups_in_flight=None))
        return problem.objective.score(run, problem.workload)


def _outside(estimated: float, measured: float, factor: float) -> bool:
    if measured <= 0 or estimated <= 0:
        return measured != estimated
    return not 1 / factor <= measured / estimated <= factor


def _describe(found: Schedule) -> str:
    return f"{found.simulation.makespan_s:.3g} s expected, by {found.method}"
