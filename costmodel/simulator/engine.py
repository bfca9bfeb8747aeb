"""The simulator: discrete events over engine steps.

Each model on a worker is an engine: a queue, a batch of running requests, a prefix cache. Prefill
goes first (or is mixed in); decoding advances in macro-steps, from one moment at which the batch
changes to the next, so simulated time costs nothing while nothing happens. Models side by side on
one worker share its speed. Tool calls run on lanes with a limit. Equal arguments give equal runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from costmodel.errors import SimulationError
from costmodel.simulator.assignment import Assignment
from costmodel.simulator.compiled import CompiledWorkload
from costmodel.simulator.machine import Machine
from costmodel.simulator.residency import Residency
from costmodel.simulator.result import Simulation, Span
from costmodel.simulator.state import (
    DECODE,
    IDLE,
    PREFILL,
    RESIDENT,
    EngineState,
    WorkerState,
)
from costmodel.simulator.workload import ModelWork, ToolWork, Workload

LONGEST_PREFIX_WINDOW = 128
"""Longest-prefix-first looks at this many waiting items, as SGLang does before it falls back."""


class _ToolEnd(NamedTuple):
    """Calls of a tool that end together."""

    lane: int
    item: int
    calls: int


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
        return _Run(
            self.compiled,
            self.machine,
            assignment,
            chunks_per_event=self.chunks_per_event,
            seed=self.seed,
            timeline=timeline,
        ).run()


class _Run(Residency):
    """One simulated run."""

    # --- the loop --------------------------------------------------------------------------------

    def run(self) -> Simulation:
        arrivals = self.workload.arrival_s
        if arrivals is None:
            for g in range(self.G):
                self.flow.arrived[g] = True
            self.flow.admit_groups()
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
            self.now = self.flow.now_s = now
            while events and events[0][0] <= now:
                _, _, kind, what, version = pop(events)
                if kind == 1:
                    engine = what
                    assert isinstance(engine, EngineState)
                    if engine.version == version:
                        self.n_events += 1
                        self._engine_event(engine)
                elif kind == 2:
                    self.n_events += 1
                    assert isinstance(what, _ToolEnd)
                    self._tool_end(what.lane, what.item, what.calls)
                elif kind == 3:
                    engine = what
                    assert isinstance(engine, EngineState)
                    engine.state = RESIDENT
                    engine.worker.loading -= 1
                    self.dirty[engine.worker.index] = engine.worker
                else:
                    assert isinstance(what, int)
                    self.flow.arrived[what] = True
                    self.flow.admit_groups()
            if self.dirty:
                self._flush()
        if any(self.flow.group_left):
            self._stuck()
        return self._result()

    def _flush(self) -> None:
        while self.dirty:
            dirty = sorted(self.dirty)
            self.dirty.clear()
            for w in dirty:
                self._work(self.workers[w])

    # --- queues ----------------------------------------------------------------------------------

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
            self._push(self.now + latency, 2, _ToolEnd(lane, item, count), 0)

    def _tool_end(self, lane: int, item: int, count: int) -> None:
        self.lane_free[lane] += count
        self.flow.advance(item, count)
        self._start_tools(lane)

    # --- workers ---------------------------------------------------------------------------------

    def _work(self, worker: WorkerState) -> None:
        """Start whatever can start on a worker now."""
        changed = False
        hold = self._wants_other_model(worker)
        for engine in worker.engines.values():
            if engine.state != RESIDENT:
                continue
            if engine.activity == IDLE:
                self._next(engine, hold)
            elif engine.activity == DECODE and engine.pending and engine.free and not hold:
                self._interrupt(engine)
            busy = engine.activity != IDLE
            if busy != engine.counted:
                engine.counted = busy
                changed = True
                if busy:
                    if not worker.active:
                        worker.busy_since_s = self.now
                    worker.active += 1
                else:
                    worker.active -= 1
                    if not worker.active:
                        worker.busy_s += self.now - worker.busy_since_s
        if changed and len(worker.engines) > 1:
            self._share(worker)
        if not worker.active and self.plan.steal:
            self._steal(worker)
        self._load_models(worker)

    def _share(self, worker: WorkerState) -> None:
        """The number of models that run side by side has changed: so has everyone's speed."""
        active = worker.active
        rate = 1.0 if active <= 1 else worker.spec.co_run_throughput / active
        for engine in worker.engines.values():
            if engine.activity != IDLE and engine.rate != rate:
                engine.work_s -= (self.now - engine.since_s) * engine.rate
                engine.since_s = self.now
                engine.rate = rate
                engine.version += 1
                self._push(self.now + max(0.0, engine.work_s) / rate, 1, engine, engine.version)

    def _steal(self, worker: WorkerState) -> None:
        """An idle worker takes calls that wait elsewhere, when computing what is cached there costs
        less than the wait."""
        best: tuple[float, EngineState, EngineState] | None = None
        for engine in worker.engines.values():
            if engine.state != RESIDENT or engine.pending or engine.activity != IDLE:
                continue
            for other in self.workers:
                victim = other.engines.get(engine.model)
                if victim is None or other is worker or not victim.pending:
                    continue
                if victim.state == RESIDENT and victim.free and victim.activity == IDLE:
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
        here = self.prefixes.hits(engine, item, first, 1)
        there = self.prefixes.hits(victim, item, first, 1)
        extra_s = engine.spec.timer.step_s(max(0, int(there - here)), 0, 0, 0)
        if extra_s >= wait_s:
            return
        heapq.heappush(engine.queue, (self.plan.priority[item], item))
        # All that fits, else half: the other half is for its owner's next free places.
        waiting = victim.pending
        share = waiting if waiting <= engine.free else -(-waiting // 2)
        self._next(engine, False, share)
        if engine.activity != IDLE and not engine.counted:
            engine.counted = True
            worker.busy_since_s = self.now
            worker.active += 1
        engine.queue[:] = [entry for entry in engine.queue if entry[1] != item]
        heapq.heapify(engine.queue)

    def _wait_s(self, victim: EngineState) -> float:
        """About how long the last waiting call of an engine will wait for a place."""
        if victim.state != RESIDENT:
            return victim.spec.wake_s if victim.was_loaded else victim.spec.load_s
        steps = victim.finish[0][0] - victim.steps if victim.finish else 1
        step_s = victim.step_s or victim.spec.timer.step_s(0, 0, max(1, victim.batch), 1)
        return steps * step_s * (1 + victim.pending / victim.spec.max_running)

    # --- engine steps ----------------------------------------------------------------------------

    def _engine_event(self, engine: EngineState) -> None:
        worker = engine.worker
        if engine.planned_steps:
            steps = engine.planned_steps
            engine.steps += steps
            engine.context += engine.batch * steps
            engine.planned_steps = 0
        engine.activity = IDLE
        self.dirty[worker.index] = worker
        finish = engine.finish
        while finish and finish[0][0] <= engine.steps:
            self._end_calls(engine, heapq.heappop(finish))

    def _end_calls(
        self, engine: EngineState, ended: tuple[int, int, int, int, int, float, float, float, float]
    ) -> None:
        _, item, count, first, output, locked, context, start_s, hits = ended
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
                    hits,
                    float(path.tokens * count),
                )
            )
        self.flow.advance(item, count)

    def _interrupt(self, engine: EngineState) -> None:
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

    def _next(self, engine: EngineState, hold: bool, at_most: int | None = None) -> None:
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
                self._begin(engine, PREFILL, work_s, steps)
                return
        if engine.finish:
            steps = engine.finish[0][0] - engine.steps
            if steps <= 0:
                self._begin(engine, DECODE, 0.0, 0)
                return
            batch = engine.batch
            middle = engine.context + batch * (steps - 1) / 2
            engine.step_s = engine.spec.timer.step_s(0, 0, batch, middle)
            self._begin(engine, DECODE, steps * engine.step_s, steps)

    def _begin(self, engine: EngineState, activity: int, work_s: float, steps: int) -> None:
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

    def _admit(self, engine: EngineState, at_most: int | None) -> tuple[int, int, float]:
        """Take waiting calls into the batch, as far as places, memory and the prefill budget go.
        Returns tokens to prefill, their mean earlier context (`StepTimer.step_s`), and seconds of
        transfers."""
        spec = engine.spec
        budget = spec.chunk_tokens * self.chunks
        tokens = 0
        weighted = 0.0
        n_prompts = 0
        extra_s = 0.0
        G = self.G
        ready, admitted = self.ready, self.admitted
        while engine.free and tokens < budget:
            item = self._next_to_admit(engine)
            if item < 0:
                break
            count = min(ready[item] - admitted[item], engine.free)
            if at_most is not None:
                count = min(count, at_most)
                if count <= 0:
                    break
            position = item // G
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
            count, hits = self._fitting(engine, item, count, prompt, output, budget - tokens)
            if not count:
                break
            unshared = count * prompt - hits
            fetched, fetch_s, from_host = self.prefixes.fetch(engine, item, first, count, unshared)
            computed = max(0.0, unshared - fetched)
            self._start(engine, item, count, prompt, output, hits)
            tokens += int(computed + 0.5)
            n_prompts += count
            weighted += computed * hits / count
            extra_s += fetch_s
            self.computed += computed
            if from_host:
                self.host += fetched
            else:
                self.moved += fetched
            if at_most is not None:
                break
        if not tokens:
            return 0, 0, extra_s
        # A step holds a chunk of this; its prompts are as long as they are on the mean.
        chunk = min(tokens, spec.chunk_tokens)
        each = min(chunk, tokens / max(1, n_prompts))
        return tokens, int(weighted / tokens - (chunk - each) / 2), extra_s

    def _next_to_admit(self, engine: EngineState) -> int:
        """The waiting item whose turn it is; -1 when none may start now."""
        self._clean(engine)
        queue = engine.queue
        if not queue:
            return -1
        if self.strict:
            item = self._next_item(engine.worker)
            if item < 0 or self.ready[item] <= self.admitted[item] or queue[0][1] != item:
                return -1
            return item
        if self.plan.order == "longest_prefix":
            return self._longest_prefix(engine)
        return queue[0][1]

    def _fitting(
        self, engine: EngineState, item: int, count: int, prompt: int, output: int, budget: int
    ) -> tuple[int, float]:
        """How many of `count` calls of an item fit the KV cache and `budget` (tokens to prefill),
        and what of their prompts the prefix cache has. At least one, unless it has to wait for
        memory: then none. Raises `SimulationError` for a call that never fits."""
        first = self.admitted[item]
        hits = self.prefixes.hits(engine, item, first, count, prompt)
        unshared = count * prompt - hits
        each = unshared / count
        if count > 1 and each > 0 and unshared > budget:
            # As many as the budget takes, at least one.
            fit = max(1, int(budget // each))
            if fit < count:
                count = fit
                hits = self.prefixes.hits(engine, item, first, count, prompt)
                each = (count * prompt - hits) / count
        room = engine.capacity_tokens - engine.locked_tokens
        if count * (each + output) > room:
            if prompt + output > engine.capacity_tokens:
                name = self.workload.operations[item // self.G].name
                raise SimulationError(
                    f"a call of {name!r} needs {prompt + output} tokens of KV cache; model "
                    f"{engine.model!r} on worker {engine.worker.spec.name!r} has room for "
                    f"{int(engine.capacity_tokens)}"
                )
            count = int(room // (each + output)) if each + output else count
            if count < 1:
                if engine.batch:
                    return 0, 0.0
                count = 1
            hits = self.prefixes.hits(engine, item, first, count, prompt)
        return count, hits

    def _start(
        self, engine: EngineState, item: int, count: int, prompt: int, output: int, hits: float
    ) -> None:
        """Put calls of an item into the batch, and count them."""
        first = self.admitted[item]
        worker = engine.worker
        self.admitted[item] = first + count
        engine.pending -= count
        if self.strict:
            self._next_item(worker)
        at = self.plan.worker[item]
        if at != worker.index:
            # Stolen: the calls waited elsewhere.
            owner = self.workers[at].engines[engine.model]
            engine.pending += count
            owner.pending -= count
        locked = count * prompt - hits + count * output
        engine.free -= count
        engine.batch += count
        engine.context += count * prompt
        engine.locked_tokens += locked
        engine.outputs_tokens += count * output
        self.prefixes.insert(engine, item, first, count, prompt)
        context = float(count * (prompt + output))
        # A call without an answer ends with its prefill.
        ends = engine.steps + output
        end = (ends, item, count, first, output, locked, context, self.now, hits)
        heapq.heappush(engine.finish, end)
        self.hit += hits
        self.prompt += count * prompt
        self.output += count * output
        self.n_calls += count
        worker.calls += count
        worker.prompt += count * prompt
        worker.hit += hits
        worker.output += count * output

    def _row(self, item: int, first: int) -> int:
        g = item % self.G
        calls = self.compiled.calls[item]
        rows = self.workload.group_rows[g]
        return self.compiled.first_row[g] + (first * rows // calls if calls else 0)

    def _longest_prefix(self, engine: EngineState) -> int:
        best, best_hits = engine.queue[0][1], -1.0
        for _, item in engine.queue[:LONGEST_PREFIX_WINDOW]:
            if self.ready[item] > self.admitted[item]:
                hits = self.prefixes.hits(engine, item, self.admitted[item], 1)
                if hits > best_hits:
                    best, best_hits = item, hits
        if best != engine.queue[0][1]:
            # It goes to the front: the caller takes the front. The list stays the same object.
            engine.queue[:] = [entry for entry in engine.queue if entry[1] != best]
            heapq.heapify(engine.queue)
            heapq.heappush(engine.queue, (float("-inf"), best))
        return best


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
