"""The exact oracle for small instances: OR-Tools CP-SAT on the simulator's own terms.

It plans instances in which a worker runs one row group of one operation at a time (a group fills
the batch) and holds one model at a time, so that a schedule is a sequence for each worker. Within
that, nothing is simplified: precedence is finish to start; a change of models takes its switch time
where it happens; what a prefix costs depends on everything that ran on the worker since the last
change; models that do not fit a worker cannot go there; tool lanes have their limits. Its schedule
is run on the simulator, which must agree.

Needs the extra `oracle`. It measures other schedulers; it never plans a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from costmodel.simulator.assignment import Assignment
from costmodel.simulator.timer import AffineTimer
from costmodel.simulator.workload import ModelWork, ToolWork
from planner.errors import PlanError
from planner.schedule.problem import Problem

TICKS_PER_S = 10_000
"""Resolution of the oracle's time: durations are rounded to a tenth of a millisecond."""


@dataclass(frozen=True, slots=True)
class OracleResult:
    """What the solver found.

    Attributes:
        makespan_s: of the best schedule; infinite when none was found.
        bound_s: no schedule is shorter.
        proven: whether the two are equal. A solve that was stopped is not optimal, however good.
        assignment: the best schedule, as a strict order; None when none was found.
        simulated_s: makespan of that assignment on the simulator.
        solve_s: seconds of the solver.
    """

    makespan_s: float
    bound_s: float
    proven: bool
    assignment: Assignment | None
    simulated_s: float
    solve_s: float

    @property
    def gap(self) -> float:
        """How far the schedule may be from optimal, as a share of the bound; infinite when the
        solver knows no bound yet."""
        if self.makespan_s <= self.bound_s:
            return 0.0
        return self.makespan_s / self.bound_s - 1 if self.bound_s else float("inf")


@dataclass(frozen=True, slots=True)
class _Item:
    """A row group of a model operation: its duration when all is cold, and what is saved."""

    item: int
    model: str
    cold_ticks: int
    nodes: tuple[tuple[int, int], ...]
    """(cache entry, ticks saved when it and all before it are warm), from the beginning."""


def solve_exactly(
    problem: Problem,
    *,
    limit_s: float = 60.0,
    workers: int = 1,
    seed: int = 0,
    hint: Assignment | None = None,
) -> OracleResult:
    """Solve `problem`, or as much as `limit_s` allows.

    Args:
        workers: threads of the solver.
        hint: a schedule to start from, of whatever quality.

    Raises `PlanError` when the extra is not installed, and when the instance is not of the kind
    that a sequence for each worker describes; the message says what is in the way.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise PlanError(
            "the exact oracle needs OR-Tools: pip install 'halo-flow[oracle]'"
        ) from error
    _check(problem)
    return _Model(problem, cp_model).solve(limit_s, workers, seed, hint)


def _check(problem: Problem) -> None:
    groups = problem.workload.group_rows
    sizes = set(groups)
    if len(sizes) != 1:
        raise PlanError(f"the oracle needs row groups of one size, these have {sorted(sizes)}")
    size = groups[0]
    if problem.workload.arrival_s is not None:
        raise PlanError("the oracle plans batches, not arrivals over time")
    for op in problem.workload.operations:
        if op.calls_per_row != 1 or op.output_tokens is not None or op.prompt_tokens is not None:
            raise PlanError(f"the oracle needs one call a row of one length; {op.name!r} differs")
    for lane in problem.machine.lanes:
        if lane.limit % size:
            raise PlanError(
                f"the oracle needs tool lanes that take whole groups; {lane.name!r} has "
                f"{lane.limit} places for groups of {size}"
            )
    tokens = sum(
        op.work.prompt_tokens + op.work.output_tokens
        for op in problem.workload.operations
        if isinstance(op.work, ModelWork)
    ) * sum(groups)
    first: dict[str, Any] = {}
    for worker in problem.machine.workers:
        for model, engine in worker.engines.items():
            if engine.max_running != size or engine.mixed:
                raise PlanError(
                    f"the oracle needs engines that run one group of {size} at a time; "
                    f"{model!r} on {worker.name!r} runs {engine.max_running}"
                )
            if (worker.memory_bytes - engine.weight_bytes) < tokens * engine.kv_bytes_per_token:
                raise PlanError(
                    f"the oracle needs a cache that forgets nothing; {worker.name!r} has no room "
                    f"for {tokens} tokens of {model!r}"
                )
            if any(worker.fits((model, other)) for other in worker.engines if other != model):
                raise PlanError(
                    f"the oracle plans one model at a time; {worker.name!r} can hold {model!r} "
                    "beside another one"
                )
            if engine.wake_s != engine.load_s:
                raise PlanError(
                    f"the oracle needs equal load and wake times; {model!r} has "
                    f"{engine.load_s} and {engine.wake_s}"
                )
            if not isinstance(engine.timer, AffineTimer) or engine.timer.per_token_pair_s:
                raise PlanError("the oracle needs affine timers without attention terms")
            if first.setdefault(model, engine) != engine:
                raise PlanError(f"the oracle needs equal engines; {model!r} differs by worker")


class _Model:
    """The constraint model of one instance."""

    def __init__(self, problem: Problem, cp: Any) -> None:
        self.problem = problem
        self.cp = cp
        self.m = cp.CpModel()
        self.groups = problem.n_groups
        self.items = [
            _item(problem, op * self.groups + g)
            for op in problem.model_ops
            for g in range(self.groups)
        ]
        self.at = {it.item: n for n, it in enumerate(self.items)}
        horizon = sum(it.cold_ticks for it in self.items)
        horizon += sum(
            _ticks(op.work.latency_s) * self.groups
            for op in problem.workload.operations
            if isinstance(op.work, ToolWork)
        )
        switches = [
            _ticks(engine.load_s + engine.sleep_s)
            for worker in problem.machine.workers
            for engine in worker.engines.values()
        ]
        horizon += len(self.items) * max(switches, default=0)
        self.horizon = horizon
        self.start: dict[int, Any] = {}
        self.end: dict[int, Any] = {}
        self.on: dict[tuple[int, int], Any] = {}
        self.gaps: list[list[tuple[int, Any]]] = [[] for _ in problem.machine.workers]
        self.arcs: list[list[tuple[int, int, Any]]] = [[] for _ in problem.machine.workers]
        self.after = _descendants(problem)
        self._intervals()
        self._precedence()
        self._sequences()
        self._symmetry()
        self.makespan = self.m.new_int_var(0, horizon, "makespan")
        for end in self.end.values():
            self.m.add(self.makespan >= end)
        self._load_bound()
        self.m.minimize(self.makespan)

    def _intervals(self) -> None:
        m, problem = self.m, self.problem
        shared = _shared_nodes(self.items)
        self.warm: dict[tuple[int, int], Any] = {}
        self.duration: dict[int, Any] = {}
        everything: list[Any] = []
        for n, it in enumerate(self.items):
            least = it.cold_ticks - sum(saved for _, saved in it.nodes)
            start = m.new_int_var(0, self.horizon, f"s{n}")
            duration = m.new_int_var(max(0, least), it.cold_ticks, f"d{n}")
            end = m.new_int_var(0, self.horizon, f"e{n}")
            everything.append(m.new_interval_var(start, duration, end, f"i{n}"))
            self.start[it.item], self.end[it.item], self.duration[n] = start, end, duration
            for node in shared:
                self.warm[n, node] = m.new_bool_var(f"w{n},{node}")
            # The saving of a piece counts when it and all before it are warm.
            chain: Any = None
            savings: list[Any] = []
            for node, saved in it.nodes:
                if node not in shared:
                    break
                here = self.warm[n, node]
                if chain is None:
                    both = here
                else:
                    both = m.new_bool_var("")
                    m.add_bool_and(chain, here).only_enforce_if(both)
                    m.add_bool_or(chain.negated(), here.negated()).only_enforce_if(both.negated())
                chain = both
                savings.append(saved * both)
            m.add(duration == it.cold_ticks - sum(savings))
        self.shared = shared
        # Whoever uses a piece first computes it, on whatever worker.
        for node in shared:
            users = [
                n for n, it in enumerate(self.items) if any(node == other for other, _ in it.nodes)
            ]
            m.add_bool_or([self.warm[n, node].negated() for n in users])
        m.add_cumulative(everything, [1] * len(everything), len(problem.machine.workers))

    def _precedence(self) -> None:
        m, problem, groups = self.m, self.problem, self.groups
        lanes: dict[str, list[Any]] = {}
        ops = problem.workload.operations
        for position, op in enumerate(ops):
            for g in range(groups):
                item = position * groups + g
                if isinstance(op.work, ToolWork):
                    ticks = _ticks(op.work.latency_s)
                    start = m.new_int_var(0, self.horizon, "")
                    end = m.new_int_var(0, self.horizon, "")
                    interval = m.new_interval_var(start, ticks, end, "")
                    lanes.setdefault(op.work.lane, []).append(interval)
                    self.start[item], self.end[item] = start, end
                for i in op.inputs:
                    m.add(self.start[item] >= self.end[i * groups + g])
        size = problem.workload.group_rows[0]
        for lane in problem.machine.lanes:
            intervals = lanes.get(lane.name, [])
            places = lane.limit // size
            if len(intervals) > places:
                m.add_cumulative(intervals, [1] * len(intervals), places)

    def _sequences(self) -> None:
        m, problem = self.m, self.problem
        for n, it in enumerate(self.items):
            places: list[Any] = []
            for w in problem.workers_for[it.model]:
                self.on[n, w] = m.new_bool_var(f"on{n},{w}")
                places.append(self.on[n, w])
            m.add_exactly_one(places)
        for w, worker in enumerate(problem.machine.workers):
            mine = [n for n in range(len(self.items)) if (n, w) in self.on]
            arcs: list[tuple[int, int, Any]] = []
            idle = m.new_bool_var(f"idle{w}")
            arcs.append((0, 0, idle))
            intervals: list[Any] = []
            held = worker.resident[0] if worker.resident else ""
            for n in mine:
                it = self.items[n]
                arcs.append((n + 1, n + 1, self.on[n, w].negated()))
                first = m.new_bool_var("")
                arcs.append((0, n + 1, first))
                self._first(n, it, first, w, held)
                arcs.append((n + 1, 0, m.new_bool_var("")))
                intervals.append(
                    m.new_optional_interval_var(
                        self.start[it.item], self.duration[n], self.end[it.item],
                        self.on[n, w], f"o{n},{w}",
                    )
                )  # fmt: skip
                for k in mine:
                    if k != n and it.item not in self.after[self.items[k].item]:
                        literal = m.new_bool_var("")
                        arcs.append((n + 1, k + 1, literal))
                        self.arcs[w].append((n, k, literal))
                        self._follows(n, k, literal, w)
            m.add_circuit(arcs)
            m.add_no_overlap(intervals)

    def _first(self, n: int, it: _Item, literal: Any, w: int, held: str) -> None:
        m = self.m
        engine = self.problem.machine.workers[w].engines[it.model]
        if it.model != held:
            wait = engine.load_s
            if held:
                wait += self.problem.machine.workers[w].engines[held].sleep_s
            m.add(self.start[it.item] >= _ticks(wait)).only_enforce_if(literal)
            self.gaps[w].append((_ticks(wait), literal))
        for node in self.shared:
            m.add_implication(literal, self.warm[n, node].negated())

    def _follows(self, n: int, k: int, literal: Any, w: int) -> None:
        m = self.m
        before, after = self.items[n], self.items[k]
        gap = 0
        if before.model != after.model:
            worker = self.problem.machine.workers[w]
            gap = _ticks(worker.engines[after.model].load_s + worker.engines[before.model].sleep_s)
            self.gaps[w].append((gap, literal))
        m.add(self.start[after.item] >= self.end[before.item] + gap).only_enforce_if(literal)
        used = {node for node, _ in before.nodes}
        for node in self.shared:
            warm = self.warm[k, node]
            if before.model != after.model:
                m.add_implication(literal, warm.negated())
            elif node in used:
                m.add_implication(literal, warm)
            else:
                previous = self.warm[n, node]
                m.add_bool_or(literal.negated(), warm.negated(), previous)
                m.add_bool_or(literal.negated(), warm, previous.negated())

    def _symmetry(self) -> None:
        """Groups are alike: their first operations start in order. So are equal workers."""
        m, groups = self.m, self.groups
        op = self.problem.model_ops[0]
        for g in range(groups - 1):
            m.add(self.start[op * groups + g] <= self.start[op * groups + g + 1])
        workers = self.problem.machine.workers
        for w in range(len(workers) - 1):
            a, b = workers[w], workers[w + 1]
            same = (a.engines, a.memory_bytes, a.resident) == (
                b.engines,
                b.memory_bytes,
                b.resident,
            )
            mine = [
                n for n in range(len(self.items)) if (n, w) in self.on and (n, w + 1) in self.on
            ]
            if same and mine:
                # The sum of item numbers orders equal workers: any strict order will do.
                m.add(
                    sum((n + 1) * self.on[n, w] for n in mine)
                    >= sum((n + 1) * self.on[n, w + 1] for n in mine)
                )

    def _load_bound(self) -> None:
        """Implied constraints, which let the solver prove more: a worker is busy for its items and
        switches, and whoever on it uses a piece first computes it."""
        m = self.m
        everything: list[Any] = []
        for w in range(len(self.problem.machine.workers)):
            mine = [n for n in range(len(self.items)) if (n, w) in self.on]
            busy: list[Any] = []
            for n in mine:
                cold = self.items[n].cold_ticks
                here = m.new_int_var(0, cold, "")
                m.add(here >= self.duration[n] - cold * (1 - self.on[n, w]))
                busy.append(here)
            everything += busy
            m.add(self.makespan >= sum(busy) + sum(gap * arc for gap, arc in self.gaps[w]))
            for node in self.shared:
                users = [n for n in mine if any(node == other for other, _ in self.items[n].nodes)]
                if not users:
                    continue
                used = m.new_bool_var("")
                for n in users:
                    m.add_implication(self.on[n, w], used)
                # An item that is on this worker and computes the piece, for each of `used`.
                computes: list[Any] = []
                for n in users:
                    here = m.new_bool_var("")
                    m.add_implication(here, self.on[n, w])
                    m.add_implication(here, self.warm[n, node].negated())
                    computes.append(here)
                m.add(sum(computes) >= used)
            self._block_bound(w, mine)
        m.add(sum(everything) == sum(self.duration[n] for n in range(len(self.items))))

    def _block_bound(self, w: int, mine: Sequence[int]) -> None:
        """Each change of models begins a block; items of one chain of calls are in blocks as far
        apart as the chain changes models."""
        if len({self.items[n].model for n in mine}) < 2:
            return
        m = self.m
        block = {n: m.new_int_var(0, len(mine), "") for n in mine}
        changes = sum(literal for n, k, literal in self.arcs[w]
                      if self.items[n].model != self.items[k].model)  # fmt: skip
        for n in mine:
            m.add(block[n] <= changes).only_enforce_if(self.on[n, w])
        for n, k, literal in self.arcs[w]:
            change = int(self.items[n].model != self.items[k].model)
            m.add(block[k] == block[n] + change).only_enforce_if(literal)
        for n in mine:
            for k in mine:
                if self.items[k].item in self.after[self.items[n].item]:
                    change = int(self.items[n].model != self.items[k].model)
                    both = [self.on[n, w], self.on[k, w]]
                    m.add(block[k] >= block[n] + change).only_enforce_if(both)

    def solve(
        self, limit_s: float, workers: int, seed: int, hint: Assignment | None
    ) -> OracleResult:
        if hint is not None:
            self._hint(hint)
        solver = self.cp.CpSolver()
        solver.parameters.max_time_in_seconds = limit_s
        solver.parameters.num_workers = workers
        solver.parameters.random_seed = seed
        status = solver.solve(self.m)
        bound_s = solver.best_objective_bound / TICKS_PER_S
        seconds = solver.wall_time
        if status not in (self.cp.OPTIMAL, self.cp.FEASIBLE):
            return OracleResult(float("inf"), bound_s, False, None, float("inf"), seconds)
        makespan_s = solver.objective_value / TICKS_PER_S
        assignment = self._assignment(solver)
        simulated = self.problem.simulate(assignment)
        return OracleResult(
            makespan_s,
            bound_s,
            bool(status == self.cp.OPTIMAL),
            assignment,
            simulated.makespan_s,
            seconds,
        )

    def _hint(self, hint: Assignment) -> None:
        """Start from a schedule: it is feasible, so nothing longer is of interest. Each of its
        items may be rounded by a tick."""
        run = self.problem.simulate(hint, timeline=True)
        self.m.add(self.makespan <= _ticks(run.makespan_s) + len(self.start))
        names = {op.name: i for i, op in enumerate(self.problem.workload.operations)}
        began: dict[int, float] = {}
        for span in run.timeline:
            if span.kind in ("calls", "tool"):
                item = names[span.label] * self.groups + span.group
                began[item] = min(span.start_s, began.get(item, span.start_s))
        for item, start_s in began.items():
            self.m.add_hint(self.start[item], _ticks(start_s))
        for w, arcs in enumerate(self.arcs):
            mine = [n for n, it in enumerate(self.items) if hint.worker[it.item] == w]
            mine.sort(key=lambda n: began.get(self.items[n].item, 0.0))
            follows = set(pairwise(mine))
            for n, k, literal in arcs:
                self.m.add_hint(literal, int((n, k) in follows))
        for n, it in enumerate(self.items):
            for w in self.problem.workers_for[it.model]:
                self.m.add_hint(self.on[n, w], int(hint.worker[it.item] == w))

    def _assignment(self, solver: Any) -> Assignment:
        worker = [-1] * self.problem.n_items
        priority = [0.0] * self.problem.n_items
        for item, start in self.start.items():
            priority[item] = float(solver.value(start))
        for (n, w), literal in self.on.items():
            if solver.value(literal):
                worker[self.items[n].item] = w
        return Assignment(worker, priority, order="strict")


def _item(problem: Problem, item: int) -> _Item:
    """Cold duration and savings of an item, by the arithmetic of the simulator."""
    groups = problem.n_groups
    position, g = divmod(item, groups)
    work = problem.workload.operations[position].work
    assert isinstance(work, ModelWork)
    path = problem.simulator.compiled.paths[position]
    assert path is not None
    size = problem.workload.group_rows[g]
    worker = problem.machine.workers[problem.workers_for[work.model][0]]
    engine = worker.engines[work.model]
    timer = engine.timer
    assert isinstance(timer, AffineTimer)
    rate = timer.per_prefill_token_s
    stride = groups + 1
    context = size * (path.tokens + (work.output_tokens - 1) / 2)
    decode_s = work.output_tokens * timer.step_s(0, 0, size, context)
    tokens = 0
    nodes: list[tuple[int, int]] = []
    for node, part, per_row in path.nodes:
        # In one batch a static piece is computed once, whoever shares it.
        computed = part * size if per_row else part
        tokens += computed
        key = node * stride + (g + 1 if per_row else 0)
        nodes.append((key, _ticks(computed * rate)))
    chunks = -(-tokens // engine.chunk_tokens)
    cold = _ticks(tokens * rate + chunks * timer.prefill_s + decode_s)
    return _Item(item, work.model, cold, tuple(nodes))


def _descendants(problem: Problem) -> list[set[int]]:
    """For each item, the items of its row group that can only come after it."""
    ops, groups = problem.workload.operations, problem.n_groups
    after: list[set[int]] = [set() for _ in range(problem.n_items)]
    for position in range(len(ops) - 1, -1, -1):
        for before in ops[position].inputs:
            for g in range(groups):
                item = position * groups + g
                after[before * groups + g] |= {item, *after[item]}
    return after


def _shared_nodes(items: Sequence[_Item]) -> set[int]:
    """Cache entries that more than one item uses."""
    users: dict[int, int] = {}
    for it in items:
        for node, saved in it.nodes:
            if saved:
                users[node] = users.get(node, 0) + 1
    return {node for node, n in users.items() if n > 1}


def _ticks(seconds: float) -> int:
    return round(seconds * TICKS_PER_S)
