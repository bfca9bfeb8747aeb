"""Many look-ups of one shape as one query.

    SELECT name FROM people WHERE id = $id

for several ids is

    SELECT halo_batch."halo index", halo_query.*
    FROM (SELECT unnest($indices) AS "halo index", unnest($id) AS "id") AS halo_batch,
         LATERAL (SELECT name FROM people WHERE id = halo_batch."id") AS halo_query

which DuckDB runs as one join. Each answer carries the index of the look-up that it belongs to.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from planner.sql_effects import query_effects

INDEX = "halo index"
"""The column of a batch's answer that says which look-up a row belongs to."""
INDICES = "halo_indices"
"""The parameter of the batch's query that holds the indices."""


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
    if not isinstance(tree, exp.Select) or not _keeps_order(tree):
        return None
    names: list[str] = [name.lower() for name in tree.named_selects]
    if len(set(names)) < len(names) or INDEX in names:
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
    lists = [f'unnest(${INDICES}) AS "{INDEX}"']
    lists += [f'unnest(${name}) AS "{name}"' for name in params]
    inner = tree.sql(dialect="duckdb", comments=False)
    return (
        f'SELECT halo_batch."{INDEX}", halo_query.* '
        f"FROM (SELECT {', '.join(lists)}) AS halo_batch, "
        f'LATERAL ({inner}) AS halo_query ORDER BY halo_batch."{INDEX}"'
    )


def _keeps_order(tree: Any) -> bool:
    """Whether the rows come in one order: that of the only table, of ORDER BY, or one row."""
    from sqlglot import exp

    if tree.args.get("order"):
        return True
    is_one_table = isinstance(tree.args.get("from_") or tree.args.get("from"), exp.From)
    parts = ("joins", "group", "distinct", "laterals", "with_", "with", "qualify", "windows")
    plain = is_one_table and not any(tree.args.get(part) for part in parts)
    source = (tree.args.get("from_") or tree.args.get("from")) if plain else None
    if source is None or not isinstance(source.this, exp.Table):
        return False
    inner = list(tree.find_all(exp.Subquery, exp.Exists, exp.In))
    return not any(
        isinstance(node, exp.Subquery | exp.Exists) or node.args.get("query") for node in inner
    )
