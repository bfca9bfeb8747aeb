"""The workers of a simulated run, from the machine and the assignment."""

from __future__ import annotations

from costmodel.errors import SimulationError
from costmodel.simulator.assignment import Assignment
from costmodel.simulator.machine import Machine
from costmodel.simulator.segment_cache import SegmentCache
from costmodel.simulator.state import RESIDENT, EngineState, WorkerState
from costmodel.simulator.workload import ModelWork, Workload


def set_up_workers(workload: Workload, machine: Machine, plan: Assignment) -> list[WorkerState]:
    """The workers with the engines that the assignment needs there. Raises `SimulationError` for
    an item without a worker, a lane that is missing, a model that its worker cannot hold."""
    ops, G = workload.operations, len(workload.group_rows)
    workers = [WorkerState(i, spec) for i, spec in enumerate(machine.workers)]
    models: list[set[str]] = [set() for _ in workers]
    for position, op in enumerate(ops):
        work = op.work
        if not isinstance(work, ModelWork):
            if work.lane not in machine.lane_index:
                have = ", ".join(map(repr, machine.lane_index)) or "none"
                raise SimulationError(
                    f"operation {op.name!r} uses tool lane {work.lane!r}; the machine has: {have}"
                )
            continue
        for g in range(G):
            item = position * G + g
            w = plan.worker[item]
            if not 0 <= w < len(workers):
                raise SimulationError(f"operation {op.name!r}, group {g} has no worker ({w})")
            worker = workers[w]
            if work.model not in models[w]:
                if not worker.spec.fits((work.model,)):
                    raise SimulationError(
                        f"worker {worker.spec.name!r} cannot hold model {work.model!r}, which "
                        f"operation {op.name!r} needs there"
                    )
                models[w].add(work.model)
            worker.order.append(item)
    if plan.steal or plan.migrate:
        everywhere = set[str]().union(*models)
        if plan.steal:
            for w, worker in enumerate(workers):
                models[w] |= {m for m in worker.spec.resident if m in everywhere}
    for w, worker in enumerate(workers):
        spec = worker.spec
        worker.order.sort(key=lambda item: (plan.priority[item], item))
        shared = bool(plan.co_resident) and plan.co_resident[w] and len(models[w]) > 1
        worker.shared = shared
        mine = sorted(models[w])
        if shared and not spec.fits(tuple(mine)):
            raise SimulationError(
                f"worker {spec.name!r} cannot hold {', '.join(mine)} side by side"
            )
        weights = sum(spec.engines[m].weight_bytes for m in mine)
        for model in mine:
            engine = worker.engines[model] = EngineState(worker, model, spec.engines[model])
            room = (
                (spec.memory_bytes - weights) / len(mine)
                if shared
                else spec.memory_bytes - engine.spec.weight_bytes
            )
            kv = engine.spec.kv_bytes_per_token
            engine.capacity_tokens = room / kv if kv else float("inf")
            engine.cache = SegmentCache(engine.capacity_tokens, spec.host_cache_tokens)
        for model in spec.resident:
            held = worker.engines.get(model)
            if held is not None and (
                shared or not any(e.state == RESIDENT for e in worker.engines.values())
            ):
                held.state = RESIDENT
                held.was_loaded = True
    return workers
