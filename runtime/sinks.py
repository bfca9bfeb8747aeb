"""Sinks: what the rows of a relation are computed for, as roots of the scope of those rows.

A sink reads values of the rows of a relation: for the outcome of a query, or for the row of another
relation. It is evaluated for the rows that its relation keeps, and what only it needs is not
computed for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from costmodel.usage import OpMetrics
from planner.logical import Filter, Json, Limit, Op, Relation, Subset
from runtime.inline import Compute
from runtime.scope import Frame


@dataclass(frozen=True, eq=False, repr=False)
class Sink(Op):
    """Values of the rows of the relation in the first input. `number` tells sinks apart. The value
    of a sink of a query (`single`) is that of its second input, of another the list of all."""

    number: int = 0
    single: bool = False

    @property
    def rows(self) -> Relation:
        rows = self.inputs[0]
        assert isinstance(rows, Relation)
        return rows

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits that rows must pass to reach it."""
        found: list[Limit] = []
        rows = self.rows
        while isinstance(rows, Subset):
            if isinstance(rows, Limit):
                found.append(rows)
            rows = rows.rows
        return tuple(found)


def compile_filter(op: Filter, at: Sequence[int], metrics: dict[str, OpMetrics]) -> Compute:
    """The function of a filter, for rows that the relation before it keeps. Counts them
    (`requested`) and those that it keeps (`kept`): that is how pass rates are learnt."""
    predicate = at[1]
    counts = metrics.setdefault(op.fingerprint, OpMetrics())

    def keeps(values: list[Json], env: Any) -> Json:
        counts.requested += 1
        if not values[predicate]:
            return False
        counts.kept += 1
        return True

    return keeps


def compile_sink(op: Sink, at: Sequence[int]) -> Compute:
    """The function of a sink, for rows that the relation before it keeps."""
    if op.single:
        value = at[1]
        return lambda values, env: values[value]
    positions = tuple(at[1:])
    return lambda values, env: [values[i] for i in positions]


class LimitState:
    """Where one `Limit` of a run stands."""

    def __init__(self, op: Limit) -> None:
        self._op = op
        self._seen = 0
        self._passed = 0

    @property
    def full(self) -> bool:
        """Whether no further row can pass."""
        return self._passed >= self._op.offset + self._op.count

    def see(self) -> None:
        """A row has ended that might have reached the limit."""
        self._seen += 1

    def take(self) -> bool:
        """Whether the next row that reaches the limit, in row order, is one of its rows."""
        if self.full:
            return False
        self._passed += 1
        return self._passed > self._op.offset

    @property
    def slice(self) -> int:
        """How many rows to have under way: as many as it takes to fill the limit at the rate at
        which rows have reached it so far, at least one."""
        missing = self._op.offset + self._op.count - self._passed
        rate = (self._passed + 1) / (self._seen + 1)
        return max(1, round(missing / min(1.0, rate)))


class LimitStep:
    """A `Limit`: takes rows in their order, so each waits until those before it are decided."""

    def __init__(self, op: Limit, state: LimitState) -> None:
        self.op = op
        self._state = state

    async def run(self, frame: Frame, query: str) -> Json:
        return self._state.take()
