"""Where calls go: the plan's placement, which may be changed while the run is under way.

Calls that have started keep their worker and their place in its queue; a changed placement counts
for calls that are asked after it. Neither keys nor records depend on the worker, so kill, resume
and sharing are as they are without it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from costmodel.usage import OpMetrics
from planner.errors import InvariantError
from planner.logical import Op
from planner.physical import PhysicalPlan, Worker

FIRST_LOOK_ROWS = 32
"""Rows that end before a run is first asked whether its plan still fits; then at twice as many."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a worker is: calls that wait for a place, and free places."""

    waiting: int
    free: int


@dataclass(frozen=True, slots=True)
class Observed:
    """What a run has measured, for planning again.

    Attributes:
        metrics: by operator fingerprint.
        rows_started: rows under way or ended; the plan of those behind may change.
        rows_ended, rows_total: a row counts once, whatever it is for.
        elapsed_s: since the run began.
    """

    metrics: Mapping[str, OpMetrics]
    rows_started: int
    rows_ended: int
    rows_total: int
    elapsed_s: float


Replan = Callable[[Observed], "PhysicalPlan | None"]
"""Plans the rest again; None when the plan is to stay. The session makes it, the executor asks."""


class Placement:
    """Workers and priorities of calls, by operator and row.

    Args:
        load: how busy a worker is, so that a call goes to an idle one with the same model instead
            of waiting; None sends every call where the plan says.
    """

    def __init__(self, plan: PhysicalPlan, load: Callable[[str], Load] | None = None) -> None:
        self._load = load
        self._open = plan.workers
        self._take(plan)

    def update(self, plan: PhysicalPlan) -> None:
        """Follow another plan of the same operators from here on."""
        if plan.logical.fingerprint != self._plan.logical.fingerprint:
            raise InvariantError("a run cannot go on with the plan of other operators")
        unknown = {w.name for w in plan.workers} - {w.name for w in self._open}
        if unknown:
            raise InvariantError(f"the new plan uses workers that are not open: {sorted(unknown)}")
        self._take(plan)

    def _take(self, plan: PhysicalPlan) -> None:
        self._plan = plan
        self._workers = {worker.name: worker for worker in plan.workers}
        self._ends = {
            op: (list(accumulate(rows for _, rows in runs)), [name for name, _ in runs])
            for op, runs in plan.shares.items()
        }
        self._replicas = {
            op: tuple(dict.fromkeys(name for name, _ in runs)) for op, runs in plan.shares.items()
        }

    def worker_of(self, op: Op) -> Worker:
        """A worker that has the operator's model. Raises `InvariantError` when there is none."""
        name = self._plan.placements.get(op.fingerprint, "")
        worker = self._workers.get(name)
        if worker is None:
            have = ", ".join(self._workers) or "none"
            raise InvariantError(f"{op!r} is placed on worker {name!r}; the plan has: {have}")
        return worker

    def worker(self, fingerprint: str, position: int) -> str:
        """The worker of a call of the row that started as number `position`."""
        shares = self._ends.get(fingerprint)
        if shares is None:
            return self._plan.placements[fingerprint]
        ends, names = shares
        name = names[min(bisect_right(ends, position), len(names) - 1)]
        if self._load is None or not self._load(name).waiting:
            return name
        # Its worker is behind. What the row's prefix is worth there is less than a wait for a
        # place, since a place comes free only when some other call has decoded to its end.
        for other in self._replicas[fingerprint]:
            if other != name:
                load = self._load(other)
                if load.free > 0 and not load.waiting:
                    return other
        return name

    def priority(self, fingerprint: str) -> int:
        """The operator's part of a call's priority, to be added to the row's."""
        return self._plan.priority.get(fingerprint, 0) * self._plan.row_block

    def row_priority(self, position: int) -> int:
        """The row's part: rows of a block are mixed by the operators' priorities."""
        block = self._plan.row_block
        stride = max(self._plan.priority.values(), default=0) + 1
        return position // block * stride * block + position % block
