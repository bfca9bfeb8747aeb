"""The physical plan: a logical plan with a worker for every model call, priorities and row order.

Everything here is soft, the placement apart: readiness decides what runs, the priority decides what
runs first among the ready, and the row order decides which rows start first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from planner.bodies import bodies_innermost_first
from planner.errors import PlanError
from planner.logical import Effect, LogicalPlan, ModelOp, Op
from planner.row_profile import Path
from planner.row_window import rows_that_fit
from planner.stage_order import stage_orders
from planner.stats import PlanStats

ROWS_PER_SLOT = 4
"""Rows in flight for each request that a worker takes at once: enough that rows which wait for
tools or for other rows' answers do not leave a slot empty."""
BUSY_CALLS = 128
"""Calls at once that keep an engine busy."""
MIN_ROWS_IN_FLIGHT = 8
MAX_ROWS_IN_FLIGHT = 512
ROWS_IN_FLIGHT_WITHOUT_MODELS = 64


@dataclass(frozen=True, slots=True)
class Worker:
    """One engine with one model loaded, as the plan knows it.

    Attributes:
        name: unique in a plan; placements and the dispatcher use it.
        engine, model: what the session loads for it.
        max_in_flight: requests that are worth having in the engine at once.
        context_tokens: prompt and answer together; None when unknown.
        prefix_cache: whether equal prompt prefixes are computed once.
        prime_prefix: whether one request must finish a prefix before others reuse it.
        prefix_block_tokens: granularity of that reuse.
        choice: whether the engine keeps to the options of a choice while decoding.
        cache_tokens: prompt tokens, as plans estimate them (`costmodel.tokens`), that the prefix
            cache can hold; None when unknown.
        techniques: names of the attention techniques that the engine offers.
        attention: the one that serves the plan, with its settings; empty for the model's own.
    """

    name: str
    engine: str
    model: str
    max_in_flight: int = 1
    context_tokens: int | None = None
    prefix_cache: bool = False
    prime_prefix: bool = False
    prefix_block_tokens: int = 1
    choice: bool = True
    cache_tokens: int | None = None
    techniques: tuple[str, ...] = ()
    attention: str = ""


@dataclass(frozen=True)
class PhysicalPlan:
    """What the executor runs.

    Attributes:
        placements: worker name by fingerprint of every model operator, those of bodies included.
        shares: for operators whose rows are split, runs of (worker name, rows) along the order in
            which rows start; rows behind the last run belong to its worker.
        workers: the workers that placements name.
        priority: by fingerprint of every operator of every scope; smaller goes first.
        row_order: for each scan source, the order in which its rows start (a permutation of row
            indices). Results keep the input order whatever it is.
        stage_order: for relations that are made while running, by fingerprint: the columns by
            whose values rows that wait start together (`planner.stage_order`).
        rows_in_flight: rows that may be under way at once.
        row_block: rows that are taken operator by operator: within a block the operator's priority
            goes before the row. 1 finishes rows one after the other.
    """

    logical: LogicalPlan
    placements: Mapping[str, str]
    workers: tuple[Worker, ...]
    priority: Mapping[str, int]
    row_order: Mapping[str, tuple[int, ...]]
    rows_in_flight: int
    shares: Mapping[str, tuple[tuple[str, int], ...]] = field(
        default_factory=dict[str, tuple[tuple[str, int], ...]]
    )
    row_block: int = 1
    stage_order: Mapping[str, tuple[Path, ...]] = field(default_factory=dict[str, tuple[Path, ...]])

    def worker_of(self, op: Op) -> Worker | None:
        """The worker of a model operator; None for other operators."""
        name = self.placements.get(op.fingerprint)
        return next((w for w in self.workers if w.name == name), None)

    def rows_by_worker(self, op: Op) -> dict[str, int]:
        """Rows of an operator by worker name, when they are split; else empty."""
        rows: dict[str, int] = {}
        for name, n in self.shares.get(op.fingerprint, ()):
            rows[name] = rows.get(name, 0) + n
        return rows

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads. Input order is written as the number of rows."""
        from planner.serialize import to_json

        return {
            "logical": to_json(self.logical),
            "placements": dict(self.placements),
            "workers": [asdict(worker) for worker in self.workers],
            "priority": dict(self.priority),
            "row_order": {
                source: len(order) if is_input_order(order) else list(order)
                for source, order in self.row_order.items()
            },
            "rows_in_flight": self.rows_in_flight,
            "shares": {op: [list(run) for run in runs] for op, runs in self.shares.items()},
            "row_block": self.row_block,
            "stage_order": {
                op: [list(path) for path in paths] for op, paths in self.stage_order.items()
            },
        }

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> PhysicalPlan:
        """The plan that `to_json` wrote, with the same fingerprints."""
        from planner.serialize import from_json

        orders: Mapping[str, int | list[int]] = obj["row_order"]
        return cls(
            logical=from_json(obj["logical"]),
            placements=dict(obj["placements"]),
            workers=tuple(_worker_of(worker) for worker in obj["workers"]),
            priority=dict(obj["priority"]),
            row_order={
                source: tuple(range(order)) if isinstance(order, int) else tuple(order)
                for source, order in orders.items()
            },
            rows_in_flight=obj["rows_in_flight"],
            shares={
                op: tuple((str(name), int(rows)) for name, rows in runs)
                for op, runs in obj.get("shares", {}).items()
            },
            row_block=int(obj.get("row_block", 1)),
            stage_order={
                op: tuple(tuple(path) for path in paths)
                for op, paths in obj.get("stage_order", {}).items()
            },
        )


def place(logical: LogicalPlan, stats: PlanStats, workers: Mapping[str, Worker]) -> PhysicalPlan:
    """Put every model operator on the worker of its model and order the work.

    `workers` maps model names as the plan has them to workers; several models may share one.

    Priority is the number of steps from an operator's end to the end of its row, on the longest
    way: a call near an output goes before one near the scan, so rows finish early and few
    intermediate values are alive at once.

    Rows start in the prefix order of `stats` (rows with equal leading prompt values together) when
    a worker reuses prefixes and the plan writes nothing; otherwise in input order, because writes
    keep the order of the rows. The same goes for rows that are made while running.

    Raises `PlanError` when a model has no worker, or two workers have one name.
    """
    placements: dict[str, str] = {}
    used: dict[str, Worker] = {}
    effects: set[Effect] = set()
    for op in logical.walk_all():
        effects.add(op.effect)
        if not isinstance(op, ModelOp):
            continue
        worker = workers.get(op.model)
        if worker is None:
            known = ", ".join(sorted(repr(model) for model in workers)) or "none"
            raise PlanError(
                f"no worker for model {op.model!r}, which {op!r} asks for; models with a worker: "
                f"{known}"
            )
        if used.setdefault(worker.name, worker) != worker:
            raise PlanError(f"two different workers are named {worker.name!r}; rename one")
        placements[op.fingerprint] = worker.name
    reorder = Effect.WRITE not in effects and any(w.prefix_cache for w in used.values())
    return PhysicalPlan(
        logical=logical,
        placements=placements,
        workers=tuple(used.values()),
        priority=_priorities(logical),
        row_order={
            source: order if reorder else tuple(range(len(order)))
            for source, order in stats.prefix_order.items()
        },
        rows_in_flight=_rows_in_flight(used.values(), logical, stats, placements),
        stage_order=stage_orders(logical, stats) if reorder else {},
    )


def worker_at(runs: Sequence[tuple[str, int]], position: int) -> str:
    """The worker of the row that starts as number `position`, by an operator's shares.

    Example:
        >>> worker_at((("a", 2), ("b", 1)), 1), worker_at((("a", 2), ("b", 1)), 9)
        ('a', 'b')
    """
    reached = 0
    for name, rows in runs:
        reached += rows
        if position < reached:
            return name
    return runs[-1][0]


def _worker_of(obj: Mapping[str, Any]) -> Worker:
    fields: dict[str, Any] = {**obj, "techniques": tuple(obj.get("techniques", ()))}
    return Worker(**fields)


def is_input_order(order: tuple[int, ...]) -> bool:
    """Whether a row order leaves the rows as they are."""
    return all(index == position for position, index in enumerate(order))


def _rows_in_flight(
    workers: Iterable[Worker],
    logical: LogicalPlan,
    stats: PlanStats,
    placements: Mapping[str, str],
) -> int:
    by_name = {worker.name: worker for worker in workers}
    slots = sum(worker.max_in_flight for worker in by_name.values())
    if not slots:
        return ROWS_IN_FLIGHT_WITHOUT_MODELS
    rows = min(max(ROWS_PER_SLOT * slots, MIN_ROWS_IN_FLIGHT), MAX_ROWS_IN_FLIGHT)
    caches = {
        template.model: tokens
        for template in stats.templates
        if (worker := by_name.get(placements.get(template.op, ""))) is not None
        and worker.prefix_cache
        and (tokens := worker.cache_tokens) is not None
    }
    fitting = rows_that_fit(logical, stats, caches, least_calls=min(slots / 2, BUSY_CALLS))
    return rows if fitting is None else min(rows, max(1, int(fitting)))


def _priorities(logical: LogicalPlan) -> dict[str, int]:
    """Steps that remain after each operator, on the longest way. An operator that occurs in several
    bodies has the smallest number of its places."""
    priority: dict[str, int] = {}
    lengths = _body_lengths(logical)
    pending: list[tuple[list[Op], int]] = [(list(logical.walk()), 0)]
    while pending:
        scope, base = pending.pop()
        for op, distance in _distances(scope, lengths).items():
            remaining = base + distance
            priority[op.fingerprint] = min(priority.get(op.fingerprint, remaining), remaining)
            pending.extend((list(body.walk()), remaining) for body in op.bodies)
    return priority


def _distances(scope: list[Op], lengths: Mapping[str, int]) -> dict[Op, int]:
    """Steps from each operator of one scope to the end of the scope. `scope`: inputs first."""
    distance = dict.fromkeys(scope, 0)
    for op in reversed(scope):
        steps = distance[op] + _steps(op, lengths)
        for dependency in op.dependencies:
            distance[dependency] = max(distance[dependency], steps)
    return distance


def _steps(op: Op, lengths: Mapping[str, int]) -> int:
    return 1 + sum(lengths[body.fingerprint] for body in op.bodies)


def _body_lengths(logical: LogicalPlan) -> dict[str, int]:
    """Steps of the longest chain of each body, by the body's fingerprint."""
    lengths: dict[str, int] = {}
    for body in bodies_innermost_first(logical.walk()):
        longest: dict[Op, int] = {}
        for op in body.walk():
            before = max((longest[d] for d in op.dependencies), default=0)
            longest[op] = before + _steps(op, lengths)
        lengths[body.fingerprint] = longest[body.result]
    return lengths
