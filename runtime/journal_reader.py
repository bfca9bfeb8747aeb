"""Reading a journal, also while a run in another process writes it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from costmodel.usage import OpMetrics, Usage
from runtime.errors import RunDirectoryError
from runtime.journal_rows import call_from_row, outcome_from_row
from runtime.journal_schema import CALL_FIELDS, METRIC_FIELDS, OUTCOME_FIELDS, check_version
from runtime.records import CallRecord, Outcome


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process that worked on the run.

    Attributes:
        started_at, ended_at: ISO 8601 text; `ended_at` is None when it runs or was killed.
        exit_reason: "finished", "interrupted" or other words; None when it runs or was killed.
        cpu_s: processor seconds, when the process said so.
        last_s: end of its last recorded call, in seconds on its own clock; 0 without calls.
    """

    process: int
    pid: int
    host: str
    started_at: str
    ended_at: str | None
    exit_reason: str | None
    cpu_s: float | None
    last_s: float


@dataclass(frozen=True, slots=True)
class QueryProgress:
    """Recorded outcomes of a query; `done` includes the `failed` ones."""

    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class RecordedProgress:
    """Where a run stands, as far as it is durable."""

    queries: dict[str, QueryProgress]
    calls: int
    failed_calls: int
    processes: tuple[ProcessRecord, ...]


@contextlib.contextmanager
def reading(path: Path) -> Generator[sqlite3.Connection, None, None]:
    """A read-only connection to a journal, in one consistent view. `RunDirectoryError` when there
    is no journal, when it cannot be read, or when a newer Halo wrote it."""
    if not path.is_file():
        raise RunDirectoryError(f"no journal at {path}; is {path.parent} a run directory?")
    try:
        with contextlib.closing(_connect(path)) as connection:
            check_version(connection, path)
            connection.execute("BEGIN")
            yield connection
    except sqlite3.Error as error:
        raise RunDirectoryError(f"cannot read the journal {path}: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0, isolation_level=None
    )
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if path.with_name(f"{path.name}-wal").exists():
            raise
        # Without a log nobody writes; on a read-only medium SQLite cannot make the files that it
        # would share with a writer, and has to be told that it needs none.
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?immutable=1", uri=True, isolation_level=None
        )
    return connection


def read_outcomes(path: Path, query: str | None = None) -> Iterator[Outcome]:
    """Recorded outcomes, of `query` or of all (in order of their names), by row index; rows that
    were dropped are none of the query's."""
    where = "WHERE NOT dropped" + ("" if query is None else " AND query = ?")
    with reading(path) as connection:
        rows = connection.execute(
            f"SELECT {OUTCOME_FIELDS} FROM outcomes {where} ORDER BY query, row_index, row_key",
            () if query is None else (query,),
        )
        yield from map(outcome_from_row, rows)


def read_calls(path: Path) -> Iterator[tuple[int, CallRecord]]:
    """(process, call) of every recorded call, failed ones included, by process and start."""
    with reading(path) as connection:
        rows = connection.execute(
            f"SELECT {CALL_FIELDS} FROM calls UNION ALL SELECT {CALL_FIELDS} FROM failed_calls "
            "ORDER BY process, start_s, end_s, key"
        )
        for row in rows:
            yield row[1], call_from_row(row)


def read_metrics(path: Path) -> dict[str, OpMetrics]:
    """What each operator did, by fingerprint, summed over the processes of the run."""
    metrics: dict[str, OpMetrics] = {}
    with reading(path) as connection:
        for row in connection.execute(f"SELECT {METRIC_FIELDS} FROM metrics ORDER BY process, op"):
            total = metrics.setdefault(row[1], OpMetrics())
            total.requested += row[2]
            total.made += row[3]
            total.shared += row[4]
            total.replayed += row[5]
            total.retries += row[6]
            total.errors += row[7]
            total.kept += row[8]
            total.busy_s += row[9]
            total.usage += Usage(*row[10:14])
    return metrics


def read_progress(path: Path) -> RecordedProgress:
    """Counts and processes; quick, also for a million rows."""
    with reading(path) as connection:
        queries = {
            query: QueryProgress(done, failed)
            for query, done, failed in connection.execute(
                "SELECT query, count(*), count(error_type) FROM outcomes GROUP BY query"
            )
        }
        (calls,) = connection.execute("SELECT count(*) FROM calls").fetchone()
        (failed_calls,) = connection.execute("SELECT count(*) FROM failed_calls").fetchone()
        processes = tuple(
            ProcessRecord(*row)
            for row in connection.execute(
                """SELECT process, pid, host, started_at, ended_at, exit_reason, cpu_s,
                    max(coalesce((SELECT max(end_s) FROM calls c WHERE c.process = p.process), 0),
                        coalesce((SELECT max(end_s) FROM failed_calls f
                                  WHERE f.process = p.process), 0))
                FROM processes p ORDER BY process"""
            )
        )
    return RecordedProgress(queries, calls, failed_calls, processes)
