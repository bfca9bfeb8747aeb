"""Relations: the operators that stand for rows, where all others stand for one value per row.

A value operator belongs to the rows of one relation, its *base*, which its `Column`s name. Two
kinds of relation:

- **Bases** make rows with columns of their own: `Scan`, `SqlRows`, `Collect`, `Flatten`, `Pairs`,
  `Group`, `Sort`. Their rows reach the outside through `Column` alone.
- **Subsets** (`Filter`, `Limit`) keep rows of another relation as they are. The values of a kept
  row are those of the row in the base: `Column` never names a subset. So two queries with
  different filters over the same rows share every value that both need, and a value is computed
  only for rows that someone who needs it keeps.

    rows = Scan((), "rows", ("id", "text", "stars"))
    text = Column((rows,), "text")
    urgent = Compare((Choose((text,), ..., options=("yes", "no")), Const.of("yes")), "==")
    few = Compare((Column((rows,), "stars"), Const.of(2)), "<=")
    kept = Limit((Filter((Filter((rows,), few), urgent),)), 20)
    answer = Generate((text,), ...)               # over `rows`, not over `kept`
    Result((answer, kept))                        # made for at most 20 rows

Failures are rows too: nothing is dropped because it failed. A row whose predicate failed is kept as
a failed row; a failed row flattens into one failed row, fails the group, the pair or the place in
the order that it would have been part of, and does not count towards a limit. A query over failed
rows of a table (`SqlRows`) fails as a whole, since any of its rows might be wrong. `Recover` turns
a failure into null where that is what is wanted.

Order: relations are ordered, and results come in the order of their relation. Nothing here waits
for all rows unless it must: `Group`, `Sort`, the right side of `Pairs` and the tables of `SqlRows`
do; everything else passes rows on one by one. `Limit` stops the rows before it early.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.errors import PlanError
from planner.op import Effect, Op


@dataclass(frozen=True, eq=False, repr=False)
class Relation(Op):
    """Rows."""

    @property
    def base(self) -> Relation:
        """The relation whose columns the rows have: itself, except for subsets."""
        return self

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns of the rows: what `Column` may ask the base for."""
        # Every base has them as a field of its own, in a place of its own.
        columns: tuple[str, ...] = getattr(self.base, "columns", ())
        return columns

    def _expect(self, holds: bool, message: str) -> None:
        if not holds:
            raise PlanError(f"{self.kind} {message}")

    def _expect_rows(self, number: int = 1) -> None:
        have = [isinstance(each, Relation) for each in self.inputs[:number]]
        self._expect(
            len(have) == number and all(have),
            "takes a relation first" if number == 1 else f"takes {number} relations first",
        )


# --- subsets -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Subset(Relation):
    """Some of the rows of the relation in its first input, unchanged."""

    @property
    def rows(self) -> Relation:
        rows = self.inputs[0]
        assert isinstance(rows, Relation)
        return rows

    @property
    def base(self) -> Relation:
        rows = self.rows
        while isinstance(rows, Subset):
            rows = rows.rows
        return rows


@dataclass(frozen=True, eq=False, repr=False)
class Filter(Subset):
    """The rows for which a predicate is true. Inputs: the rows; the predicate, a value over their
    base.

    Truth is Python's on JSON values, and null (unknown) is not true: the row is dropped, as in SQL.
    To keep the rows for which a predicate is false, negate it (`Compare` "not", with `nulls` if
    unknown must stay unknown). Filters over each other are a conjunction: the inner one is
    evaluated first, and an outer predicate is not evaluated for rows that an inner one drops. Which
    of several pure or sampled predicates comes first is the planner's choice.
    """

    @property
    def predicate(self) -> Op:
        return self.inputs[1]

    def check(self) -> None:
        self._expect(len(self.inputs) == 2, "takes a relation and a predicate")
        self._expect_rows()


ALL_ROWS = 2**63 - 1
"""The count of a `Limit` that only an offset cuts."""


@dataclass(frozen=True, eq=False, repr=False)
class Limit(Subset):
    """The first `count` rows after `offset` rows, in the order of the rows. Inputs: the rows.

    The rows before it are admitted in growing slices until there are enough, so that a limit over a
    filter asks the predicate for few more rows than it needs. Failed rows are passed on and do not
    count.
    """

    count: int = 0
    offset: int = 0

    def check(self) -> None:
        self._expect(len(self.inputs) == 1, "takes a relation")
        self._expect_rows()
        self._expect(self.count >= 0, f"has the count {self.count}; it must not be negative")
        self._expect(self.offset >= 0, f"has the offset {self.offset}; it must not be negative")


# --- bases ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Scan(Relation):
    """The rows of one input. `source` names them: the session binds it to real rows, and gives the
    same name to equal rows, so that equal scans of different workflows become one."""

    source: str = "rows"
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class SqlRows(Relation):
    """The rows of a query that DuckDB runs once.

    Inputs: one relation for each name in `tables`, which the query may read as a table of that name
    (columns: those of the relation; see `Collect` for their types), then one constant for each name
    in `params` (`$name` in the text).

    `columns` are the names of the query's columns, in order. A pure query over the same database
    text and tables is one query, whoever asks. `volatile` and `read_only` are as for `Sql`; a query
    that writes (CREATE TABLE AS, INSERT, COPY) runs exactly once and its rows are what DuckDB
    answers to it.

    Whether rows have an order is the query's business: those of one run keep the order that DuckDB
    gave them.

    With `into`, the rows stay in DuckDB, in the run's table of that name, and the relation has one
    row: how many there are (column "rows"). A result of any size costs no memory here.
    """

    database: str = ""
    text: str = ""
    columns: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    read_only: bool = True
    volatile: bool = False
    call_id: str = ""
    into: str = ""

    @property
    def own_effect(self) -> Effect:
        if not self.read_only:
            return Effect.WRITE
        return Effect.SAMPLED if self.volatile else Effect.PURE

    @property
    def table_inputs(self) -> tuple[Relation, ...]:
        found = self.inputs[: len(self.tables)]
        return tuple(each for each in found if isinstance(each, Relation))

    @property
    def param_inputs(self) -> tuple[Op, ...]:
        return self.inputs[len(self.tables) :]

    def check(self) -> None:
        wanted = len(self.tables) + len(self.params)
        self._expect(
            len(self.inputs) == wanted,
            f"has {len(self.tables)} tables, {len(self.params)} parameters and "
            f"{len(self.inputs)} inputs",
        )
        self._expect_rows(len(self.tables))
        _once(self, "column", self.columns)
        _once(self, "table", self.tables)


@dataclass(frozen=True, eq=False, repr=False)
class Collect(Relation):
    """One row for each row of the first input, with the values of the other inputs as columns
    `columns`: what a query may read as a table. `types`: the DuckDB type of each column, or "" to
    infer it from the values; empty infers all."""

    columns: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    def check(self) -> None:
        self._expect_rows()
        _values(self, len(self.inputs) - 1, self.columns)
        self._expect(
            len(self.types) in (0, len(self.columns)),
            f"has {len(self.columns)} columns and {len(self.types)} types",
        )


@dataclass(frozen=True, eq=False, repr=False)
class Flatten(Relation):
    """One row for each element of a list, in order. Inputs: the rows; the list; values that every
    element's row carries along. `columns`: the name of the element, then one for each carried
    value. An empty list has no rows, and neither has null, unless `null_fails`; another value fails
    the row. `position` names a further column with the element's index from 0, unless it is
    empty."""

    columns: tuple[str, ...] = ()
    position: str = ""
    null_fails: bool = False

    @property
    def carried(self) -> tuple[tuple[str, Op], ...]:
        """Column name and value of what is carried along."""
        return tuple(zip(self.columns[1:], self.inputs[2:], strict=False))

    def check(self) -> None:
        self._expect_rows()
        extra = 1 if self.position else 0
        _values(self, len(self.inputs) - 1 + extra, self.columns)
        if self.position:
            self._expect(
                self.columns[-1] == self.position,
                f"has the position {self.position!r}, which must be its last column",
            )


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(Relation):
    """Every row of the left relation with every row of the right one, those of one left row after
    each other. Inputs: left rows, right rows, `n_left` values of the left, the values of the right.
    `columns`: one name for each value, left ones first.

    `on` names pairs of columns (a left, a right one) that must be equal; null equals nothing. Model
    predicates are a `Filter` over the pairs.
    """

    columns: tuple[str, ...] = ()
    n_left: int = 0
    on: tuple[tuple[str, str], ...] = ()

    @property
    def left_values(self) -> tuple[Op, ...]:
        return self.inputs[2 : 2 + self.n_left]

    @property
    def right_values(self) -> tuple[Op, ...]:
        return self.inputs[2 + self.n_left :]

    def check(self) -> None:
        self._expect_rows(2)
        _values(self, len(self.inputs) - 2, self.columns)
        self._expect(0 <= self.n_left <= len(self.columns), f"has n_left {self.n_left}")
        left, right = self.columns[: self.n_left], self.columns[self.n_left :]
        for a, b in self.on:
            self._expect(a in left, f"joins on {a!r}, which is no column of its left side")
            self._expect(b in right, f"joins on {b!r}, which is no column of its right side")


@dataclass(frozen=True, eq=False, repr=False)
class Group(Relation):
    """One row for each distinct tuple of keys, in order of first appearance. Inputs: the rows,
    `n_keys` keys, values. `columns`: one name for each key (its value) and for each value (the list
    of the values of the group's rows, in their order).

    Null is a key like any other. Without keys there is exactly one group, even of no rows. Without
    values it is DISTINCT.
    """

    columns: tuple[str, ...] = ()
    n_keys: int = 0

    @property
    def keys(self) -> tuple[Op, ...]:
        return self.inputs[1 : 1 + self.n_keys]

    @property
    def values(self) -> tuple[Op, ...]:
        return self.inputs[1 + self.n_keys :]

    def check(self) -> None:
        self._expect_rows()
        _values(self, len(self.inputs) - 1, self.columns)
        self._expect(0 <= self.n_keys <= len(self.columns), f"has n_keys {self.n_keys}")


@dataclass(frozen=True, eq=False, repr=False)
class Sort(Relation):
    """The rows in the order of some of their values. Inputs: the rows, values. `columns`: one name
    for each value. `by`: column names, the most important first, with "-" before a name for
    descending. Rows that are equal in all of them keep their order; nulls come last. Numbers come
    before texts, texts before anything else (by its JSON text)."""

    columns: tuple[str, ...] = ()
    by: tuple[str, ...] = ()

    def check(self) -> None:
        self._expect_rows()
        _values(self, len(self.inputs) - 1, self.columns)
        for name in self.by:
            self._expect(
                name.removeprefix("-") in self.columns,
                f"sorts by {name!r}, which is none of its columns",
            )


# --- walking -------------------------------------------------------------------------------------


def row_values(op: Relation) -> Iterator[tuple[Op, Relation | None]]:
    """The values that a relation reads, each with the relation whose rows it is read for; None for
    the constants of a query."""
    match op:
        case Pairs():
            left, right = op.inputs[:2]
            for side, values in ((left, op.left_values), (right, op.right_values)):
                yield from ((value, side) for value in values if isinstance(side, Relation))
        case SqlRows():
            yield from ((value, None) for value in op.param_inputs)
        case _ if op.inputs:
            rows = op.inputs[0]
            yield from ((value, rows) for value in op.inputs[1:] if isinstance(rows, Relation))
        case _:
            pass


def _values(op: Relation, inputs: int, columns: tuple[str, ...]) -> None:
    if inputs != len(columns):
        raise PlanError(f"{op.kind} has {len(columns)} columns and {inputs} values for them")
    _once(op, "column", columns)


def _once(op: Relation, what: str, names: tuple[str, ...]) -> None:
    if len(set(names)) != len(names):
        raise PlanError(f"{op.kind} has a {what} twice: {', '.join(names)}")
