"""Benchmarks of the scheduler, all on the simulator. Each returns one JSON-able object.

Where quality is compared, planning is limited by processor time, so that other work on the machine
does not change what is found. Planning time itself is measured by the wall clock, with the
processor's time beside it.

    halo-bench schedule-gap        the scheduler against the proven optimum of small instances
    halo-bench schedule-shapes     W1 to W6 at four sizes on 1, 3 and 8 GPUs against each baseline
    halo-bench schedule-planning   planning time at three scales
    halo-bench schedule-anytime    quality against planning time
    halo-bench simulator           10,000 queries of 10 calls on 8 workers

`python -m workloads.schedule_bench NAME --help` has the knobs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from halo.scheduling import (
    BASELINES,
    H200_8B,
    Assignment,
    EngineSpec,
    Machine,
    ModelWork,
    Operation,
    Problem,
    PromptPart,
    Simulator,
    ToolWork,
    WorkerSpec,
    Workload,
    even_groups,
    schedule,
    simulate,
    solve_exactly,
    with_co_residency,
)
from workloads.schedule_instances import small_instance
from workloads.shapes import SHAPES, TOOL_LANES, gpus, trading

wall: Callable[[], float] = time.perf_counter
processor: Callable[[], float] = time.process_time


def gap(
    instances: int = 60,
    limit_s: float = 60.0,
    steps: int = 300,
    threads: int = 8,
    known: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The scheduler's makespan over the optimum's. The scheduler's effort is a number of search
    steps, so it does not depend on the machine. Instances whose optimum the solver could not prove
    in its time are listed apart, with the gap to the solver's bound and to its best schedule.

    `known`: rows of an earlier result, whose proven optima are taken as they are: what is proven
    once need not be proven again, and time goes to the others."""
    proofs = {row["seed"]: row for row in known if row["proven"]}
    rows: list[dict[str, Any]] = []
    seed = 0
    while len(rows) < instances:
        problem = small_instance(seed)
        seed += 1
        if not problem.model_ops:
            continue
        began = processor()
        found = schedule(problem, now=processor, budget_s=None, max_steps=steps)
        planning_s = processor() - began
        row: dict[str, Any] = {
            "seed": seed - 1,
            "operators": len(problem.workload.operations),
            "groups": problem.n_groups,
            "items": len(problem.model_ops) * problem.n_groups,
            "workers": len(problem.machine.workers),
            "models": len(problem.models),
            "tools": len(problem.workload.operations) > len(problem.model_ops),
            "limited": any(
                len(problem.workers_for[model]) < len(problem.machine.workers)
                for model in problem.models
            ),
            "scheduler_s": round(found.score, 4),
            "planning_s": round(planning_s, 2),
            "method": found.method,
        }
        proof = proofs.get(seed - 1)
        if proof is not None:
            row |= {key: proof[key] for key in _SOLVED}
        else:
            exact = solve_exactly(problem, limit_s=limit_s, workers=threads, hint=found.assignment)
            row |= {
                "solver_best_s": round(exact.makespan_s, 4) if exact.assignment else None,
                "optimum_s": round(exact.makespan_s, 4) if exact.proven else None,
                "optimum_simulated_s": round(exact.simulated_s, 4) if exact.proven else None,
                "bound_s": round(exact.bound_s, 4),
                "proven": exact.proven,
                "solver_s": round(exact.solve_s, 1),
            }
        row["gap"] = round(row["scheduler_s"] / row["bound_s"] - 1, 5) if row["bound_s"] else None
        rows.append(row)
        _say(json.dumps(row))
    proven = [row for row in rows if row["proven"]]
    others = [row for row in rows if not row["proven"]]
    return {
        "instances": len(rows),
        "proven": len(proven),
        "mean_gap": _mean([max(0.0, row["gap"]) for row in proven]),
        "worst_gap": max((row["gap"] for row in proven), default=None),
        "not_proven_mean_gap_to_bound": _mean(
            [row["gap"] for row in others if row["gap"] is not None]
        ),
        "not_proven_worst_over_solver_best": max(
            (round(r["scheduler_s"] / r["solver_best_s"], 4) for r in others if r["solver_best_s"]),
            default=None,
        ),
        "largest_difference_simulated": max(
            (round(abs(r["optimum_s"] - r["optimum_simulated_s"]), 6) for r in proven),
            default=None,
        ),
        "steps": steps,
        "limit_s": limit_s,
        "rows": rows,
    }


_SOLVED = (
    "solver_best_s", "optimum_s", "optimum_simulated_s", "bound_s", "proven", "solver_s",
)  # fmt: skip
"""What a row says of the solver."""


def shapes(
    queries: Sequence[int] = (16, 64, 1024, 10_000),
    gpu_counts: Sequence[int] = (1, 3, 8),
    budget_s: float | None = None,
    names: Sequence[str] = tuple(SHAPES),
) -> dict[str, Any]:
    """Makespans of the scheduler and of each baseline, the published planner's choices beside
    them. Baselines run as published, one model at a time on a worker; what they would gain from
    models side by side is a column of its own. Everything is simulated at the same group sizes."""
    rows: list[dict[str, Any]] = []
    for n_rows in queries:
        for n_gpus in gpu_counts:
            for name in names:
                seconds = budget_s or (1.0 if n_rows <= 1024 else 10.0)
                rows.append(_shape_row(name, n_rows, n_gpus, seconds))
                _say(json.dumps(rows[-1]))
    side = {
        baseline: _geometric(
            [
                r["baselines_side_by_side_s"].get(baseline, r["baselines_s"][baseline])
                / r["scheduler_s"]
                for r in rows
            ]
        )
        for baseline in BASELINES
    }
    return {
        "hardware": "h200 (profile)",
        "clock": "processor",
        "pairs": len(rows),
        "geometric_mean_speedup": _speedups(rows),
        "geometric_mean_speedup_over_baselines_with_side_by_side": side,
        "geometric_mean_speedup_over_published_dp": _geometric(
            [r["published_dp_s"] / r["scheduler_s"] for r in rows]
        ),
        "worst_over_best_baseline": max(r["over_best_baseline"] for r in rows),
        "by_scale": {
            f"{q} queries, {g} GPUs": _speedups(
                [r for r in rows if r["queries"] == q and r["gpus"] == g]
            )
            for q in queries
            for g in gpu_counts
        },
        "rows": rows,
    }


def _shape_row(name: str, n_rows: int, n_gpus: int, budget_s: float) -> dict[str, Any]:
    """One workload at one scale, by the scheduler and by each baseline."""
    workload = SHAPES[name]().workload(n_rows, max(8, 4 * n_gpus))
    problem = Problem(workload, gpus(n_gpus))
    began = processor()
    found = schedule(problem, now=processor, budget_s=budget_s)
    planning_s = processor() - began
    baselines: dict[str, float] = {}
    together: dict[str, float] = {}
    for baseline, make in BASELINES.items():
        plan = make(problem)
        baselines[baseline] = problem.simulate(plan).makespan_s
        side_by_side = with_co_residency(problem, plan)
        if any(side_by_side.co_resident):
            together[baseline] = problem.simulate(side_by_side).makespan_s
    published = schedule(problem, "published-dp", now=processor, budget_s=None)
    return {
        "workload": name,
        "queries": n_rows,
        "gpus": n_gpus,
        "scheduler_s": round(found.score, 3),
        "method": found.method,
        "planning_s": round(planning_s, 2),
        "baselines_s": {k: round(v, 3) for k, v in baselines.items()},
        "baselines_side_by_side_s": {k: round(v, 3) for k, v in together.items()},
        "published_dp_s": round(published.score, 3),
        "over_best_baseline": round(found.score / min(baselines.values()), 4),
        "hit_share": round(found.simulation.hit_share, 4),
    }


def _speedups(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Geometric means over rows of what the scheduler gains over each baseline."""
    return {
        baseline: _geometric([r["baselines_s"][baseline] / r["scheduler_s"] for r in rows])
        for baseline in BASELINES
    }


def planning(repeat: int = 3) -> dict[str, Any]:
    """Planning time by the wall clock, with the budgets that `auto` would be given: it stops by
    them, so what matters is that it does stop and what it has by then. The times are the longest
    and the median of `repeat`; processor time that is far below the wall's says that the machine
    had other things to do."""
    cases: dict[str, Any] = {}

    def run(name: str, problem: Problem, budget_s: float, limit_s: float) -> None:
        times: list[float] = []
        spent: list[float] = []
        scores: list[float] = []
        scored: list[int] = []
        for _ in range(max(1, repeat)):
            began, used = wall(), processor()
            fresh = Problem(problem.workload, problem.machine)
            found = schedule(fresh, now=wall, budget_s=budget_s)
            times.append(wall() - began)
            spent.append(processor() - used)
            scores.append(found.score)
            scored.append(len(found.tried))
        best = min(problem.simulate(make(problem)).makespan_s for make in BASELINES.values())
        cases[name] = {
            "operators": len(problem.workload.operations),
            "rows": problem.workload.rows,
            "workers": len(problem.machine.workers),
            "budget_s": budget_s,
            "planning_s": round(max(times), 3),
            "planning_median_s": round(statistics.median(times), 3),
            "processor_s": round(max(spent), 3),
            "limit_s": limit_s,
            "scheduler_s": round(max(scores), 2),
            "best_baseline_s": round(best, 2),
            "scored": min(scored),
        }
        _say(f"{name}: {cases[name]}")

    for name, shape in SHAPES.items():
        run(f"{name}, 1,024 queries, 3 GPUs", Problem(shape().workload(1024, 12), gpus(3)), 0.8, 1)
    run(
        "trading, 88 operators, 100 rows, 8 workers",
        Problem(trading().workload(100, 32), gpus(8)),
        1.5,
        2.0,
    )
    run("200 operators, 10,000 rows, 64 workers", _large(), 10.0, 20.0)
    return {"repeat": repeat, "cases": cases}


def anytime(budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)) -> dict[str, Any]:
    """The makespan that each planning time, of the processor, reaches, over the best of all."""
    curves: dict[str, Any] = {}
    for name, n_rows, n_gpus in (("W1", 1024, 3), ("W3", 64, 3), ("W6", 1024, 8), ("W4", 64, 8)):
        points: list[list[float]] = []
        for budget in budgets:
            problem = Problem(SHAPES[name]().workload(n_rows, 4 * n_gpus), gpus(n_gpus))
            began = processor()
            found = schedule(problem, now=processor, budget_s=budget)
            points.append([budget, round(processor() - began, 3), round(found.score, 3)])
        best = min(p[2] for p in points)
        curves[f"{name}, {n_rows} queries, {n_gpus} GPUs"] = [
            {"budget_s": b, "planning_s": t, "makespan_s": s, "over_best": round(s / best, 4)}
            for b, t, s in points
        ]
        _say(f"{name}: {points}")
    return {"clock": "processor", "curves": curves}


def simulator() -> dict[str, Any]:
    """10,000 queries of 10 calls with lengths that differ, each row by itself, on 8 workers."""
    draw = Random(0)
    n_rows = 10_000
    operations: list[Operation] = []
    for i in range(10):
        prompt = (
            PromptPart(f"system{i}", 120),
            PromptPart("query", 200, True),
            PromptPart(f"own{i}", 150, True),
        )
        lengths = [max(1, round(draw.gammavariate(4, 25))) for _ in range(n_rows)]
        inputs = (i - 1,) if i % 3 else ()
        operations.append(
            Operation(f"call{i}", ModelWork("m", prompt, 100), inputs, output_tokens=lengths)
        )
    workload = Workload(tuple(operations), (1,) * n_rows)
    engine = EngineSpec(H200_8B, 16e9, 131_072)
    machine = Machine(tuple(WorkerSpec(f"w{i}", {"m": engine}, 127e9, ("m",)) for i in range(8)))
    worker = [row * 8 // n_rows for _ in operations for row in range(n_rows)]
    priority = [float(row * 10 + op) for op in range(10) for row in range(n_rows)]
    began = wall()
    run = simulate(workload, machine, Assignment(worker, priority))
    row_s = wall() - began
    grouped = Workload(
        tuple(
            Operation(op.name, op.work, op.inputs)
            for op in operations
        ),
        even_groups(n_rows, 64),
    )  # fmt: skip
    began = wall()
    simulator = Simulator(grouped, machine, chunks_per_event=64)
    of_groups = [g * 8 // 64 for _ in operations for g in range(64)]
    by_row = [float(g * 10 + op) for op in range(10) for g in range(64)]
    coarse = simulator.run(Assignment(of_groups, by_row))
    return {
        "calls": run.calls,
        "events": run.events,
        "wall_s": round(row_s, 2),
        "makespan_s": round(run.makespan_s, 2),
        "hit_share": round(run.hit_share, 4),
        "grouped_wall_s": round(wall() - began, 3),
        "grouped_makespan_s": round(coarse.makespan_s, 2),
        "grouped_over_rows": round(coarse.makespan_s / run.makespan_s, 4),
    }


def _large() -> Problem:
    """200 operators in layers of 10, three models, every tenth a tool; 10,000 rows, 64 H200s."""
    draw = Random(7)
    models = list(gpus(1).workers[0].engines)
    operations: list[Operation] = []
    for i in range(200):
        layer = i // 10
        before = range((layer - 1) * 10, layer * 10)
        inputs = tuple(sorted(draw.sample(before, draw.randint(1, 3)))) if layer else ()
        if i % 10 == 9:
            operations.append(Operation(f"tool{i}", ToolWork("sql", 0.1), inputs))
            continue
        parts = [PromptPart(f"system{i}", 120), PromptPart("query", 60, True)]
        parts += [PromptPart(f"value{j}", 100, True) for j in inputs]
        work = ModelWork(models[i % 3], tuple(parts), draw.choice([60, 120, 200]))
        operations.append(Operation(f"call{i}", work, inputs))
    workload = Workload(tuple(operations), even_groups(10_000, 64))
    return Problem(workload, Machine(gpus(64).workers, TOOL_LANES))


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


def _geometric(values: Sequence[float]) -> float | None:
    return round(math.exp(sum(map(math.log, values)) / len(values)), 4) if values else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "schedule-gap": gap,
    "schedule-shapes": shapes,
    "schedule-planning": planning,
    "schedule-anytime": anytime,
    "simulator": simulator,
}


def main() -> None:
    """The same benchmarks with their knobs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=list(BENCHMARKS))
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--instances", type=int, default=60, help="schedule-gap")
    parser.add_argument("--limit-s", type=float, default=60.0, help="schedule-gap: solver")
    parser.add_argument("--threads", type=int, default=8, help="schedule-gap: solver")
    parser.add_argument(
        "--known", type=Path, help="schedule-gap: an earlier result, whose proofs are taken"
    )
    parser.add_argument("--steps", type=int, default=300, help="schedule-gap: search steps")
    parser.add_argument("--queries", type=int, nargs="+", help="schedule-shapes")
    parser.add_argument("--gpus", type=int, nargs="+", help="schedule-shapes")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="schedule-shapes")
    parser.add_argument("--budget-s", type=float, help="schedule-shapes: processor time a schedule")
    parser.add_argument("--repeat", type=int, default=3, help="schedule-planning")
    arguments = parser.parse_args()
    if arguments.name == "schedule-gap":
        known = json.loads(arguments.known.read_text())["rows"] if arguments.known else ()
        result = gap(
            arguments.instances, arguments.limit_s, arguments.steps, arguments.threads, known
        )
    elif arguments.name == "schedule-shapes":
        result = shapes(
            arguments.queries or (16, 64, 1024, 10_000),
            arguments.gpus or (1, 3, 8),
            arguments.budget_s,
            arguments.shapes or tuple(SHAPES),
        )
    elif arguments.name == "schedule-planning":
        result = planning(arguments.repeat)
    else:
        result = BENCHMARKS[arguments.name]()
    text = json.dumps({"workload": arguments.name, **result})
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
