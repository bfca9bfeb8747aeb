"""The rows of relations that are made of the rows of others, without the event loop.

A derivation is given what its inputs have, in row order, and tells which rows there are because of
it. A row that failed comes as its error and stays a row: see `planner.relations`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from planner.errors import InvariantError
from planner.logical import (
    Collect,
    Flatten,
    Group,
    Json,
    Pairs,
    Relation,
    Sort,
    SqlRows,
    canonical_json,
)
from runtime.records import RowError
from runtime.values import kind_of

Made: TypeAlias = "Mapping[str, Json] | RowError"
"""A row by column name, or why there is none."""


@dataclass(frozen=True, slots=True)
class FailedMember:
    """A row whose group is known and whose other values are not."""

    keys: Sequence[Json]
    error: RowError


Given: TypeAlias = "Sequence[Json] | RowError | FailedMember"
"""The values of one row that a relation reads, or why there are none."""


def failed(given: Given) -> RowError | None:
    """Why a row has no values; None when it has."""
    if isinstance(given, FailedMember):
        return given.error
    return given if isinstance(given, RowError) else None


def values_of(given: Given) -> Sequence[Json]:
    """The values of a row that has not failed."""
    assert not isinstance(given, RowError | FailedMember)
    return given


class Derivation(ABC):
    """The rows of one relation. `n_inputs` inputs are numbered as the relation reads them."""

    n_inputs = 1

    @abstractmethod
    def accept(self, number: int, given: Given) -> Iterable[Made]:
        """The rows that follow from the next row of input `number`."""

    def finish(self, number: int) -> Iterable[Made]:
        """The rows that follow from input `number` having no more."""
        return ()


def derivation(op: Relation) -> Derivation:
    """How the rows of `op` are made."""
    match op:
        case Collect():
            return _Collected(op)
        case Flatten():
            return _Flattened(op)
        case Pairs():
            return _Paired(op)
        case Group():
            return _Grouped(op)
        case Sort():
            return _Sorted(op)
        case _:
            raise InvariantError(f"the executor does not know relations of kind {op.kind}")


class _Collected(Derivation):
    def __init__(self, op: Collect) -> None:
        self._op = op

    def accept(self, number: int, given: Given) -> Iterable[Made]:
        return (failed(given) or dict(zip(self._op.columns, values_of(given), strict=True)),)


class _Flattened(Derivation):
    def __init__(self, op: Flatten) -> None:
        self._op = op
        self._names = op.columns[:-1] if op.position else op.columns

    def accept(self, number: int, given: Given) -> Iterator[Made]:
        error = failed(given)
        if error is not None:
            yield error
            return
        elements, *carried = values_of(given)
        if elements is None and not self._op.null_fails:
            return
        if not isinstance(elements, list):
            yield RowError(
                "ValueTypeError",
                f"{self._op!r} needs a list, got {kind_of(elements)}; declare a list as the output "
                "type of what makes the value",
                self._op.label or self._op.fingerprint,
            )
            return
        for index, element in enumerate(elements):
            row = dict(zip(self._names, (element, *carried), strict=True))
            if self._op.position:
                row[self._op.position] = index
            yield row


class _Paired(Derivation):
    """The right side is kept, by the values that must be equal; left rows wait until it is whole.
    A failed right row pairs with every left row."""

    n_inputs = 2

    def __init__(self, op: Pairs) -> None:
        self._columns = op.columns
        left, right = op.columns[: op.n_left], op.columns[op.n_left :]
        self._left_key = [left.index(name) for name, _ in op.on]
        self._right_key = [right.index(name) for _, name in op.on]
        self._right: dict[str, list[Sequence[Json]]] = {}
        self._failed: list[RowError] = []
        self._whole = False
        self._waiting: list[Given] = []

    def accept(self, number: int, given: Given) -> Iterator[Made]:
        if number == 1:
            error = failed(given)
            if error is not None:
                self._failed.append(error)
                return
            values = values_of(given)
            key = _key([values[i] for i in self._right_key])
            if key is not None:
                self._right.setdefault(key, []).append(values)
        elif self._whole:
            yield from self._pairs(given)
        else:
            self._waiting.append(given)

    def finish(self, number: int) -> Iterator[Made]:
        if number == 1:
            self._whole = True
            waiting, self._waiting = self._waiting, []
            for given in waiting:
                yield from self._pairs(given)

    def _pairs(self, given: Given) -> Iterator[Made]:
        error = failed(given)
        if error is not None:
            yield error
            return
        left = values_of(given)
        key = _key([left[i] for i in self._left_key])
        for right in self._right.get(key, ()) if key is not None else ():
            yield dict(zip(self._columns, (*left, *right), strict=True))
        yield from self._failed


def _key(values: Sequence[Json]) -> str | None:
    """What equal values have in common; None when one is null, which equals nothing."""
    if any(value is None for value in values):
        return None
    return canonical_json([_number(value) for value in values])


def _number(value: Json) -> Json:
    """1.0 and 1 are equal, as values and in SQL."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@dataclass(slots=True)
class _OneGroup:
    keys: Sequence[Json]
    lists: list[list[Json]]
    error: RowError | None = None


@dataclass(slots=True)
class _Groups:
    """Groups and failed rows, in order of first appearance."""

    order: list[_OneGroup | RowError] = field(default_factory=list["_OneGroup | RowError"])
    by_key: dict[str, _OneGroup] = field(default_factory=dict[str, _OneGroup])


class _Grouped(Derivation):
    def __init__(self, op: Group) -> None:
        self._op = op
        self._n_keys = op.n_keys
        self._groups = _Groups()
        if not op.n_keys:
            self._group([])

    def accept(self, number: int, given: Given) -> Iterable[Made]:
        if isinstance(given, RowError):
            self._groups.order.append(given)
            return ()
        if isinstance(given, FailedMember):
            group = self._group(given.keys)
            group.error = group.error or given.error
            return ()
        group = self._group(given[: self._n_keys])
        for values, value in zip(group.lists, given[self._n_keys :], strict=True):
            values.append(value)
        return ()

    def finish(self, number: int) -> Iterator[Made]:
        for entry in self._groups.order:
            if isinstance(entry, RowError):
                yield entry
            elif entry.error is not None:
                yield entry.error
            else:
                yield dict(zip(self._op.columns, (*entry.keys, *entry.lists), strict=True))

    def _group(self, keys: Sequence[Json]) -> _OneGroup:
        name = canonical_json([_number(key) for key in keys])
        group = self._groups.by_key.get(name)
        if group is None:
            lists: list[list[Json]] = [[] for _ in self._op.columns[self._n_keys :]]
            group = self._groups.by_key[name] = _OneGroup(list(keys), lists)
            self._groups.order.append(group)
        return group


class _Sorted(Derivation):
    def __init__(self, op: Sort) -> None:
        self._op = op
        self._rows: list[Sequence[Json]] = []
        self._failed: list[RowError] = []

    def accept(self, number: int, given: Given) -> Iterable[Made]:
        error = failed(given)
        if error is not None:
            self._failed.append(error)
        else:
            self._rows.append(values_of(given))
        return ()

    def finish(self, number: int) -> Iterator[Made]:
        # The least important first: sorting is stable.
        for name in reversed(self._op.by):
            at = self._op.columns.index(name.removeprefix("-"))
            known = [row for row in self._rows if row[at] is not None]
            nulls = [row for row in self._rows if row[at] is None]
            known.sort(key=lambda row: sort_key(row[at]), reverse=name.startswith("-"))
            self._rows = [*known, *nulls]
        for row in self._rows:
            yield dict(zip(self._op.columns, row, strict=True))
        yield from self._failed


def sort_key(value: Json) -> tuple[int, float | int, str]:
    """Numbers (booleans are 0 and 1) before texts before anything else."""
    if isinstance(value, bool | int | float):
        return 0, value, ""
    if isinstance(value, str):
        return 1, 0, value
    return 2, 0, canonical_json(value)


# --- tables of a query ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """A relation as a query reads it. `types`: DuckDB types by column, "" to infer."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: list[tuple[Json, ...]]


class TableReader:
    """Collects the tables of one `SqlRows`."""

    def __init__(self, op: SqlRows) -> None:
        self._op = op
        self.tables: dict[str, Table] = {}
        self._failed: dict[str, list[RowError]] = {}
        for name, relation in zip(op.tables, op.table_inputs, strict=True):
            base = relation.base
            columns = relation.column_names
            types = base.types if isinstance(base, Collect) and base.types else ("",) * len(columns)
            self.tables[name] = Table(columns, types, [])

    def accept(self, number: int, given: Given) -> None:
        """The next row of table `number`."""
        name = self._op.tables[number]
        error = failed(given)
        if error is None:
            self.tables[name].rows.append(tuple(values_of(given)))
        else:
            self._failed.setdefault(name, []).append(error)

    @property
    def error(self) -> RowError | None:
        """Why the query cannot run: any of its rows might be wrong."""
        for name, errors in self._failed.items():
            rows = "1 row" if len(errors) == 1 else f"{len(errors)} rows"
            first = errors[0]
            message = f"{rows} of table {name!r} could not be computed; the first: {first.message}"
            return RowError(first.type, message, first.op)
        return None
