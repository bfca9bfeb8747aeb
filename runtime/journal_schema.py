"""The journal's tables. docs/run-directory.md is the same for people; `runtime.journal_rows` turns
records into rows of them. A change of meaning needs a new `SCHEMA_VERSION`."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from runtime.atomic_file import sync_directory
from runtime.errors import RunDirectoryError

SCHEMA_VERSION = 1

_CALL_COLUMNS = """
    process INTEGER NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    op TEXT NOT NULL,
    query TEXT NOT NULL,
    row_key TEXT NOT NULL,
    path TEXT NOT NULL,
    turn INTEGER NOT NULL,
    effect TEXT NOT NULL,
    value TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cached_tokens INTEGER,
    predicted_cached_tokens INTEGER,
    finish_reason TEXT NOT NULL,
    queued_s REAL NOT NULL,
    start_s REAL NOT NULL,
    first_token_s REAL,
    end_s REAL NOT NULL,
    attempts INTEGER NOT NULL,
    error TEXT
"""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS processes (
        process INTEGER PRIMARY KEY,
        pid INTEGER NOT NULL,
        host TEXT NOT NULL,
        started_at TEXT NOT NULL,
        ended_at TEXT,
        exit_reason TEXT,
        cpu_s REAL
    )""",
    f"CREATE TABLE IF NOT EXISTS calls (key TEXT NOT NULL UNIQUE, {_CALL_COLUMNS})",
    f"CREATE TABLE IF NOT EXISTS failed_calls (key TEXT NOT NULL, {_CALL_COLUMNS})",
    """CREATE TABLE IF NOT EXISTS outcomes (
        query TEXT NOT NULL,
        row_key TEXT NOT NULL,
        row_index INTEGER NOT NULL,
        process INTEGER NOT NULL,
        value TEXT NOT NULL,
        error_type TEXT,
        error_message TEXT,
        error_op TEXT,
        dropped INTEGER NOT NULL,
        UNIQUE (query, row_key)
    )""",
    # Results are written in this order, and `status` counts from the index alone.
    """CREATE INDEX IF NOT EXISTS outcomes_in_order
        ON outcomes (query, row_index, row_key, error_type)""",
    """CREATE TABLE IF NOT EXISTS metrics (
        process INTEGER NOT NULL,
        op TEXT NOT NULL,
        requested INTEGER NOT NULL,
        made INTEGER NOT NULL,
        shared INTEGER NOT NULL,
        replayed INTEGER NOT NULL,
        retries INTEGER NOT NULL,
        errors INTEGER NOT NULL,
        kept INTEGER NOT NULL,
        busy_s REAL NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cached_tokens INTEGER,
        predicted_cached_tokens INTEGER,
        PRIMARY KEY (process, op)
    )""",
)

CALL_FIELDS = (
    "key, process, kind, name, op, query, row_key, path, turn, effect, value, input_tokens, "
    "output_tokens, cached_tokens, predicted_cached_tokens, finish_reason, queued_s, start_s, "
    "first_token_s, end_s, attempts, error"
)
OUTCOME_FIELDS = (
    "query, row_key, row_index, process, value, error_type, error_message, error_op, dropped"
)
METRIC_FIELDS = (
    "process, op, requested, made, shared, replayed, retries, errors, kept, busy_s, "
    "input_tokens, output_tokens, cached_tokens, predicted_cached_tokens"
)


def _values(fields: str) -> str:
    return f"({fields}) VALUES ({', '.join('?' * len(fields.split(',')))})"


# Not INSERT OR IGNORE, which would drop a row that breaks any other constraint too.
INSERT_CALL = f"INSERT INTO calls {_values(CALL_FIELDS)} ON CONFLICT (key) DO NOTHING"
INSERT_FAILED_CALL = f"INSERT INTO failed_calls {_values(CALL_FIELDS)}"
INSERT_OUTCOME = (
    f"INSERT INTO outcomes {_values(OUTCOME_FIELDS)} ON CONFLICT (query, row_key) DO NOTHING"
)
REPLACE_METRICS = f"INSERT OR REPLACE INTO metrics {_values(METRIC_FIELDS)}"


def open_journal(path: Path) -> sqlite3.Connection:
    """Open or create the journal for writing. The connection is in autocommit mode and may be used
    from one thread at a time. Raises `RunDirectoryError`."""
    try:
        connection = sqlite3.connect(
            path, timeout=30.0, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise RunDirectoryError(f"cannot open the journal {path}: {error}") from error
    try:
        check_version(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # Keys are hashes, so commits touch pages all over the index: keep them in memory (32 MiB),
        # and move them from the log less often.
        connection.execute("PRAGMA cache_size = -32768")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            connection.execute(table)
        connection.execute(
            "INSERT OR IGNORE INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),)
        )
        connection.execute("COMMIT")
        sync_directory(path.parent)
    except (sqlite3.Error, OSError) as error:
        connection.close()
        raise RunDirectoryError(f"cannot open the journal {path}: {error}") from error
    except RunDirectoryError:
        connection.close()
        raise
    return connection


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `RunDirectoryError` when a newer Halo wrote the journal."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
        return
    found = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    if found and int(found[0]) > SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{path} was written by a newer Halo (journal schema {found[0]}, this Halo reads up to "
            f"{SCHEMA_VERSION}); upgrade Halo to use it"
        )
