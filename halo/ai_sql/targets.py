"""The tables that statements write: what is wrong with one is told before any call is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlglot import exp

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def is_there(create: Any, cursor: DuckDBPyConnection) -> bool:
    """Whether the table that a CREATE TABLE names exists, as a table or view that stays."""
    table = create.find(exp.Table)
    if create.find(exp.TemporaryProperty) or table.catalog:
        return False
    found = cursor.execute(
        "SELECT count(*) FROM (SELECT database_name, schema_name, table_name FROM duckdb_tables() "
        "UNION ALL SELECT database_name, schema_name, view_name FROM duckdb_views()) "
        "WHERE database_name = current_database() AND schema_name = ? AND lower(table_name) = ?",
        [table.db or "main", table.name.lower()],
    ).fetchone()
    return found is not None and found[0] > 0


def nothing_of(create: Any) -> Any:
    """A query for no row of the table that a CREATE TABLE names."""
    return exp.select("*").from_(create.find(exp.Table).copy()).limit(0)


def why_not_insert(insert: str, cursor: DuckDBPyConnection) -> str:
    """Why DuckDB would not run an INSERT: there is no such table, or its columns do not fit; empty
    when it would."""
    import duckdb

    try:
        cursor.execute(f"EXPLAIN {insert}").fetchall()
    except duckdb.Error as error:
        return str(error)
    return ""
