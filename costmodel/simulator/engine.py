"""The simulator: discrete events over engine steps.

Each model on a worker is an engine: a queue, a batch of running requests, a prefix cache. Prefill
goes first (or is mixed in); decoding advances in macro-steps, from one moment at which the batch
changes to the next, so simulated time costs nothing while nothing happens. Models side by side on
one worker share its speed. Tool calls run on lanes with a limit. Equal arguments give equal runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from random import Random

from costmodel.errors import SimulationError
from costmodel.simulator.assignment import Assignment
from costmodel.simulator.compiled import CompiledWorkload
from costmodel.simulator.machine import EngineSpec, Machine, WorkerSpec
from costmodel.simulator.result import Simulation, Span, WorkerUse
from costmodel.simulator.segment_cache import SegmentCache
from costmodel.simulator.workload import ModelWork, ToolWork, Workload

_ABSENT, _LOADING, _RESIDENT = 0, 1, 2
_IDLE, _PREFILL, _DECODE = 0, 1, 2
LONGEST_PREFIX_WINDOW = 128
"""Longest-prefix-first looks at this many waiting items, as SGLang does before it falls back."""


class _Engine:
    """One model on one worker."""

    __slots__ = (
        "activity", "batch", "cache", "capacity_tokens", "context", "counted", "finish", "free",
        "last_used_s", "locked_tokens", "model", "outputs_tokens", "pending", "planned_steps",
        "queue", "rate", "since_s", "spec", "state", "step_s", "steps", "version", "was_loaded",
        "work_s", "worker",
    )  # fmt: skip

    def __init__(self, worker: _Worker, model: str, spec: EngineSpec) -> None:
        self.worker = worker
        self.model = model
        self.spec = spec
        self.state = _ABSENT
        self.was_loaded = False
        self.queue: list[tuple[float, int]] = []
        self.pending = 0
        self.finish: list[tuple[int, int, int, int, int, float, float, float]] = []
        self.steps = 0
        self.batch = 0
        self.context = 0.0
        self.free = spec.max_running
        self.capacity_tokens = 0.0
        self.locked_tokens = 0.0
        self.outputs_tokens = 0.0
        self.cache = SegmentCache(0)
        self.activity = _IDLE
        self.counted = False
        self.work_s = 0.0
        self.since_s = 0.0
        self.rate = 1.0
        self.version = 0
        self.planned_steps = 0
        self.step_s = 0.0
        self.last_used_s = 0.0


class _Worker:
    """One worker and what it has done."""

    __slots__ = (
        "active", "busy_s", "busy_since_s", "calls", "engines", "evicted", "hit", "index", "load_s",
        "loading", "loads", "order", "order_at", "output", "prompt", "shared", "spec",
    )  # fmt: skip

    def __init__(self, index: int, spec: WorkerSpec) -> None:
        self.index = index
        self.spec = spec
        self.engines: dict[str, _Engine] = {}
        self.active = 0
        self.busy_s = 0.0
        self.busy_since_s = 0.0
        self.load_s = 0.0
        self.loads = 0
        self.loading = 0
        self.calls = 0
        self.prompt = 0.0
        self.hit = 0.0
        self.output = 0.0
        self.evicted = 0.0
        self.order: list[int] = []
        self.order_at = 0
        self.shared = False


class Simulator:
    """Runs assignments of one workload on one machine; make it once and call `run` often.

    Args:
        chunks_per_event: prefill steps that may be taken as one event. 1 is exact about the moment
            at which each chunk's first tokens come; more is faster for planning.
        seed: of tool latencies.

    Raises `ProfileError` for impossible numbers.
    """

    def __init__(
        self,
        workload: Workload,
        machine: Machine,
        *,
        chunks_per_event: int = 1,
        seed: int = 0,
    ) -> None:
        self.workload = workload
        self.machine = machine
        self.compiled = CompiledWorkload(workload)
        self.chunks_per_event = chunks_per_event
        self.seed = seed

    def run(self, assignment: Assignment, *, timeline: bool = False) -> Simulation:
        """Simulate. Raises `SimulationError` when the assignment cannot run: an item without a
        worker, a model that its worker cannot hold, a call larger than the KV cache, an order that
        waits for itself."""
        return _Run(self, assignment, timeline).run()


class _Run:
    """One simulated run."""

    def __init__(self, simulator: Simulator, assignment: Assignment, timeline: bool) -> None:
        self.compiled = compiled = simulator.compiled
        self.workload = simulator.workload
        self.machine = simulator.machine
        self.plan = assignment
        self.chunks = simulator.chunks_per_event
        self.random = Random(simulator.seed)
        self.G = compiled.n_groups
        n = compiled.n_items
        if len(assignment.worker) != n or len(assignment.priority) != n:
            raise SimulationError(
                f"the assignment has {len(assignment.worker)} workers and "
                f"{len(assignment.priority)} priorities for {n} items"
            )
        self.ready = [0] * n
        self.admitted = [0] * n
        self.done = [0] * n
        self.events: list[tuple[float, int, int, object, int]] = []
        self.seq = 0
        self.n_events = 0
        self.now = 0.0
        self.spans: list[Span] | None = [] if timeline else None
        self.workers = [_Worker(i, spec) for i, spec in enumerate(self.machine.workers)]
        self.lane_free = [lane.limit for lane in self.machine.lanes]
        self.lane_queue: list[list[tuple[float, int]]] = [[] for _ in self.machine.lanes]
        self.lane_busy = [0.0 for _ in self.machine.lanes]
        self.dirty: dict[int, _Worker] = {}
        self.computed = self.hit = self.host = self.moved = self.output = self.prompt = 0.0
        self.n_calls = 0
        self.group_left = [len(self.workload.operations)] * self.G
        self.group_end = [0.0] * self.G
        self.in_flight = 0
        self.next_group = 0
        self.arrived: list[bool] = [False] * self.G
        self.group_order = list(assignment.group_order) or list(range(self.G))
        self.stage = assignment.stage
        self.current_stage = 0
        self.held: dict[int, list[int]] = {}
        self.stage_left: list[int] = []
        if self.stage is not None:
            self.stage_left = [0] * (max(self.stage, default=0) + 1)
            for s in self.stage:
                self.stage_left[s] += self.G
            self._skip_stages()
        self.strict = assignment.order == "strict"
        self._set_up_workers()

    # --- set-up ----------------------------------------------------------------------------------

    def _set_up_workers(self) -> None:
        plan, ops, G = self.plan, self.workload.operations, self.G
        models: list[set[str]] = [set() for _ in self.workers]
        for position, op in enumerate(ops):
            work = op.work
            if not isinstance(work, ModelWork):
                if work.lane not in self.machine.lane_index:
                    have = ", ".join(map(repr, self.machine.lane_index)) or "none"
                    raise SimulationError(
                        f"operation {op.name!r} uses tool lane {work.lane!r}; the machine has: "
                        f"{have}"
                    )
                continue
            for g in range(G):
                item = position * G + g
                w = plan.worker[item]
                if not 0 <= w < len(self.workers):
                    raise SimulationError(f"operation {op.name!r}, group {g} has no worker ({w})")
                worker = self.workers[w]
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
                for w, worker in enumerate(self.workers):
                    models[w] |= {m for m in worker.spec.resident if m in everywhere}
        for w, worker in enumerate(self.workers):
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
                engine = worker.engines[model] = _Engine(worker, model, spec.engines[model])
                room = (
                    (spec.memory_bytes - weights) / len(mine)
                    if shared
                    else spec.memory_bytes - engine.spec.weight_bytes
                )
                kv = engine.spec.kv_bytes_per_token
                engine.capacity_tokens = room / kv if kv else float("inf")
                engine.cache = SegmentCache(engine.capacity_tokens, spec.host_cache_tokens)
            for model in spec.resident:
                engine = worker.engines.get(model)
                if engine is not None and (
                    shared or not any(e.state == _RESIDENT for e in worker.engines.values())
                ):
                    engine.state = _RESIDENT
                    engine.was_loaded = True

    # --- the loop --------------------------------------------------------------------------------

    def run(self) -> Simulation:
        arrivals = self.workload.arrival_s
        if arrivals is None:
            for g in range(self.G):
                self.arrived[g] = True
            self._admit_groups()
        else:
            for g, at in enumerate(arrivals):
                self._push(at, 0, g, 0)
        for worker in self.workers:
            self.dirty[worker.index] = worker
        self._flush()
        events = self.events
        pop = heapq.heappop
        while events:
            now = events[0][0]
            self.now = now
            while events and events[0][0] <= now:
                _, _, kind, what, version = pop(events)
                if kind == 1:
                    engine = what
                    assert isinstance(engine, _Engine)
                    if engine.version == version:
                        self.n_events += 1
                        self._engine_event(engine)
                elif kind == 2:
                    self.n_events += 1
                    assert isinstance(what, tuple)
                    self._tool_end(*what)
                elif kind == 3:
                    engine = what
                    assert isinstance(engine, _Engine)
                    engine.state = _RESIDENT
                    engine.worker.loading -= 1
                    self.dirty[engine.worker.index] = engine.worker
                else:
                    assert isinstance(what, int)
                    self.arrived[what] = True
                    self._admit_groups()
            if self.dirty:
                self._flush()
        if any(self.group_left):
            self._stuck()
        return self._result()

    def _push(self, at: float, kind: int, what: object, version: int) -> None:
        self.seq += 1
        heapq.heappush(self.events, (at, self.seq, kind, what, version))

    def _flush(self) -> None:
        while self.dirty:
            dirty = sorted(self.dirty)
            self.dirty.clear()
            for w in dirty:
                self._work(self.workers[w])

    # --- readiness -------------------------------------------------------------------------------

    def _admit_groups(self) -> None:
        limit = self.plan.groups_in_flight
        order = self.group_order
        while self.next_group < self.G and (limit is None or self.in_flight < limit):
            g = order[self.next_group]
            if not self.arrived[g]:
                if self.workload.arrival_s is None or limit is not None:
                    return
                # Without a limit groups start as they arrive, whatever the order.
                for late in order[self.next_group :]:
                    if self.arrived[late] and self.group_left[late] == len(self.compiled.inputs):
                        self._start_group(late)
                return
            self.next_group += 1
            if self.group_left[g] == len(self.compiled.inputs):
                self._start_group(g)

    def _start_group(self, g: int) -> None:
        if self.group_left[g] < 0:
            return
        self.in_flight += 1
        G = self.G
        started = False
        for position, inputs in enumerate(self.compiled.inputs):
            if not inputs:
                item = position * G + g
                if self.ready[item] == 0 and self.admitted[item] == 0:
                    started = True
                    self._more_ready(item, self.compiled.calls[item])
        if not self.compiled.inputs or not started:
            self.in_flight -= 1

    def _more_ready(self, item: int, count: int) -> None:
        """`item` has `count` calls ready in all. Items without calls end at once."""
        if count == 0 and self.compiled.calls[item] == 0:
            if self.ready[item] == 0:
                self.ready[item] = -1
                self._item_done(item)
            return
        before = self.ready[item]
        if count <= before:
            return
        self.ready[item] = count
        position = item // self.G
        if self.stage is not None and self.stage[position] > self.current_stage:
            self.held.setdefault(self.stage[position], []).append(item)
            return
        self._enqueue(item, count - before)

    def _enqueue(self, item: int, more: int) -> None:
        op = self.workload.operations[item // self.G]
        work = op.work
        if isinstance(work, ToolWork):
            lane = self.machine.lane_index[work.lane]
            if self.ready[item] - self.admitted[item] == more:
                heapq.heappush(self.lane_queue[lane], (self.plan.priority[item], item))
            self._start_tools(lane)
            return
        worker = self.workers[self.plan.worker[item]]
        engine = worker.engines[work.model]
        if self.ready[item] - self.admitted[item] == more:
            heapq.heappush(engine.queue, (self.plan.priority[item], item))
        engine.pending += more
        self.dirty[worker.index] = worker
        if self.plan.steal:
            for other in self.workers:
                if not other.active:
                    self.dirty[other.index] = other

    def _advance(self, item: int, count: int) -> None:
        """`count` more calls of `item` have ended."""
        done = self.done[item] = self.done[item] + count
        calls = self.compiled.calls
        total = calls[item]
        position, g = divmod(item, self.G)
        G, compiled = self.G, self.compiled
        for user in compiled.users[position]:
            target = user * G + g
            wanted = calls[target]
            ready = wanted
            for i in compiled.inputs[user]:
                source = i * G + g
                n = calls[source]
                d = self.done[source]
                if d < n:
                    possible = d if n == wanted else d * wanted // n
                    if possible < ready:
                        ready = possible
                elif n == 0 and self.ready[source] != -1:
                    ready = 0
            if ready > self.ready[target]:
                self._more_ready(target, ready)
            elif wanted == 0 and done == total and self._inputs_done(user, g):
                self._more_ready(target, 0)
        if done == total:
            self._finish_item(item)

    def _inputs_done(self, position: int, g: int) -> bool:
        for i in self.compiled.inputs[position]:
            source = i * self.G + g
            n = self.compiled.calls[source]
            if self.done[source] < n or (n == 0 and self.ready[source] != -1):
                return False
        return True

    def _item_done(self, item: int) -> None:
        """An item without calls is over; what follows may be ready. Iterative along chains."""
        stack = [item]
        while stack:
            current = stack.pop()
            position, g = divmod(current, self.G)
            for user in self.compiled.users[position]:
                target = user * self.G + g
                if self._inputs_done(user, g):
                    if self.compiled.calls[target]:
                        self._more_ready(target, self.compiled.calls[target])
                    elif self.ready[target] == 0:
                        self.ready[target] = -1
                        stack.append(target)
            self._finish_item(current)

    def _finish_item(self, item: int) -> None:
        g = item % self.G
        self.group_left[g] -= 1
        if not self.group_left[g]:
            self.group_end[g] = self.now
            self.in_flight -= 1
            if self.plan.groups_in_flight is not None:
                self._admit_groups()
        if self.stage is not None:
            self.stage_left[self.stage[item // self.G]] -= 1
            self._skip_stages()

    def _skip_stages(self) -> None:
        left = self.stage_left
        while self.current_stage < len(left) - 1 and not left[self.current_stage]:
            self.current_stage += 1
            for held in self.held.pop(self.current_stage, ()):
                more = self.ready[held] - self.admitted[held]
                if more > 0:
                    self._enqueue(held, more)

    # --- tools -----------------------------------------------------------------------------------

    def _start_tools(self, lane: int) -> None:
        queue = self.lane_queue[lane]
        while queue and self.lane_free[lane]:
            item = queue[0][1]
            available = self.ready[item] - self.admitted[item]
            if available <= 0:
                heapq.heappop(queue)
                continue
            op = self.workload.operations[item // self.G]
            work = op.work
            assert isinstance(work, ToolWork)
            latency = work.latency_s
            if work.spread:
                count = 1
                shape = 1 / work.spread**2
                latency = self.random.gammavariate(shape, work.latency_s / shape)
            else:
                count = min(available, self.lane_free[lane])
            self.admitted[item] += count
            self.lane_free[lane] -= count
            self.lane_busy[lane] += latency * count
            self.n_calls += count
            if self.spans is not None:
                self.spans.append(
                    Span(
                        self.machine.lanes[lane].name,
                        "tool",
                        op.name,
                        item % self.G,
                        self.now,
                        self.now + latency,
                        count,
                    )
                )
            self._push(self.now + latency, 2, (lane, item, count), 0)

    def _tool_end(self, lane: int, item: int, count: int) -> None:
        self.lane_free[lane] += count
        self._advance(item, count)
        self._start_tools(lane)

    # --- workers ---------------------------------------------------------------------------------

    def _work(self, worker: _Worker) -> None:
        """Start whatever can start on a worker now."""
        changed = False
        hold = self._wants_other_model(worker)
        for engine in worker.engines.values():
            if engine.state != _RESIDENT:
                continue
            if engine.activity == _IDLE:
                self._next(engine, hold)
            elif engine.activity == _DECODE and engine.pending and engine.free and not hold:
                self._interrupt(engine)
            busy = engine.activity != _IDLE
            if busy != engine.counted:
                engine.counted = busy
                changed = True
                if busy:
                    if not worker.active:
                        worker.busy_since_s = self.now
                    worker.active += 1
                else:
                    worker.active -= 1
                    engine.last_used_s = self.now
                    if not worker.active:
                        worker.busy_s += self.now - worker.busy_since_s
        if changed and len(worker.engines) > 1:
            self._share(worker)
        if not worker.active and self.plan.steal:
            self._steal(worker)
        self._load_models(worker)

    def _wants_other_model(self, worker: _Worker) -> bool:
        """With priority switching: whether the first ready item needs a model that is absent and
        that does not fit beside the resident ones."""
        if self.plan.switching != "priority" or worker.shared or len(worker.engines) < 2:
            return False
        best: tuple[float, int] | None = None
        wanted: _Engine | None = None
        for engine in worker.engines.values():
            self._clean(engine)
            if engine.queue and (best is None or engine.queue[0] < best):
                best, wanted = engine.queue[0], engine
        return wanted is not None and wanted.state == _ABSENT

    def _clean(self, engine: _Engine) -> None:
        queue = engine.queue
        while queue and self.ready[queue[0][1]] <= self.admitted[queue[0][1]]:
            heapq.heappop(queue)

    def _share(self, worker: _Worker) -> None:
        """The number of models that run side by side has changed: so has everyone's speed."""
        active = worker.active
        rate = 1.0 if active <= 1 else worker.spec.co_run_throughput / active
        for engine in worker.engines.values():
            if engine.activity != _IDLE and engine.rate != rate:
                engine.work_s -= (self.now - engine.since_s) * engine.rate
                engine.since_s = self.now
                engine.rate = rate
                engine.version += 1
                self._push(self.now + max(0.0, engine.work_s) / rate, 1, engine, engine.version)

    def _load_models(self, worker: _Worker) -> None:
        """Begin to load a model when one is wanted and may take the place."""
        if worker.loading or all(e.state == _RESIDENT for e in worker.engines.values()):
            return
        wanted: _Engine | None = None
        best: tuple[float, int] | None = None
        for engine in worker.engines.values():
            if engine.state == _ABSENT:
                self._clean(engine)
                if engine.queue and (best is None or engine.queue[0] < best):
                    best, wanted = engine.queue[0], engine
        if wanted is None and self.plan.preload and not worker.active:
            wanted = self._next_model(worker)
        elif wanted is not None and self.strict and not worker.shared:
            wanted = self._next_model(worker)
        if wanted is None or wanted.state != _ABSENT:
            return
        resident = [e for e in worker.engines.values() if e.state == _RESIDENT]
        if not worker.shared:
            if worker.active or any(e.finish for e in resident):
                return
            hold = self._wants_other_model(worker)
            if not hold and not self.strict:
                for engine in resident:
                    self._clean(engine)
                    if engine.queue:
                        return
        seconds = wanted.spec.wake_s if wanted.was_loaded else wanted.spec.load_s
        if not worker.shared:
            for engine in resident:
                seconds += engine.spec.sleep_s
                engine.state = _ABSENT
                worker.evicted += engine.cache.evicted_tokens
                engine.cache.evicted_tokens = 0.0
                engine.cache.clear()
        wanted.state = _LOADING
        wanted.was_loaded = True
        worker.loading += 1
        worker.loads += 1
        worker.load_s += seconds
        if self.spans is not None:
            self.spans.append(
                Span(worker.spec.name, "load", wanted.model, -1, self.now, self.now + seconds)
            )
        self._push(self.now + seconds, 3, wanted, 0)

    def _next_item(self, worker: _Worker) -> int:
        """The first item of the worker's order that has calls to admit; -1 when none is left."""
        order, calls = worker.order, self.compiled.calls
        while worker.order_at < len(order):
            item = order[worker.order_at]
            if self.admitted[item] < calls[item]:
                return item
            worker.order_at += 1
        return -1

    def _next_model(self, worker: _Worker) -> _Engine | None:
        item = self._next_item(worker)
        if item < 0:
            return None
        work = self.workload.operations[item // self.G].work
        assert isinstance(work, ModelWork)
        return worker.engines[work.model]

    def _steal(self, worker: _Worker) -> None:
        """An idle worker takes calls that wait elsewhere, when computing what is cached there costs
        less than the wait."""
        best: tuple[float, _Engine, _Engine] | None = None
        for engine in worker.engines.values():
            if engine.state != _RESIDENT or engine.pending or engine.activity != _IDLE:
                continue
            for other in self.workers:
                victim = other.engines.get(engine.model)
                if victim is None or other is worker or not victim.pending:
                    continue
                if victim.state == _RESIDENT and victim.free and victim.activity == _IDLE:
                    continue
                wait_s = self._wait_s(victim)
                if best is None or wait_s > best[0]:
                    best = (wait_s, engine, victim)
        if best is None:
            return
        wait_s, engine, victim = best
        self._clean(victim)
        candidates = [item for _, item in victim.queue if self.ready[item] > self.admitted[item]]
        if not candidates:
            return
        item = max(candidates, key=lambda i: (self.plan.priority[i], i))
        path = self.compiled.paths[item // self.G]
        assert path is not None
        first = self.admitted[item]
        here = self._hits(engine, item, first, 1)
        there = self._hits(victim, item, first, 1)
        extra_s = engine.spec.timer.step_s(max(0, int(there - here)), 0, 0, 0)
        if extra_s >= wait_s:
            return
        heapq.heappush(engine.queue, (self.plan.priority[item], item))
        share = -(-(self.ready[item] - self.admitted[item]) // 2)
        self._next(engine, False, share)
        if engine.activity != _IDLE and not engine.counted:
            engine.counted = True
            worker.busy_since_s = self.now
            worker.active += 1
        engine.queue[:] = [entry for entry in engine.queue if entry[1] != item]
        heapq.heapify(engine.queue)

    def _wait_s(self, victim: _Engine) -> float:
        """About how long the last waiting call of an engine will wait for a place."""
        if victim.state != _RESIDENT:
            return victim.spec.wake_s if victim.was_loaded else victim.spec.load_s
        steps = victim.finish[0][0] - victim.steps if victim.finish else 1
        step_s = victim.step_s or victim.spec.timer.step_s(0, 0, max(1, victim.batch), 1)
        return steps * step_s * (1 + victim.pending / victim.spec.max_running)

    # --- engine steps ----------------------------------------------------------------------------

    def _engine_event(self, engine: _Engine) -> None:
        worker = engine.worker
        if engine.planned_steps:
            steps = engine.planned_steps
            engine.steps += steps
            engine.context += engine.batch * steps
            engine.planned_steps = 0
        engine.activity = _IDLE
        self.dirty[worker.index] = worker
        finish = engine.finish
        while finish and finish[0][0] <= engine.steps:
            self._end_calls(engine, heapq.heappop(finish))

    def _end_calls(
        self, engine: _Engine, ended: tuple[int, int, int, int, int, float, float, float]
    ) -> None:
        _, item, count, first, output, locked, context, start_s = ended
        engine.batch -= count
        engine.free += count
        engine.context -= context
        engine.locked_tokens -= locked
        engine.outputs_tokens -= count * output
        path = self.compiled.paths[item // self.G]
        assert path is not None
        if path.answer_node >= 0 and output:
            g = item % self.G
            engine.cache.put(path.answer_node * (self.G + 1) + g + 1, first, first + count, output)
        if self.spans is not None:
            op = self.workload.operations[item // self.G]
            self.spans.append(
                Span(
                    engine.worker.spec.name,
                    "calls",
                    op.name,
                    item % self.G,
                    start_s,
                    self.now,
                    count,
                    0.0,
                    float(path.tokens * count),
                )
            )
        self._advance(item, count)

    def _interrupt(self, engine: _Engine) -> None:
        """Calls have arrived for free places: the macro-step ends with the step under way."""
        if engine.step_s <= 0 or engine.planned_steps <= 1:
            return
        total = engine.planned_steps * engine.step_s
        done_s = total - (engine.work_s - (self.now - engine.since_s) * engine.rate)
        steps = int(done_s / engine.step_s + 1e-9) + 1
        if steps >= engine.planned_steps:
            return
        left_s = max(0.0, steps * engine.step_s - done_s)
        engine.planned_steps = steps
        # What is left is measured from now on, so that shares of speed stay right.
        engine.work_s = left_s
        engine.since_s = self.now
        engine.version += 1
        self._push(self.now + left_s / engine.rate, 1, engine, engine.version)

    def _next(self, engine: _Engine, hold: bool, at_most: int | None = None) -> None:
        """The engine is between steps: admit waiting calls and begin the next step."""
        work_s = 0.0
        steps = 0
        if engine.queue and engine.free and not hold:
            tokens, context, extra_s = self._admit(engine, at_most)
            if tokens or extra_s:
                spec = engine.spec
                chunk = spec.chunk_tokens
                full, rest = divmod(tokens, chunk)
                mixed = engine.batch if spec.mixed else 0
                timer = spec.timer
                if full:
                    work_s += full * timer.step_s(
                        chunk, context, mixed, engine.context if mixed else 0.0
                    )
                if rest:
                    work_s += timer.step_s(rest, context, mixed, engine.context if mixed else 0.0)
                work_s += extra_s
                if spec.mixed and engine.finish:
                    steps = min(full + (rest > 0), max(0, engine.finish[0][0] - engine.steps))
                engine.step_s = 0.0
                self._begin(engine, _PREFILL, work_s, steps)
                return
        if engine.finish:
            steps = engine.finish[0][0] - engine.steps
            if steps <= 0:
                self._begin(engine, _DECODE, 0.0, 0)
                return
            batch = engine.batch
            middle = engine.context + batch * (steps - 1) / 2
            engine.step_s = engine.spec.timer.step_s(0, 0, batch, middle)
            self._begin(engine, _DECODE, steps * engine.step_s, steps)

    def _begin(self, engine: _Engine, activity: int, work_s: float, steps: int) -> None:
        engine.activity = activity
        engine.planned_steps = steps
        engine.work_s = work_s
        engine.since_s = self.now
        worker = engine.worker
        if len(worker.engines) > 1:
            active = worker.active + (not engine.counted)
            engine.rate = 1.0 if active <= 1 else worker.spec.co_run_throughput / active
        engine.version += 1
        self._push(self.now + work_s / engine.rate, 1, engine, engine.version)

    def _admit(self, engine: _Engine, at_most: int | None) -> tuple[int, int, float]:
        """Take waiting calls into the batch, as far as places, memory and the prefill budget go.
        Returns tokens to prefill, their mean earlier context, and seconds of transfers."""
        spec = engine.spec
        budget = spec.chunk_tokens * self.chunks
        tokens = 0
        weighted = 0.0
        extra_s = 0.0
        queue = engine.queue
        plan = self.plan
        G = self.G
        ready, admitted = self.ready, self.admitted
        while engine.free and tokens < budget:
            self._clean(engine)
            if not queue:
                break
            if self.strict:
                item = self._next_item(engine.worker)
                if item < 0 or ready[item] <= admitted[item] or queue[0][1] != item:
                    break
            elif plan.order == "longest_prefix":
                item = self._longest_prefix(engine)
            else:
                item = queue[0][1]
            count = min(ready[item] - admitted[item], engine.free)
            if at_most is not None:
                count = min(count, at_most)
                if count <= 0:
                    break
            position, g = divmod(item, G)
            op = self.workload.operations[position]
            work = op.work
            path = self.compiled.paths[position]
            assert path is not None and isinstance(work, ModelWork)
            first = admitted[item]
            prompt, output = path.tokens, work.output_tokens
            if op.output_tokens is not None or op.prompt_tokens is not None:
                count = 1
                row = self._row(item, first)
                if op.output_tokens is not None:
                    output = op.output_tokens[row]
                if op.prompt_tokens is not None:
                    prompt = op.prompt_tokens[row]
            hits = self._hits(engine, item, first, count, prompt)
            unshared = count * prompt - hits
            each = unshared / count
            if count > 1 and each > 0 and tokens + unshared > budget:
                # As many as the budget takes, at least one.
                fit = max(1, int((budget - tokens) // each))
                if fit < count:
                    count = fit
                    hits = self._hits(engine, item, first, count, prompt)
                    unshared = count * prompt - hits
                    each = unshared / count
            room = engine.capacity_tokens - engine.locked_tokens
            if count * (each + output) > room:
                if prompt + output > engine.capacity_tokens:
                    raise SimulationError(
                        f"a call of {op.name!r} needs {prompt + output} tokens of KV cache; model "
                        f"{engine.model!r} on worker {engine.worker.spec.name!r} has room for "
                        f"{int(engine.capacity_tokens)}"
                    )
                count = int(room // (each + output)) if each + output else count
                if count < 1:
                    if engine.batch:
                        break
                    count = 1
                hits = self._hits(engine, item, first, count, prompt)
                unshared = count * prompt - hits
            fetched, fetch_s, from_host = self._fetch(engine, item, first, count, unshared)
            computed = max(0.0, unshared - fetched)
            admitted[item] = first + count
            engine.pending -= count
            if self.strict:
                self._next_item(engine.worker)
            if plan.worker[item] != engine.worker.index:
                # Stolen: the calls waited elsewhere.
                owner = self.workers[plan.worker[item]].engines[engine.model]
                engine.pending += count
                owner.pending -= count
            engine.free -= count
            engine.batch += count
            locked = unshared + count * output
            context = float(count * (prompt + output))
            engine.context += count * prompt
            engine.locked_tokens += locked
            engine.outputs_tokens += count * output
            self._insert(engine, item, first, count, prompt)
            # A call without an answer ends with its prefill.
            heapq.heappush(
                engine.finish,
                (engine.steps + output, item, count, first, output, locked, context, self.now),
            )
            whole = int(computed + 0.5)
            tokens += whole
            weighted += computed * hits / count
            extra_s += fetch_s
            self.computed += computed
            self.hit += hits
            if from_host:
                self.host += fetched
            else:
                self.moved += fetched
            self.prompt += count * prompt
            self.output += count * output
            self.n_calls += count
            worker = engine.worker
            worker.calls += count
            worker.prompt += count * prompt
            worker.hit += hits
            worker.output += count * output
            if at_most is not None:
                break
        return tokens, int(weighted / tokens) if tokens else 0, extra_s

    def _row(self, item: int, first: int) -> int:
        g = item % self.G
        calls = self.compiled.calls[item]
        rows = self.workload.group_rows[g]
        return self.compiled.first_row[g] + (first * rows // calls if calls else 0)

    def _longest_prefix(self, engine: _Engine) -> int:
        best, best_hits = engine.queue[0][1], -1.0
        for _, item in engine.queue[:LONGEST_PREFIX_WINDOW]:
            if self.ready[item] > self.admitted[item]:
                hits = self._hits(engine, item, self.admitted[item], 1)
                if hits > best_hits:
                    best, best_hits = item, hits
        if best != engine.queue[0][1]:
            # It goes to the front: the caller takes the front. The list stays the same object.
            engine.queue[:] = [entry for entry in engine.queue if entry[1] != best]
            heapq.heapify(engine.queue)
            heapq.heappush(engine.queue, (float("-inf"), best))
        return best

    # --- prefixes --------------------------------------------------------------------------------

    def _hits(
        self, engine: _Engine, item: int, first: int, count: int, prompt: int | None = None
    ) -> float:
        """Prompt tokens of calls [first, first + count) that need not be computed."""
        position, g = divmod(item, self.G)
        path = self.compiled.paths[position]
        assert path is not None
        cache = engine.cache
        stride = self.G + 1
        end = first + count
        alive = count
        hits = 0
        fresh = 0
        in_batch = engine.spec.shares_in_batch
        block = engine.spec.block_tokens
        matched = 0
        for node, part_tokens, per_row in path.nodes:
            if per_row:
                rows = cache.overlap(node * stride + g + 1, first, end)
                if rows < alive:
                    if block > 1:
                        hits += (alive - rows) * (matched // block * block)
                    else:
                        hits += (alive - rows) * matched
                    alive = rows
                if not alive:
                    break
                matched += part_tokens
            else:
                if not cache.overlap(node * stride, 0, 1):
                    # One call computes it, the others of the batch find it.
                    if not in_batch or alive <= 1:
                        break
                    if not fresh:
                        hits += matched // block * block
                        fresh = 1
                        alive -= 1
                matched += part_tokens
        hits += alive * (matched // block * block)
        # The last token is always computed: its logits begin the answer.
        most = count * ((path.tokens if prompt is None else prompt) - 1)
        return float(min(hits, max(0, most)))

    def _insert(self, engine: _Engine, item: int, first: int, count: int, prompt: int) -> None:
        position, g = divmod(item, self.G)
        path = self.compiled.paths[position]
        assert path is not None
        cache = engine.cache
        stride = self.G + 1
        end = first + count
        for node, part_tokens, per_row in reversed(path.nodes):
            if not part_tokens:
                continue
            if per_row:
                cache.put(node * stride + g + 1, first, end, part_tokens)
            else:
                cache.put(node * stride, 0, 1, part_tokens)
        limit = engine.capacity_tokens - engine.outputs_tokens
        if cache.tokens > limit:
            cache.shrink(limit)

    def _fetch(
        self, engine: _Engine, item: int, first: int, count: int, unshared: float
    ) -> tuple[float, float, bool]:
        """Tokens that come from the host tier or another worker because that is cheaper than to
        compute them: (tokens, seconds, from the host)."""
        host = engine.cache.host_tokens > 0
        link = self.machine.link if self.plan.migrate else None
        if (not host and link is None) or unshared <= count:
            return 0.0, 0.0, True
        timer = engine.spec.timer
        best = (0.0, 0.0, True)
        best_saving = 0.0
        compute_s = timer.step_s(int(unshared), 0, 0, 0)
        if host:
            found = min(self._found_on_host(engine, item, first, count), unshared - count)
            if found > 0:
                seconds = found * engine.spec.host_reload_s_per_token
                saving = compute_s - timer.step_s(int(unshared - found), 0, 0, 0) - seconds
                if saving > best_saving:
                    best, best_saving = (found, seconds, True), saving
        if link is not None:
            here = self._hits(engine, item, first, count)
            for other in self.workers:
                source = other.engines.get(engine.model)
                if source is None or source is engine or source.state != _RESIDENT:
                    continue
                found = min(self._hits(source, item, first, count) - here, unshared - count)
                if found <= 0:
                    continue
                seconds = link.transfer_s(found * engine.spec.kv_bytes_per_token)
                saving = compute_s - timer.step_s(int(unshared - found), 0, 0, 0) - seconds
                if saving > best_saving:
                    best, best_saving = (found, seconds, False), saving
        return best

    def _found_on_host(self, engine: _Engine, item: int, first: int, count: int) -> float:
        position, g = divmod(item, self.G)
        path = self.compiled.paths[position]
        assert path is not None
        cache = engine.cache
        stride = self.G + 1
        end = first + count
        tokens = 0.0
        for node, part_tokens, per_row in path.nodes:
            key = node * stride + (g + 1 if per_row else 0)
            low, high = (first, end) if per_row else (0, 1)
            held = cache.overlap(key, low, high)
            if held >= high - low:
                continue
            rows = cache.host_overlap(key, low, high)
            if not rows:
                break
            tokens += part_tokens * (rows if per_row else count)
        return tokens

    # --- the end ---------------------------------------------------------------------------------

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
        makespan = max(self.group_end, default=0.0)
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
            group_end_s=tuple(self.group_end),
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


def simulate(
    workload: Workload,
    machine: Machine,
    assignment: Assignment,
    *,
    timeline: bool = False,
    chunks_per_event: int = 1,
    seed: int = 0,
) -> Simulation:
    """One simulation; see `Simulator`."""
    simulator = Simulator(workload, machine, chunks_per_event=chunks_per_event, seed=seed)
    return simulator.run(assignment, timeline=timeline)


def topological_priorities(workload: Workload, groups: Sequence[int] | None = None) -> list[float]:
    """Priorities of the items: operator after operator, groups in order within each."""
    n_groups = len(workload.group_rows)
    order = groups or range(n_groups)
    rank = {g: i for i, g in enumerate(order)}
    return [
        position * n_groups + rank[g]
        for position in range(len(workload.operations))
        for g in range(n_groups)
    ]
