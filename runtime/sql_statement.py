"""One statement on a cursor: what kind it may be, its parameters, its transaction, its rows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from planner.logical import Json
from runtime.errors import ToolError
from runtime.sql_connection import transaction
from runtime.sql_values import check_params, size_bytes, to_cell
from runtime.tools import OnRows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# As DuckDB's parser says: VALUES, FROM, DESCRIBE, SHOW and SUMMARIZE are SELECT statements too.
_READS = frozenset({"SELECT"})
_WRITES = _READS | {"INSERT", "UPDATE", "DELETE", "MERGE_INTO", "CREATE", "ALTER", "DROP"}
_FETCH_ROWS = 64


def run_statement(
    cursor: DuckDBPyConnection,
    database: str,
    text: str,
    params: Mapping[str, Json],
    *,
    max_rows: int,
    max_bytes: int,
    read_only: bool,
    writable: bool = True,
    on_rows: OnRows | None = None,
) -> list[Json]:
    """The first `max_rows` rows of the one statement in `text`, in a transaction of its own.

    `database` is its name for people; `on_rows` is told of rows as they are read. A connection that
    is not `writable` needs no read-only transaction. Raises `ToolError` for what is not allowed and
    above `max_bytes` (of the rows as JSON); DuckDB's errors and `ValueError` (a value that JSON
    cannot hold) pass through.
    """
    kinds, named = _parsed(text)
    if len(kinds) != 1:
        raise ToolError(
            f"the query on {database} has {len(kinds)} statements; write exactly one",
            tool=database,
        )
    allowed = _READS if read_only else _WRITES
    if kinds[0] not in allowed:
        raise ToolError(
            f"the query on {database} is a {kinds[0]} statement; allowed is: "
            f"{', '.join(sorted(allowed))}",
            tool=database,
        )
    check_params(params, named, database)
    with transaction(cursor, read_only) if writable else contextlib.nullcontext():
        cursor.execute(text, dict(params) or None)
        return _fetch(cursor, database, max_rows, max_bytes, on_rows)


@lru_cache(maxsize=256)
def _parsed(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """The kinds of the statements in a text, and the names of the first one's parameters.
    Remembered, since a query's text is the same for every row."""
    import duckdb

    statements = duckdb.extract_statements(text)
    named = frozenset(statements[0].named_parameters) if statements else frozenset[str]()
    return tuple(statement.type.name for statement in statements), named


def _fetch(
    cursor: DuckDBPyConnection,
    database: str,
    max_rows: int,
    max_bytes: int,
    on_rows: OnRows | None,
) -> list[Json]:
    columns = [str(column[0]) for column in cursor.description or ()]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ToolError(
            f"the query on {database} returns more than one column {twice[0]!r}; name them with AS",
            tool=database,
        )
    rows: list[Json] = []
    total_bytes = 0
    while len(rows) < max_rows:
        batch: list[Any] = cursor.fetchmany(min(_FETCH_ROWS, max_rows - len(rows)))
        for values in batch:
            row = {c: to_cell(v, c) for c, v in zip(columns, values, strict=True)}
            total_bytes += size_bytes(row, max_bytes)
            if total_bytes > max_bytes:
                raise ToolError(
                    f"the query on {database} returns more than {max_bytes:,} bytes; "
                    "select fewer columns or rows",
                    tool=database,
                )
            rows.append(row)
        if not batch:
            break
        if on_rows is not None:
            on_rows(rows[-len(batch) :])
    return rows
