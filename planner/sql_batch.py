"""Many look-ups of one shape as one query.

    SELECT name FROM people WHERE id = $id

for several ids is

    SELECT halo_batch."halo index", halo_query.*
    FROM (SELECT unnest($halo_indices) AS "halo index", unnest($id) AS "id") AS halo_batch,
         LATERAL (SELECT name, rowid AS "halo order" FROM people
                  WHERE id = halo_batch."id") AS halo_query
    ORDER BY halo_batch."halo index", halo_query."halo order"

which DuckDB runs as one join. Each row carries the index of the look-up that it belongs to, and its
place in that look-up's answer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from planner.sql_effects import query_effects

INDEX = "halo index"
"""The column of a batch's answer that says which look-up a row belongs to."""
INDICES = "halo_indices"
"""The parameter of the batch's query that holds the indices."""


ORDER = "halo order"
"""The column of a batch's answer that says where in its look-up's answer a row stands."""


@lru_cache(maxsize=1024)
def batched_text(text: str, params: tuple[str, ...]) -> str | None:
    """The query that answers many look-ups at once; each parameter is a list then. None when the
    look-ups cannot be batched so that each gets what it would get alone, in the same order:

    - the query is not understood, writes, or is volatile;
    - a parameter is missing in it, or one in it is not named;
    - joined with the parameters it might give other rows, another order or other last digits;
    - two of its columns have one name.
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
    place = _place(tree)
    if place is None:
        return None
    found: set[str] = set()
    for node in list(tree.find_all(exp.Placeholder, exp.Parameter)):
        name = str(getattr(node.this, "name", node.this) or "")
        if name not in params:
            return None
        found.add(name)
        node.replace(exp.column(exp.to_identifier(name, quoted=True), table="halo_batch"))
    if found != set(params):
        return None
    tree.select(exp.alias_(place, exp.to_identifier(ORDER, quoted=True)), copy=False)
    lists = [f'unnest(${INDICES}) AS "{INDEX}"']
    lists += [f'unnest(${name}) AS "{name}"' for name in params]
    inner = tree.sql(dialect="duckdb", comments=False)
    return (
        f'SELECT halo_batch."{INDEX}", halo_query.* '
        f"FROM (SELECT {', '.join(lists)}) AS halo_batch, "
        f"LATERAL ({inner}) AS halo_query "
        f'ORDER BY halo_batch."{INDEX}", halo_query."{ORDER}"'
    )


def _place(tree: Any) -> Any:
    """An expression for the place of a row in the answer; None where a join might answer otherwise.

    The rows of one table come in the order of the table, and one row of counts and extremes has one
    place. ORDER BY is left alone: rows that are equal in it have no order that a batch could keep,
    and a position (`ORDER BY 2`) means something else in a window. So are sums and means: their
    last digits depend on the order in which floating-point numbers are added."""
    from sqlglot import exp, parse_one

    parts = (
        *("joins", "group", "laterals", "with_", "with", "qualify", "windows", "pivots"),
        *("order", "limit", "offset", "having"),
    )
    source = tree.args.get("from_") or tree.args.get("from")
    if source is None or any(tree.args.get(part) for part in parts):
        return None
    if not isinstance(source.this, exp.Table) or any(tree.find_all(exp.Subquery, exp.Exists)):
        return None
    if any(node.args.get("query") for node in tree.find_all(exp.In)):
        return None
    if any(tree.find_all(exp.Window)):
        return None
    aggregates = list(tree.find_all(exp.AggFunc))
    if not aggregates:
        return exp.column("rowid", table=source.this.alias_or_name)
    exact = all(isinstance(each, exp.Count | exp.Min | exp.Max) for each in aggregates)
    return parse_one("1", read="duckdb") if exact else None
