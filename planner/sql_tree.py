"""A query as DuckDB's own parser sees it, and its expressions as text.

Unlike sqlglot's, this tree is what DuckDB runs, and DuckDB prints it: nothing is lost in
translation. Nodes are JSON objects; those of expressions have a `class`. Their form differs between
versions of DuckDB, so readers take what they do not know for something that they must leave alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Node: TypeAlias = "dict[str, Any]"

_PLACES = frozenset(("query_location", "query_location_length", "named_param_map"))
"""What follows from the text and not from the query."""


def parse_query(text: str) -> Node | None:
    """The tree of the one SELECT statement in `text`; None for everything else."""
    answer = _asked("SELECT json_serialize_sql(?)", text)
    try:
        tree: Node = json.loads(answer) if answer is not None else {"error": True}
    except RecursionError:
        return None
    return None if tree["error"] or len(tree["statements"]) != 1 else tree


def expression_text(expression: Node) -> str | None:
    """An expression as DuckDB prints it; None when that is not read as the same expression."""
    tree = parse_query("SELECT 1")
    if tree is None:
        return None
    tree["statements"][0]["node"]["select_list"] = [{**expression, "alias": ""}]
    text = _asked("SELECT json_deserialize_sql(?)", json.dumps(tree))
    again = parse_query(text) if text is not None else None
    if text is None or again is None or _unplaced(again) != _unplaced(tree):
        return None
    return text.removeprefix("SELECT ")


def expressions_in(node: Any) -> Iterator[Node]:
    """The expressions directly below a node of any kind, through lists and other objects."""
    inside: Any = node
    for value in inside.values() if isinstance(node, dict) else inside:
        if isinstance(value, dict) and "class" in value:
            yield value
        elif isinstance(value, dict | list):
            yield from expressions_in(value)


def _unplaced(node: Any) -> Any:
    """A tree without what only its text has: equal for the same query in other spacing."""
    inside: Any = node
    if isinstance(node, dict):
        return {key: _unplaced(value) for key, value in inside.items() if key not in _PLACES}
    if isinstance(node, list):
        return [_unplaced(each) for each in inside]
    return node


def _asked(query: str, argument: str) -> str | None:
    """The answer of DuckDB; None also where it was built without its JSON functions."""
    import duckdb

    try:
        row = _parser().cursor().execute(query, [argument]).fetchone()
    except (duckdb.Error, TypeError, ValueError):
        return None
    return str(row[0]) if row is not None else None


@lru_cache(maxsize=1)
def _parser() -> DuckDBPyConnection:
    import duckdb

    return duckdb.connect(":memory:", config={"threads": 1})
