"""How many rows of each relation there are, and for how many of them a value is needed.

A value is needed for the rows of those who read it: the relation of a result, the rows before a
filter, the rows that a relation is made of. Several of them over the same base need the union.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from planner.logical import LogicalPlan, Op, Relation, Result
from planner.relations import Subset, row_values
from planner.stats import Provenance, weakest


@dataclass(frozen=True, slots=True)
class Size:
    """An expected number of rows, and where it comes from."""

    rows: float
    source: Provenance = "exact"

    def times(self, factor: float, source: Provenance) -> Size:
        return Size(self.rows * factor, weakest((self.source, source)))


@dataclass(frozen=True, slots=True)
class Needed:
    """For how many rows a value is needed.

    Attributes:
        rows: over the batch, a row that several queries need once; `rows_alone`: summed over
            queries.
        share: of the rows of the base.
    """

    rows: float
    rows_alone: float
    share: float
    source: Provenance


Reader: TypeAlias = "tuple[Relation, tuple[str, ...]]"
"""Rows that a value is read for, and the queries that read it there."""


class RowDemand:
    """The rows that the operators of a plan's row scope are needed for. Relations must be given
    their sizes before values over them are asked for."""

    def __init__(self, plan: LogicalPlan) -> None:
        self._sizes: dict[Op, Size] = {}
        self._readers = _readers(plan)
        self._known: dict[frozenset[Reader], Needed] = {}

    def size(self, relation: Relation, size: Size) -> None:
        """Tell the size of a relation."""
        self._sizes[relation] = size

    def rows_of(self, relation: Relation) -> Size:
        return self._sizes[relation]

    def of(self, op: Op) -> Needed:
        """For how many rows the value of `op` is needed."""
        readers = self._readers.get(op, frozenset[Reader]())
        known = self._known.get(readers)
        if known is None:
            known = self._known[readers] = self._needed(readers)
        return known

    def _needed(self, readers: frozenset[Reader]) -> Needed:
        by_base: dict[Relation, dict[Relation, list[tuple[str, ...]]]] = {}
        for relation, queries in readers:
            by_base.setdefault(relation.base, {}).setdefault(relation, []).append(queries)
        total = whole = alone = 0.0
        for base, found in by_base.items():
            total += self._union(base, found)
            whole += self._sizes[base].rows
            needs: dict[str, set[Relation]] = {}
            for relation, groups in found.items():
                for query in (query for queries in groups for query in queries):
                    needs.setdefault(query, set()).add(relation)
            alone += sum(self._union(base, relations) for relations in needs.values())
        source = weakest(self._sizes[relation].source for relation, _ in readers)
        return Needed(total, alone, total / whole if whole else 1.0, source)

    def _union(self, base: Relation, relations: Iterable[Relation]) -> float:
        """Rows of `base` that are in one of `relations`, taken as independent of each other unless
        one is part of the other."""
        found = set(relations)
        whole = self._sizes[base].rows
        if base in found or not whole:
            return whole
        largest = [r for r in found if not any(outer in found for outer in _around(r))]
        if len(largest) == 1:
            return self._sizes[largest[0]].rows
        return whole * (1 - prod(1 - min(1.0, self._sizes[r].rows / whole) for r in largest))


def _around(relation: Relation) -> Iterable[Relation]:
    """The relations that a subset is part of."""
    while isinstance(relation, Subset):
        relation = relation.rows
        yield relation


def _readers(plan: LogicalPlan) -> dict[Op, frozenset[Reader]]:
    """Who reads each value of the row scope."""
    users = plan.users
    readers: dict[Op, frozenset[Reader]] = {}
    nothing: frozenset[Reader] = frozenset()

    def add(op: Op, found: frozenset[Reader]) -> None:
        known = readers.get(op, nothing)
        readers[op] = known if found <= known else known | found

    for op in reversed(list(plan.walk())):
        if isinstance(op, Result):
            readers[op] = frozenset([(op.rows, users[op])])
            add(op.value, readers[op])
        elif isinstance(op, Relation):
            for value, rows in row_values(op):
                if rows is not None:
                    add(value, frozenset([(rows, users[op])]))
        else:
            for dependency in op.dependencies:
                if not isinstance(dependency, Relation):
                    add(dependency, readers.get(op, nothing))
    return readers
