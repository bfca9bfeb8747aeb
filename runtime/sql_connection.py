"""Connections to DuckDB files that reach nothing else, and what a file or a text is like."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import ToolError
from runtime.sql_bounds import MAX_CHARS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True, slots=True)
class Limits:
    """What DuckDB may use for one database file.

    Attributes:
        memory_bytes: working memory.
        spill_bytes: disk for what does not fit in it, beside the file and removed afterwards.
            DuckDB's own limit is nine tenths of the free disk.
        threads: of one query. One thread sums in one order, so equal queries give equal digits.
    """

    memory_bytes: int = 512 * 2**20
    spill_bytes: int = 2**30
    threads: int = 1


_VOLATILE = frozenset(
    {
        *("random", "setseed", "uuid", "gen_random_uuid", "uuidv4", "uuidv7"),
        *("now", "today", "age", "get_current_time", "get_current_timestamp"),
        *("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"),
        *("current_localtime", "current_localtimestamp", "transaction_timestamp"),
        *("nextval", "currval", "setval", "write_log"),
        *("txid_current", "current_transaction_id", "current_query_id", "current_connection_id"),
        *("sample", "tablesample"),
    }
)


@contextlib.contextmanager
def transaction(cursor: DuckDBPyConnection, read_only: bool) -> Generator[None, None, None]:
    """A transaction around the block; one that is read-only refuses to change the database."""
    cursor.execute("BEGIN TRANSACTION READ ONLY" if read_only else "BEGIN TRANSACTION")
    try:
        yield
        cursor.execute("COMMIT")
    except BaseException:
        import duckdb

        with contextlib.suppress(duckdb.Error):
            cursor.execute("ROLLBACK")
        raise


def connect(path: Path, writable: bool, limits: Limits) -> DuckDBPyConnection:
    """A connection that reaches this file alone. Raises `ToolError`."""
    import duckdb

    if not path.is_file():
        raise ToolError(f"there is no database file {path}", tool=path.name)
    config: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
        "lock_configuration": True,
        "memory_limit": f"{limits.memory_bytes}B",
        "max_temp_directory_size": f"{limits.spill_bytes}B",
        "threads": limits.threads,
    }
    try:
        return duckdb.connect(path, read_only=not writable, config=config)
    except duckdb.Error as error:
        raise ToolError(
            f"{path} cannot be opened as a DuckDB file: {error}", tool=path.name
        ) from error


def describe(path: Path) -> str:
    """Tables and columns, one line a table: `table(column TYPE, ...)`, sorted by table."""
    connection = connect(path, False, Limits())
    try:
        found = connection.execute(
            "SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns() "
            "WHERE NOT internal AND database_name = current_database() "
            "ORDER BY schema_name, table_name, column_index"
        ).fetchall()
        keywords = connection.execute(
            "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'"
        ).fetchall()
    finally:
        connection.close()
    reserved = {str(word) for (word,) in keywords}

    def quoted(name: str) -> str:
        # As a query must write it.
        if name.isidentifier() and name == name.lower() and name not in reserved:
            return name
        return '"' + name.replace('"', '""') + '"'

    tables: dict[str, list[str]] = {}
    for schema, table, column, type_ in found:
        name = quoted(table) if schema == "main" else f"{quoted(schema)}.{quoted(table)}"
        tables.setdefault(name, []).append(f"{quoted(column)} {type_}")
    return "\n".join(f"{name}({', '.join(tables[name])})" for name in sorted(tables))


@lru_cache(maxsize=1024)  # one text is asked for every row
def is_volatile(text: str) -> bool:
    """Whether a query may answer differently each time. Errs on the side of True: a column of such
    a name is enough, and so is a text that has no tokens. Views and macros of the database are not
    looked into: one that calls `random()` counts as a table of the moment."""
    import sqlglot
    from sqlglot.errors import SqlglotError

    if len(text) > MAX_CHARS:  # not worth the time: such a text is an author's, or refused
        return True
    try:
        tokens = sqlglot.tokenize(text, read="duckdb")
    except SqlglotError:
        return True
    words = (token.text.lower() for token in tokens if token.token_type.name != "STRING")
    # duckdb_memory(), duckdb_logs() and the like tell the state of the moment.
    return any(word in _VOLATILE or word.startswith("duckdb_") for word in words)
