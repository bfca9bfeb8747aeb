"""What a simulated run knows: queues, events, workers, and what has been counted."""

from __future__ import annotations

import heapq
from random import Random

from costmodel.errors import SimulationError
from costmodel.simulator.assignment import Assignment
from costmodel.simulator.compiled import CompiledWorkload
from costmodel.simulator.flow import Flow
from costmodel.simulator.machine import Machine
from costmodel.simulator.prefixes import Prefixes
from costmodel.simulator.result import Simulation, Span, WorkerUse
from costmodel.simulator.setup import set_up_workers
from costmodel.simulator.state import EngineState, WorkerState
from costmodel.simulator.workload import ModelWork


class RunState:
    """The state of one run, and the small steps that everything else uses."""

    def __init__(
        self,
        compiled: CompiledWorkload,
        machine: Machine,
        assignment: Assignment,
        *,
        chunks_per_event: int,
        seed: int,
        timeline: bool,
    ) -> None:
        self.compiled = compiled
        self.workload = compiled.workload
        self.machine = machine
        self.plan = assignment
        self.chunks = chunks_per_event
        self.random = Random(seed)
        self.G = compiled.n_groups
        n = compiled.n_items
        if len(assignment.worker) != n or len(assignment.priority) != n:
            raise SimulationError(
                f"the assignment has {len(assignment.worker)} workers and "
                f"{len(assignment.priority)} priorities for {n} items"
            )
        self.flow = Flow(compiled, assignment, self._enqueue)
        if assignment.stage is not None and assignment.groups_in_flight is not None:
            raise SimulationError(
                "barriers wait for all groups, so all must be let in: give either stage or "
                "groups_in_flight"
            )
        self.ready, self.admitted = self.flow.ready, self.flow.admitted
        self.events: list[tuple[float, int, int, object, int]] = []
        self.seq = 0
        self.n_events = 0
        self.now = 0.0
        self.spans: list[Span] | None = [] if timeline else None
        self.workers = set_up_workers(self.workload, self.machine, assignment)
        link = self.machine.link if assignment.migrate else None
        self.prefixes = Prefixes(compiled, self.workers, link)
        self.lane_free = [lane.limit for lane in self.machine.lanes]
        self.lane_queue: list[list[tuple[float, int]]] = [[] for _ in self.machine.lanes]
        self.lane_busy = [0.0 for _ in self.machine.lanes]
        self.dirty: dict[int, WorkerState] = {}
        self.computed = self.hit = self.host = self.moved = self.output = self.prompt = 0.0
        self.n_calls = 0
        self.strict = assignment.order == "strict"

    def _enqueue(self, item: int, more: int) -> None:
        """`more` calls of `item` may start."""
        raise NotImplementedError

    def _push(self, at: float, kind: int, what: object, version: int) -> None:
        self.seq += 1
        heapq.heappush(self.events, (at, self.seq, kind, what, version))

    def _clean(self, engine: EngineState) -> None:
        queue = engine.queue
        while queue and self.ready[queue[0][1]] <= self.admitted[queue[0][1]]:
            heapq.heappop(queue)

    def _next_item(self, worker: WorkerState) -> int:
        """The first item of the worker's order that has calls to admit; -1 when none is left."""
        order, calls = worker.order, self.compiled.calls
        while worker.order_at < len(order):
            item = order[worker.order_at]
            if self.admitted[item] < calls[item]:
                return item
            worker.order_at += 1
        return -1

    def _next_model(self, worker: WorkerState) -> EngineState | None:
        item = self._next_item(worker)
        if item < 0:
            return None
        work = self.workload.operations[item // self.G].work
        assert isinstance(work, ModelWork)
        return worker.engines[work.model]

    def _stuck(self) -> None:
        names = [op.name for op in self.workload.operations]
        calls = self.compiled.calls
        waiting = [
            f"{names[item // self.G]}/{item % self.G}"
            for item in range(self.compiled.n_items)
            if self.admitted[item] < calls[item]
        ]
        shown = ", ".join(waiting[:5])
        raise SimulationError(
            f"{len(waiting)} items can never start ({shown}): the order of the workers waits for "
            "itself, or a call never fits; use a soft order"
        )

    def _result(self) -> Simulation:
        makespan = max(self.flow.group_end_s, default=0.0)
        uses: list[WorkerUse] = []
        energy = 0.0
        money = 0.0
        for worker in self.workers:
            evicted = worker.evicted + sum(
                engine.cache.evicted_tokens for engine in worker.engines.values()
            )
            spec = worker.spec
            busy = worker.busy_s
            energy += busy * spec.power_w + max(0.0, makespan - busy) * spec.idle_power_w
            if worker.calls or worker.loads:
                money += makespan / 3600 * spec.price_per_h
            uses.append(
                WorkerUse(
                    spec.name, busy, worker.load_s, worker.calls, worker.prompt, worker.hit,
                    worker.output, evicted, worker.loads,
                )
            )  # fmt: skip
        return Simulation(
            makespan_s=makespan,
            group_end_s=tuple(self.flow.group_end_s),
            prompt_tokens=self.prompt,
            computed_tokens=self.computed,
            hit_tokens=self.hit,
            host_tokens=self.host,
            moved_tokens=self.moved,
            output_tokens=self.output,
            calls=self.n_calls,
            workers=tuple(uses),
            lane_busy_s=tuple(self.lane_busy),
            switches=sum(worker.loads for worker in self.workers),
            events=self.n_events,
            energy_j=energy,
            money=money,
            timeline=tuple(self.spans or ()),
        )
