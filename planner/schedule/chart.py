"""The chart of a physical plan: how the simulator expects it to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from costmodel.simulator.assignment import Assignment
from costmodel.simulator.engine import Simulator
from costmodel.simulator.result import Simulation, Span
from costmodel.simulator.timer import StepTimer
from planner.logical import ModelOp
from planner.physical import PhysicalPlan, Worker, worker_at
from planner.schedule.from_plan import PlannedWorkload, machine_for, planned_workload
from planner.schedule.gantt import Chart
from planner.stats import CountTokens, PlanStats

CHART_GROUPS = 16


def simulate_plan(
    physical: PhysicalPlan,
    stats: PlanStats,
    count_tokens: CountTokens,
    timers: Mapping[str, StepTimer] | None = None,
) -> tuple[Simulation, PlannedWorkload]:
    """Run the plan as it is in the simulator, with a timeline."""
    models: dict[str, list[Worker]] = {}
    for op in physical.logical.walk_all():
        names = [physical.placements.get(op.fingerprint, "")]
        names += [name for name, _ in physical.shares.get(op.fingerprint, ())]
        for worker in physical.workers:
            if isinstance(op, ModelOp) and worker.name in names:
                of_model = models.setdefault(op.model, [])
                if worker not in of_model:
                    of_model.append(worker)
    planned = planned_workload(physical.logical, stats, count_tokens, n_groups=CHART_GROUPS)
    machine = machine_for(planned.workload, models, timers)
    plan = assignment_of(physical, planned, [spec.name for spec in machine.workers])
    simulator = Simulator(planned.workload, machine, chunks_per_event=8)
    return simulator.run(plan, timeline=True), planned


def assignment_of(
    physical: PhysicalPlan, planned: PlannedWorkload, workers: Sequence[str]
) -> Assignment:
    """What the simulator is told of a physical plan. A group goes where its middle row goes."""
    workload = planned.workload
    groups = len(workload.group_rows)
    position_of = {name: i for i, name in enumerate(workers)}
    worker: list[int] = []
    priority: list[float] = []
    stride = max(physical.priority.values(), default=0) + 1
    block = physical.row_block
    for fingerprint in planned.fingerprints:
        runs = physical.shares.get(fingerprint)
        home = physical.placements.get(fingerprint)
        rank = physical.priority.get(fingerprint, 0)
        at = 0
        for g in range(groups):
            rows = workload.group_rows[g]
            name = home
            if runs is not None:
                name = worker_at(runs, at + rows // 2)
            worker.append(position_of[name] if name is not None else -1)
            row = at
            priority.append(float(row // block * stride * block + rank * block + row % block))
            at += rows
    return Assignment(worker, priority, co_resident=[True] * len(workers))


def plan_chart(
    physical: PhysicalPlan,
    stats: PlanStats,
    count_tokens: CountTokens,
    timers: Mapping[str, StepTimer] | None = None,
) -> Chart:
    """The estimate, ready to draw."""
    run, _ = simulate_plan(physical, stats, count_tokens, timers)
    return Chart("estimate (simulated)", run.timeline, tuple(w.name for w in physical.workers))


def run_chart(
    physical: PhysicalPlan,
    calls: Sequence[tuple[str, str, float, float, int, int]],
) -> Chart:
    """What a run recorded. `calls`: (operator fingerprint, kind, start, end, prompt tokens, cached
    tokens). The journal does not say which of several workers a call went to; calls of operators
    that are split are drawn on a line for all of their workers."""
    models = {
        op.fingerprint: op.model or "the default model"
        for op in physical.logical.walk_all()
        if isinstance(op, ModelOp)
    }
    labels = {op.fingerprint: op.label or op.kind for op in physical.logical.walk_all()}
    spans: list[Span] = []
    for fingerprint, kind, start_s, end_s, prompt, cached in calls:
        place = physical.placements.get(fingerprint) or kind
        runs = physical.shares.get(fingerprint)
        if runs is not None:
            place = f"{len({name for name, _ in runs})} workers of {models[fingerprint]}"
        label = labels.get(fingerprint, fingerprint[:8])
        what = "calls" if fingerprint in physical.placements else "tool"
        spans.append(
            Span(
                place,
                "calls" if what == "calls" else "tool",
                label,
                -1,
                start_s,
                end_s,
                1,
                float(cached),
                float(prompt),
            )
        )
    return Chart("actual (recorded)", spans)
