"""What a query does, read from its syntax tree: whether it only reads, and always reads the same.

A query is parsed by sqlglot. Which functions are volatile is asked of DuckDB's own catalogue, not
of a list kept here. What cannot be understood is taken for the worse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MAX_CHARS = 200_000
"""Longer texts are not parsed: nothing is known of them."""

PURE_TABLE_FUNCTIONS = frozenset(("range", "generate_series", "unnest", "repeat", "repeat_row"))
"""Table functions that read nothing but their arguments. Others read files, settings or the state
of the database, which changes without the database file."""


@dataclass(frozen=True, slots=True)
class QueryEffects:
    """What is known of a query.

    Attributes:
        understood: whether it was parsed, as one statement.
        reads_only: whether it is a query that changes nothing. DuckDB must enforce it all the same.
        volatile: whether it may answer differently each time, over the same tables.
        key: equal for texts that are the same query in other words: spacing, case, comments. Empty
            when not understood.
    """

    understood: bool
    reads_only: bool
    volatile: bool
    key: str


_WORD = re.compile(r"\w+")
_UNKNOWN = QueryEffects(False, False, True, "")


@lru_cache(maxsize=4096)
def query_effects(text: str) -> QueryEffects:
    """The effects of a query in DuckDB's dialect.

    Example:
        >>> query_effects("select A from t -- all").key == query_effects("SELECT A FROM t").key
        True
        >>> query_effects("SELECT random()").volatile, query_effects("SELECT 'random()'").volatile
        (True, False)
    """
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    if len(text) > MAX_CHARS:
        return _UNKNOWN
    try:
        statements = sqlglot.parse(text, read="duckdb")
    except (SqlglotError, RecursionError):
        return _UNKNOWN
    if len(statements) != 1 or statements[0] is None:
        return _UNKNOWN
    tree: Any = statements[0]
    reads_only = isinstance(tree, exp.Query) and not any(
        tree.find_all(exp.Insert, exp.Update, exp.Delete, exp.Create, exp.Drop, exp.Command)
    )
    try:
        key: str = tree.sql(dialect="duckdb", comments=False, normalize=False)
    except (SqlglotError, RecursionError):
        return _UNKNOWN
    return QueryEffects(True, reads_only, not reads_only or _is_volatile(tree, key), key)


def _is_volatile(tree: Any, text: str) -> bool:
    """Whether a tree, of which `text` is what DuckDB is told, may answer differently each time."""
    from sqlglot import exp

    if any(tree.find_all(exp.TableSample, exp.SessionParameter)):
        return True
    known, volatile = _functions()
    # What a function is called takes long to find out, and most texts have no such name at all.
    is_suspect = not volatile.isdisjoint(_WORD.findall(text.lower()))
    for node in tree.find_all(exp.Func if is_suspect else exp.Anonymous):
        name = _name(node)
        if name in volatile or (name not in known and isinstance(node, exp.Anonymous)):
            return True
    for table in tree.find_all(exp.Table):
        source = table.this
        if isinstance(source, exp.Func):
            if _name(source) not in PURE_TABLE_FUNCTIONS:
                return True
        elif not isinstance(source, exp.Identifier) or _is_file(source.name):
            return True
    return False


def _name(node: Any) -> str:
    """What DuckDB calls a function; "" for what is syntax to it, such as CASE."""
    from sqlglot import exp

    if isinstance(node, exp.Anonymous):
        return str(node.this).lower()
    name = str(node.sql(dialect="duckdb").partition("(")[0]).lower()
    return name if name.isidentifier() else ""


def _is_file(name: str) -> bool:
    """Whether the name of a table is that of a file, which DuckDB reads: 'reviews.csv'."""
    return "." in name or "/" in name


@lru_cache(maxsize=1)
def _functions() -> tuple[frozenset[str], frozenset[str]]:
    """The functions that DuckDB knows, and those that may give something else for the same
    arguments: of which the catalogue has no consistent version. (Some have another version that
    depends on the time zone, which is a setting.)"""
    import duckdb

    connection = duckdb.connect(":memory:")
    try:
        rows = connection.execute(
            "SELECT lower(function_name), function_type = 'scalar' AND NOT "
            "bool_or(coalesce(stability, 'CONSISTENT') = 'CONSISTENT') "
            "FROM duckdb_functions() GROUP BY lower(function_name), function_type"
        ).fetchall()
    finally:
        connection.close()
    known = frozenset(str(name) for name, _ in rows)
    volatile = frozenset(str(name) for name, is_volatile in rows if is_volatile)
    return known, volatile - PURE_TABLE_FUNCTIONS
