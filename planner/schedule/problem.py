"""A scheduling problem: a workload, a machine, an objective, and quick estimates of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from costmodel.simulator.assignment import Assignment
from costmodel.simulator.engine import Simulator
from costmodel.simulator.machine import Machine
from costmodel.simulator.result import Simulation
from costmodel.simulator.workload import ModelWork, ToolWork, Workload
from planner.errors import PlanError
from planner.schedule.objective import MAKESPAN, Objective

COARSE_CHUNKS = 64
"""Prefill steps that planning takes as one event."""


@dataclass(frozen=True)
class Problem:
    """What is to be scheduled, where, and what for.

    Raises `PlanError` when there is nothing that could run it: no workers, a model that fits none.
    """

    workload: Workload
    machine: Machine
    objective: Objective = MAKESPAN

    def __post_init__(self) -> None:
        models = self.models
        if models and not self.machine.workers:
            raise PlanError(
                f"the plan calls {', '.join(models)}, but no worker is there (all were lost or "
                "none was given); start an engine or name one with --engine"
            )
        for model in models:
            if not self.machine.workers_for(model):
                raise PlanError(self._nowhere(model))
        for op in self.workload.operations:
            work = op.work
            if isinstance(work, ToolWork) and work.lane not in self.machine.lane_index:
                raise PlanError(f"operation {op.name!r} uses tool lane {work.lane!r}, which the "
                                "machine does not have")  # fmt: skip

    def _nowhere(self, model: str) -> str:
        sizes: list[str] = []
        for worker in self.machine.workers:
            engine = worker.engines.get(model)
            if engine is None:
                sizes.append(f"{worker.name} does not offer it")
            else:
                sizes.append(
                    f"{worker.name} has {worker.memory_bytes / 1e9:.0f} GB, it needs "
                    f"{engine.weight_bytes / 1e9:.0f} GB"
                )
        return (
            f"model {model!r} fits no worker: {'; '.join(sizes)}. Use a smaller model, quantised "
            "weights or a tensor-parallel group"
        )

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Models that the workload calls, in order of first use."""
        return tuple(
            dict.fromkeys(
                op.work.model for op in self.workload.operations if isinstance(op.work, ModelWork)
            )
        )

    @cached_property
    def simulator(self) -> Simulator:
        return Simulator(self.workload, self.machine, chunks_per_event=COARSE_CHUNKS)

    @property
    def n_groups(self) -> int:
        return len(self.workload.group_rows)

    @property
    def n_items(self) -> int:
        return len(self.workload.operations) * self.n_groups

    @cached_property
    def model_ops(self) -> tuple[int, ...]:
        """Positions of operations that call models."""
        ops = self.workload.operations
        return tuple(i for i, op in enumerate(ops) if isinstance(op.work, ModelWork))

    @cached_property
    def calls_models(self) -> frozenset[int]:
        """The same, to ask whether an operation is one."""
        return frozenset(self.model_ops)

    @cached_property
    def workers_for(self) -> dict[str, list[int]]:
        return {model: self.machine.workers_for(model) for model in self.models}

    def model_of(self, position: int) -> str:
        """The model of an operation; empty for tools."""
        work = self.workload.operations[position].work
        return work.model if isinstance(work, ModelWork) else ""

    def simulate(self, assignment: Assignment, *, timeline: bool = False) -> Simulation:
        return self.simulator.run(assignment, timeline=timeline)

    def reduced(self, calls: int) -> Problem:
        """A smaller problem with the same items, for screening: as many fewer rows as it takes to
        have about `calls` model calls, and loads that are as much shorter. What takes time in
        proportion to rows keeps its share of the makespan; the time that one row needs to pass
        through all operations has too large a share. Itself when it is small enough."""
        total = sum(self.simulator.compiled.calls)
        if total <= calls:
            return self
        share = calls / total
        sizes = tuple(max(1, round(rows * share)) for rows in self.workload.group_rows)
        share = sum(sizes) / self.workload.rows
        workers = tuple(
            replace(
                worker,
                engines={
                    model: replace(
                        engine,
                        load_s=engine.load_s * share,
                        wake_s=engine.wake_s * share,
                        sleep_s=engine.sleep_s * share,
                    )
                    for model, engine in worker.engines.items()
                },
            )
            for worker in self.machine.workers
        )
        workload = replace(
            self.workload,
            group_rows=sizes,
            arrival_s=_times(self.workload.arrival_s, share),
            deadline_s=_times(self.workload.deadline_s, share),
        )
        objective = replace(
            self.objective,
            deadline_s=_time(self.objective.deadline_s, share),
            budget=_time(self.objective.budget, share),
        )
        return Problem(workload, replace(self.machine, workers=workers), objective)

    # --- estimates -------------------------------------------------------------------------------

    @cached_property
    def call_s(self) -> list[list[float]]:
        """For each operation and worker, seconds of the worker that one call takes when the batch
        is full and its static prefix is warm; infinite where the model does not fit. For tools one
        entry: latency over the lane's limit."""
        seconds: list[list[float]] = []
        for op in self.workload.operations:
            work = op.work
            if isinstance(work, ToolWork):
                lane = self.machine.lanes[self.machine.lane_index[work.lane]]
                seconds.append([work.latency_s / lane.limit])
                continue
            own = _row_tokens(work)
            row: list[float] = []
            for worker in self.machine.workers:
                if not worker.fits((work.model,)):
                    row.append(float("inf"))
                    continue
                engine = worker.engines[work.model]
                kv = engine.kv_bytes_per_token * (work.prompt_tokens + work.output_tokens)
                room = worker.memory_bytes - engine.weight_bytes
                batch = max(1.0, min(engine.max_running, room / kv if kv else float("inf"),
                                     self.workload.rows * op.calls_per_row))  # fmt: skip
                context = batch * (work.prompt_tokens + work.output_tokens / 2)
                step = engine.timer.step_s(0, 0, batch, context)
                chunk = max(1, min(engine.chunk_tokens, int(own * batch)))
                prefill = engine.timer.step_s(chunk, work.prompt_tokens // 2, 0, 0) / chunk * own
                row.append(prefill + work.output_tokens * step / batch)
            seconds.append(row)
        return seconds

    @cached_property
    def latency_s(self) -> list[float]:
        """For each operation, seconds of one call alone on the fastest worker."""
        latencies: list[float] = []
        for op in self.workload.operations:
            work = op.work
            if isinstance(work, ToolWork):
                latencies.append(work.latency_s)
                continue
            best = float("inf")
            for w in self.workers_for[work.model]:
                timer = self.machine.workers[w].engines[work.model].timer
                step = timer.step_s(0, 0, 1, work.prompt_tokens)
                best = min(
                    best, timer.step_s(work.prompt_tokens, 0, 0, 0) + work.output_tokens * step
                )
            latencies.append(best)
        return latencies

    @cached_property
    def remaining_s(self) -> list[float]:
        """For each operation, seconds from its start to the end of its row, on the longest way
        (the upward rank of list scheduling)."""
        ops = self.workload.operations
        rank = list(self.latency_s)
        for position in range(len(ops) - 1, -1, -1):
            for i in ops[position].inputs:
                rank[i] = max(rank[i], self.latency_s[i] + rank[position])
        return rank

    @cached_property
    def depth(self) -> list[int]:
        """For each operation, how many operations come before it on the longest way."""
        depth: list[int] = []
        for op in self.workload.operations:
            depth.append(max((depth[i] + 1 for i in op.inputs), default=0))
        return depth

    @cached_property
    def model_depth(self) -> list[int]:
        """The same, counting model calls alone."""
        depth: list[int] = []
        for op in self.workload.operations:
            before = (
                depth[i] + isinstance(self.workload.operations[i].work, ModelWork)
                for i in op.inputs
            )
            depth.append(max(before, default=0))
        return depth

    @cached_property
    def clusters(self) -> list[int]:
        """For each operation, the first operation whose rows have the same beginning of prompt:
        operations of a cluster reuse each other's prefix row by row."""
        first: dict[tuple[str, ...], int] = {}
        clusters: list[int] = []
        for position, op in enumerate(self.workload.operations):
            work = op.work
            own = position
            if isinstance(work, ModelWork):
                keys: list[str] = [work.model]
                for part in work.prompt:
                    keys.append(part.key)
                    if part.per_row:
                        own = first.setdefault(tuple(keys), position)
                        break
            clusters.append(own)
        return clusters

    def lower_bound_s(self) -> float:
        """No schedule ends before: the critical path of one row, or the calls of a tool lane at its
        limit. Work on models is not counted, since nobody knows how much of it caches save."""
        ops, machine = self.workload.operations, self.machine
        path = max(self.remaining_s, default=0.0) if self.workload.rows else 0.0
        lanes = [0.0] * len(machine.lanes)
        for op in ops:
            if isinstance(op.work, ToolWork):
                calls = op.calls_per_row * self.workload.rows
                lanes[machine.lane_index[op.work.lane]] += calls * op.work.latency_s
        tools = max((s / machine.lanes[i].limit for i, s in enumerate(lanes)), default=0.0)
        return max(path * 0.999999, tools * 0.999999)


def _row_tokens(work: ModelWork) -> int:
    """Prompt tokens behind the first piece that differs between rows, at least 1."""
    differs = False
    tokens = 0
    for part in work.prompt:
        differs = differs or part.per_row
        tokens += part.tokens if differs else 0
    return max(1, tokens)


def _time(value: float | None, share: float) -> float | None:
    return None if value is None else value * share


def _times(values: tuple[float, ...] | None, share: float) -> tuple[float, ...] | None:
    return None if values is None else tuple(value * share for value in values)


def split_evenly(n_groups: int, workers: Sequence[int]) -> list[int]:
    """A worker for each group: contiguous runs of nearly equal length.

    Example:
        >>> split_evenly(5, [2, 7])
        [2, 2, 7, 7, 7]
    """
    n = len(workers)
    bounds = [n_groups * i // n for i in range(n + 1)]
    chosen: list[int] = []
    for i, worker in enumerate(workers):
        chosen.extend([worker] * (bounds[i + 1] - bounds[i]))
    return chosen
