"""Many look-ups of one shape as one query.

    SELECT name FROM people WHERE id = $id

for several ids is

    SELECT halo_batch."halo index", halo_query.*
    FROM (SELECT unnest($halo_indices) AS "halo index", unnest($id) AS "halo $id") AS halo_batch,
         LATERAL (SELECT name, rowid AS "halo order" FROM people
                  WHERE id = halo_batch."halo $id") AS halo_query
    ORDER BY halo_batch."halo index", halo_query."halo order"

which DuckDB runs as one join. No name of a look-up can mean a column of `halo_batch`, also one that
its table does not have. ORDER BY and LIMIT become the number of the row among those of its
look-up, `row_number() OVER (ORDER BY ...)`, and a condition on it. Each row carries the index of
the look-up that it belongs to, and its place in that look-up's answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from planner.sql_effects import query_effects

INDEX = "halo index"
"""The column of a batch's answer that says which look-up a row belongs to."""
INDICES = "halo_indices"
"""The parameter of the batch's query that holds the indices."""


ORDER = "halo order"
"""The column of a batch's answer that says where in its look-up's answer a row stands."""

_LEFT_ALONE = frozenset(
    {
        # Make several rows of one, which have no place of their own.
        *("unnest", "generate_subscripts", "regexp_split_to_table"),
        # sqlglot writes them with another last digit, or without their last argument.
        *("log2", "jaro_winkler_similarity"),
    }
)
_WORD = re.compile(r"\w+")


@lru_cache(maxsize=1024)
def batched_text(text: str, params: tuple[str, ...]) -> str | None:
    """The query that answers many look-ups at once; each parameter is a list then. None when the
    look-ups cannot be batched so that each gets what it would get alone, in the same order:

    - the query is not understood, writes, or is volatile;
    - a parameter is missing in it, or one in it is not named;
    - joined with the parameters it might give other rows, another order or other last digits;
    - two of its columns have one name, or one has no name of its own: DuckDB then makes it from the
      text, which a batch has in other words.
    """
    from sqlglot import exp, parse_one

    effects = query_effects(text)
    if not effects.understood or not effects.reads_only or effects.volatile or not params:
        return None
    tree: Any = parse_one(text, read="duckdb")
    if not isinstance(tree, exp.Select) or tree.args.get("distinct"):
        return None
    names: list[str] = [name.lower() for name in tree.named_selects]
    if len(set(names)) < len(names) or {INDEX, ORDER} & set(names):
        return None
    if not all(map(_keeps_its_name, tree.expressions)):
        return None
    if not _LEFT_ALONE.isdisjoint(_WORD.findall(text.lower())):
        return None
    place = _place(tree)
    if place is None:
        return None
    for part in ("order", "limit", "offset"):
        tree.set(part, None)
    if place.cuts:
        within: list[Any] = [
            exp.GTE(this=place.order.copy(), expression=exp.Literal.number(place.first))
        ]
        if place.last is not None:
            last = exp.Literal.number(place.last)
            within.append(exp.LTE(this=place.order.copy(), expression=last))
        tree.set("qualify", exp.Qualify(this=exp.and_(*within)))
    tree.select(exp.alias_(place.order, exp.to_identifier(ORDER, quoted=True)), copy=False)
    found: set[str] = set()
    for node in list(tree.find_all(exp.Placeholder, exp.Parameter)):
        name = str(getattr(node.this, "name", node.this) or "")
        if name not in params:
            return None
        found.add(name)
        column = exp.to_identifier(_column(name), quoted=True)
        node.replace(exp.column(column, table="halo_batch"))
    if found != set(params):
        return None
    lists = [f'unnest(${INDICES}) AS "{INDEX}"']
    lists += [f'unnest(${name}) AS "{_column(name)}"' for name in params]
    inner = tree.sql(dialect="duckdb", comments=False)
    return (
        f'SELECT halo_batch."{INDEX}", halo_query.* '
        f"FROM (SELECT {', '.join(lists)}) AS halo_batch, "
        f"LATERAL ({inner}) AS halo_query "
        f'ORDER BY halo_batch."{INDEX}", halo_query."{ORDER}"'
    )


def _column(param: str) -> str:
    """The column of `halo_batch` that holds the values of a parameter."""
    return f"halo ${param}"


def _keeps_its_name(selected: Any) -> bool:
    """Whether a selected value is called the same in a batch as alone."""
    from sqlglot import exp

    if isinstance(selected, exp.Alias):
        return not selected.this.is_star
    if isinstance(selected, exp.Count | exp.Min | exp.Max):
        selected = selected.this
    return isinstance(selected, exp.Column | exp.Star | exp.Columns)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row stands in the answer: `order` numbers the rows, those from `first` to `last` are
    the answer's; None for all."""

    order: Any
    first: int = 1
    last: int | None = None

    @property
    def cuts(self) -> bool:
        return self.first > 1 or self.last is not None


def _place(tree: Any) -> _Place | None:
    """The place of a row in the answer; None where a join might answer otherwise.

    - Rows of one table without ORDER BY come in the order of the table, which DuckDB promises for
      WHERE, LIMIT and OFFSET too.
    - With ORDER BY, rows that are equal in it have no order that a batch could keep: it decides the
      answer only if such rows read the same. So everything that is selected must be ordered by, or
      be the same in all rows; of groups, all keys must be.
    - One row of counts and extremes has one place.

    Sums and means are left alone: their last digits depend on the order in which floating-point
    numbers are added. So are comparisons by a collation, by which different texts are equal.
    """
    from sqlglot import exp, parse_one

    parts = ("joins", "laterals", "with_", "with", "qualify", "windows", "pivots", "having")
    source = tree.args.get("from_") or tree.args.get("from")
    if source is None or any(tree.args.get(part) for part in parts):
        return None
    if not isinstance(source.this, exp.Table) or any(tree.find_all(exp.Subquery, exp.Exists)):
        return None
    if any(node.args.get("query") for node in tree.find_all(exp.In)):
        return None
    # A lambda in the old notation fails alone; sqlglot writes it in the new one.
    if any(tree.find_all(exp.Window, exp.Collate, exp.Lambda)):
        return None
    aggregates = list(tree.find_all(exp.AggFunc))
    if not all(isinstance(each, exp.Count | exp.Min | exp.Max) for each in aggregates):
        return None
    group, order = tree.args.get("group"), tree.args.get("order")
    bounds = _bounds(tree)
    if bounds is None:
        return None
    if order is not None:
        return _ordered_place(tree, order, group, bool(aggregates), bounds)
    if group is not None:
        return None
    if aggregates:
        return None if bounds != (1, None) else _Place(parse_one("1", read="duckdb"))
    row = exp.column("rowid", table=source.this.alias_or_name)
    place = _Place(row, *bounds)
    return replace(place, order=_numbered([exp.Ordered(this=row)])) if place.cuts else place


def _bounds(tree: Any) -> tuple[int, int | None] | None:
    """The first and the last place that LIMIT and OFFSET leave; None where they are no numbers."""
    from sqlglot import exp

    numbers: list[int | None] = []
    for name, kind in (("limit", exp.Limit), ("offset", exp.Offset)):
        node = tree.args.get(name)
        if node is None:
            numbers.append(None)
            continue
        # LIMIT 10 PERCENT and the like have further arguments.
        plain = isinstance(node, kind) and [k for k, v in node.args.items() if v] == ["expression"]
        value = node.expression if plain else None
        if not isinstance(value, exp.Literal) or not str(value.this).isdigit():
            return None
        numbers.append(int(value.this))
    limit, offset = numbers
    first = (offset or 0) + 1
    return first, None if limit is None else first + limit - 1


def _ordered_place(
    tree: Any, order: Any, group: Any, aggregated: bool, bounds: tuple[int, int | None]
) -> _Place | None:
    from sqlglot import exp

    keys: list[Any] = []
    for node in order.expressions:
        key = _meant(node.this, tree)
        if key is None or (isinstance(node, exp.Ordered) and node.args.get("with_fill")):
            return None
        copied = node.copy()
        copied.set("this", key.copy())
        keys.append(copied)
    known = {_bare(each.this) for each in keys}
    if group is not None:
        grouped = [_meant(each, tree) for each in group.expressions]
        others = [name for name, value in group.args.items() if value and name != "expressions"]
        if others or not grouped or any(g is None or _bare(g) not in known for g in grouped):
            return None
    elif aggregated:
        return None
    else:
        for selected in tree.expressions:
            value = selected.unalias()
            same = not value.is_star and not any(value.find_all(exp.Column))
            if not same and _bare(value) not in known:
                return None
    return _Place(_numbered(keys), *bounds)


def _meant(key: Any, tree: Any) -> Any:
    """What a key of ORDER BY or GROUP BY stands for: a number and the name of a selected value are
    that value. None where that cannot be told."""
    from sqlglot import exp

    if isinstance(key, exp.Literal):
        at = int(key.this) - 1 if str(key.this).isdigit() else -1
        known = 0 <= at < len(tree.expressions)
        key = tree.expressions[at].unalias() if known and not tree.is_star else None
    elif isinstance(key, exp.Column) and not key.table:
        if key.name.lower() == "all" and not key.this.quoted:
            return None
        for selected in tree.expressions:
            if isinstance(selected, exp.Alias) and selected.alias.lower() == key.name.lower():
                key = selected.this
                break
    # A constant in a window orders nothing, whatever it is in ORDER BY.
    if key is None or key.is_star or not any(key.find_all(exp.Column, exp.AggFunc)):
        return None
    return key


def _bare(value: Any) -> str:
    """A text that is equal for equal values of one table: names without their table, in one
    case."""
    from sqlglot import exp

    copied = value.copy()
    for column in [copied] if isinstance(copied, exp.Column) else copied.find_all(exp.Column):
        column.set("table", None)
        column.this.set("quoted", False)
        column.this.set("this", column.name.lower())
    return str(copied.sql(dialect="duckdb", comments=False))


def _numbered(keys: list[Any]) -> Any:
    from sqlglot import exp

    return exp.Window(this=exp.RowNumber(), order=exp.Order(expressions=keys))
