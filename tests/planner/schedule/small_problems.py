"""Problems that several tests of the scheduler plan."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from costmodel.simulator import (
    AffineTimer,
    EngineSpec,
    Machine,
    ModelWork,
    Operation,
    PromptPart,
    ToolLaneSpec,
    ToolWork,
    WorkerSpec,
    Workload,
    even_groups,
)
from planner.schedule.objective import MAKESPAN, Objective
from planner.schedule.problem import Problem

TIMER = AffineTimer(per_prefill_token_s=1e-4, decode_s=0.01, per_request_s=1e-4)


def engine(factor: float = 1.0, *, weights: float = 10e9, load_s: float = 2.0, **options: int) -> (
    EngineSpec
):  # fmt: skip
    return EngineSpec(
        TIMER.scaled(factor), weights, 1e5, load_s=load_s, wake_s=load_s / 2, **options
    )


def call(name: str, model: str, *inputs: int, own: int = 80, out: int = 30) -> Operation:
    parts = (PromptPart(f"system {name}", 50), PromptPart("query", 40, True),
             PromptPart(f"own {name}", own, True))  # fmt: skip
    return Operation(name, ModelWork(model, parts, out), inputs)


def diamond(
    rows: int = 32,
    n_workers: int = 2,
    *,
    memory: float = 25e9,
    groups: int = 8,
    objective: Objective = MAKESPAN,
) -> Problem:
    """Six model calls of two models and a tool; both models fit a worker when it has 25 GB."""
    operations = (
        call("plan", "small"),
        Operation("search", ToolWork("http", 0.3), (0,)),
        call("left", "small", 0),
        call("right", "large", 1),
        call("more", "large", 3),
        call("join", "small", 2, 4),
        call("check", "large", 5),
    )
    engines = {"small": engine(0.5), "large": engine(1.5)}
    machine = Machine(
        tuple(
            WorkerSpec(f"w{i}", engines, memory, power_w=500, idle_power_w=100, price_per_h=4.0)
            for i in range(n_workers)
        ),
        (ToolLaneSpec("http", 16),),
    )
    return Problem(Workload(operations, even_groups(rows, groups)), machine, objective)


def random_problem(seed: int) -> Problem:
    """A random graph on random workers, some with too little memory for one of the models."""
    draw = Random(seed)
    n = draw.randint(2, 9)
    operations: list[Operation] = []
    for i in range(n):
        inputs = tuple(sorted(draw.sample(range(i), draw.randint(0, min(i, 2)))))
        if i and draw.random() < 0.2:
            operations.append(Operation(f"tool{i}", ToolWork("http", draw.random()), inputs))
        else:
            model = draw.choice(["small", "large"])
            operations.append(call(f"call{i}", model, *inputs, out=draw.choice([5, 20, 60])))
    engines = {"small": engine(0.5), "large": engine(1.5, weights=18e9)}
    workers = [WorkerSpec("w0", engines, draw.choice([20e9, 40e9]))]
    for i in range(1, draw.randint(1, 4)):
        workers.append(WorkerSpec(f"w{i}", engines, draw.choice([12e9, 20e9, 40e9])))
    rows = draw.randint(1, 40)
    workload = Workload(tuple(operations), even_groups(rows, draw.randint(1, 6)))
    return Problem(workload, Machine(tuple(workers), (ToolLaneSpec("http", 8),)))


def ticking(step_s: float = 0.001) -> Callable[[], float]:
    """A clock that moves by `step_s` each time it is asked."""
    now = 0.0

    def tick() -> float:
        nonlocal now
        now += step_s
        return now

    return tick
