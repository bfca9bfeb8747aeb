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
    - its rows come in an order that is up to the database: joins, groups, sets without ORDER BY;
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
    """An expression for the place of a row in the answer; None where that is up to the database.

    The rows of one table come in the order of the table, ordered rows in their order, and one row
    has one place."""
    from sqlglot import exp, parse_one

    order = tree.args.get("order")
    if order is not None:
        window = exp.Window(this=exp.RowNumber(), order=order.copy())
        return window if not any(order.find_all(exp.Placeholder, exp.Parameter)) else None
    aggregates = any(each.find(exp.AggFunc) for each in tree.expressions)
    windows = any(each.find(exp.Window) for each in tree.expressions)
    if aggregates and not windows and not tree.args.get("group"):
        return parse_one("1", read="duckdb")
    source = tree.args.get("from_") or tree.args.get("from")
    parts = ("joins", "group", "laterals", "with_", "with", "qualify", "windows", "pivots")
    if source is None or aggregates or any(tree.args.get(part) for part in parts):
        return None
    if not isinstance(source.this, exp.Table) or any(tree.find_all(exp.Subquery, exp.Exists)):
        return None
    if any(node.args.get("query") for node in tree.find_all(exp.In)):
        return None
    return exp.column("rowid", table=source.this.alias_or_name)
