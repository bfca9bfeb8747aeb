"""Small random instances on which the scheduler is compared with the proven optimum.

Sizes are drawn up to 10 operators, 4 row groups, 3 workers and 40 items; half of the instances have
tools; half have two models, which no worker can hold at once, and a third of all a worker that one
of them does not fit at all. KV memory is not what is short.
Nothing is tuned to a seed: the benchmark takes seeds in order and reports all of them.
"""

from __future__ import annotations

from random import Random

from halo.scheduling import (
    H200_8B,
    EngineSpec,
    Machine,
    ModelWork,
    Operation,
    Problem,
    PromptPart,
    ToolLaneSpec,
    ToolWork,
    WorkerSpec,
    Workload,
)

GROUP_ROWS = 16
"""Rows of a group; as many run in a batch, so a worker takes one group at a time."""


def small_instance(seed: int) -> Problem:
    """One instance; equal seeds give equal instances."""
    draw = Random(f"small instance {seed}")
    n_ops = draw.randint(3, 10)
    n_groups = draw.randint(1, 4)
    n_workers = draw.randint(1, 3)
    models = ["a", "b"] if draw.random() < 0.5 else ["a"]
    tools = draw.random() < 0.5
    system_tokens = [draw.choice([100, 400, 1500]) for _ in range(3)]
    document_tokens = draw.choice([400, 1200])
    operations: list[Operation] = []
    for i in range(n_ops):
        inputs = tuple(sorted(draw.sample(range(i), draw.randint(0, min(2, i))))) if i else ()
        if tools and i and draw.random() < 0.3:
            latency = draw.choice([0.25, 0.5, 1.0, 2.0])
            operations.append(Operation(f"tool{i}", ToolWork("tools", latency), inputs))
            continue
        system = draw.randrange(3)
        parts = [PromptPart(f"system{system}", system_tokens[system])]
        if draw.random() < 0.6:
            parts.append(PromptPart("document", document_tokens, True))
        parts.append(PromptPart(f"own{i}", draw.choice([50, 150, 400]), True))
        work = ModelWork(draw.choice(models), tuple(parts), draw.choice([30, 60, 120]))
        operations.append(Operation(f"call{i}", work, inputs))
    switch_s = draw.choice([0.3, 1.0, 3.0])
    engines: dict[str, EngineSpec] = {}
    for model in models:
        engines[model] = EngineSpec(
            H200_8B.scaled(draw.choice([0.5, 1.0, 2.0])),
            weight_bytes=draw.choice([16e9, 30e9]),
            kv_bytes_per_token=1_000,
            load_s=switch_s,
            wake_s=switch_s,
            max_running=GROUP_ROWS,
        )
    limited = len(models) > 1 and draw.random() < 2 / 3
    workers: list[WorkerSpec] = []
    for w in range(n_workers):
        mine = engines
        if limited and w and draw.random() < 0.5:
            # A worker with less memory: the larger model does not fit.
            small = min(engines, key=lambda m: engines[m].weight_bytes)
            mine = {small: engines[small]}
        loaded = draw.choice(models) if draw.random() < 0.5 else ""
        resident = tuple(m for m in mine if m == loaded)
        workers.append(WorkerSpec(f"w{w}", mine, 31e9, resident))
    lanes = (ToolLaneSpec("tools", GROUP_ROWS * draw.randint(1, 3)),)
    workload = Workload(tuple(operations), (GROUP_ROWS,) * n_groups)
    return Problem(workload, Machine(tuple(workers), lanes))
