"""The queries of a SQL batch: one cursor of a DuckDB instance that the front end opened and locked.

Answer tables are temporary tables of the cursor, made when a query first reads them; results stay
in DuckDB. A statement that writes leaves a mark in the database in the same transaction, so that a
run which is killed and resumed does not write twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.usage import OpMetrics
from planner.logical import Json, SqlRows, canonical_json
from runtime.clock import Clock
from runtime.derive import Table
from runtime.errors import ToolError
from runtime.python_tool import in_thread
from runtime.records import CallRecord, CallSite, Store
from runtime.sql_values import to_cell

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_PLAIN = frozenset({"VARCHAR", "BOOLEAN", "INTEGER", "BIGINT", "DOUBLE", "VARCHAR[]"})
"""Types whose values the appender takes as they are; others go through JSON."""
_FETCH_ROWS = 1024
_MARKS = "halo_writes"
_SAMPLE_SEED = 1


@dataclass
class SqlSession:
    """What the front end hands to a run.

    Attributes:
        cursor: of the locked connection, with its search path set.
        results: the schema that `SqlRows.into` tables are made in, as SQL names it.
        marks: the schema in which writes leave their marks; empty for a run that cannot be resumed.
        run_id: what tells the marks of this run from those of others.
        sample_rows: for a run that is to teach what its calls do: queries give at most so many of
            their rows, drawn evenly, and those that write or keep results are not run. 0 for a run
            that is meant.
    """

    cursor: DuckDBPyConnection
    results: str
    marks: str = ""
    run_id: str = ""
    sample_rows: int = 0


class SessionQueries:
    """Runs the `SqlRows` of one run. Make it inside the running loop."""

    def __init__(
        self,
        session: SqlSession,
        store: Store,
        clock: Clock,
        metrics: dict[str, OpMetrics],
    ) -> None:
        self._session = session
        self._metrics = metrics
        self._store = store
        self._clock = clock
        self._origin_s = clock.now_s()
        self._made: set[str] = set()
        self._lock = asyncio.Lock()

    async def rows(
        self,
        op: SqlRows,
        tables: Mapping[str, Table],
        params: Mapping[str, Json],
        site: CallSite,
    ) -> Sequence[Mapping[str, Json]]:
        """See `runtime.executor.RowQueries`."""
        if self._session.sample_rows and (op.into or not op.read_only):
            return [{"rows": 0}]
        async with self._lock:
            metrics = self._metrics.setdefault(op.fingerprint, OpMetrics())
            metrics.requested += 1
            key = self._key(op)
            if not op.read_only:
                recorded = self._store.recorded_call(key)
                if recorded is not None and isinstance(recorded.value, list):
                    metrics.replayed += 1
                    return [row for row in recorded.value if isinstance(row, dict)]
                await self._store.durable()
            start_s = self._clock.now_s()
            work = in_thread(lambda: self._run(op, tables, params, key), "halo-sql")
            metrics.made += 1
            try:
                rows = await work
            except asyncio.CancelledError:
                self._interrupt()
                raise
            except ToolError:
                metrics.errors += 1
                raise
            finally:
                metrics.busy_s += self._clock.now_s() - start_s
            if not op.read_only:
                await self._record(key, op, site, rows, start_s)
            return rows

    def _interrupt(self) -> None:
        import duckdb

        with contextlib.suppress(duckdb.Error):
            self._session.cursor.interrupt()

    async def _record(
        self, key: str, op: SqlRows, site: CallSite, rows: list[dict[str, Json]], start_s: float
    ) -> None:
        value: list[Json] = [dict(row) for row in rows]
        await self._store.record_call(
            CallRecord(
                key, "sql", op.label or "sql", site.op, site.query, site.row_key, value, "write",
                start_s=start_s - self._origin_s, end_s=self._clock.now_s() - self._origin_s,
            )
        )  # fmt: skip

    def _key(self, op: SqlRows) -> str:
        text = f"sql write {self._session.run_id} {op.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()

    # --- in a thread -----------------------------------------------------------------------------

    def _run(
        self, op: SqlRows, tables: Mapping[str, Table], params: Mapping[str, Json], key: str
    ) -> list[dict[str, Json]]:
        import duckdb

        cursor = self._session.cursor
        try:
            for name, table in tables.items():
                if name not in self._made:
                    load_table(cursor, name, table)
                    self._made.add(name)
            if op.into:
                return [{"rows": self._keep(cursor, op, params)}]
            if not op.read_only:
                return [{"rows": self._write(cursor, op, params, key)}]
            return _fetch(cursor, op, params, self._session.sample_rows)
        except (duckdb.Error, ValueError, TypeError, OverflowError) as error:
            raise ToolError(f"{type(error).__name__}: {error}", tool=op.label or "sql") from error

    def _keep(self, cursor: DuckDBPyConnection, op: SqlRows, params: Mapping[str, Json]) -> int:
        table = f'{self._session.results}."{op.into}"'
        cursor.execute(f"CREATE OR REPLACE TABLE {table} AS {op.text}", dict(params) or None)
        return _count(cursor.sql(f"SELECT count(*) FROM {table}").fetchall()[0])

    def _write(
        self, cursor: DuckDBPyConnection, op: SqlRows, params: Mapping[str, Json], key: str
    ) -> int:
        marks = f"{self._session.marks}.{_MARKS}" if self._session.marks else ""
        if marks:
            cursor.execute(f"CREATE TABLE IF NOT EXISTS {marks} (key VARCHAR, count BIGINT)")
            found = cursor.execute(f"SELECT count FROM {marks} WHERE key = ?", [key]).fetchall()
            if found:
                return _count(found[0])
        cursor.execute("BEGIN TRANSACTION")
        try:
            answered = cursor.execute(op.text, dict(params) or None).fetchall()
            count = _count(answered[0] if answered else None)
            if marks:
                cursor.execute(f"INSERT INTO {marks} VALUES (?, ?)", [key, count])
            cursor.execute("COMMIT")
        except BaseException:
            import duckdb

            with contextlib.suppress(duckdb.Error):
                cursor.execute("ROLLBACK")
            raise
        return count


def load_table(cursor: DuckDBPyConnection, name: str, table: Table) -> None:
    """Make a temporary table of answers."""
    columns = [f'"{column}"' for column in table.columns]
    types = [kind or "VARCHAR" for kind in table.types]
    plain = [kind in _PLAIN for kind in types]
    declared = ", ".join(
        f"{column} {kind if is_plain else 'VARCHAR'}"
        for column, kind, is_plain in zip(columns, types, plain, strict=True)
    )
    raw = name if all(plain) else f"{name}_raw"
    cursor.execute(f"CREATE OR REPLACE TEMP TABLE {raw} ({declared})")
    rows = table.rows if all(plain) else [_as_json(row, plain) for row in table.rows]
    if rows:
        with cursor.appender(raw) as appender:
            appender.append_rows(rows)
    if raw == name:
        return
    selected = ", ".join(
        column if is_plain else f"CAST(CAST({column} AS JSON) AS {kind}) AS {column}"
        for column, kind, is_plain in zip(columns, types, plain, strict=True)
    )
    cursor.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT {selected} FROM {raw}")
    cursor.execute(f"DROP TABLE {raw}")


def _as_json(row: Sequence[Json], plain: Sequence[bool]) -> tuple[Any, ...]:
    return tuple(
        value if is_plain or value is None else canonical_json(value)
        for value, is_plain in zip(row, plain, strict=True)
    )


def _fetch(
    cursor: DuckDBPyConnection, op: SqlRows, params: Mapping[str, Json], sample_rows: int
) -> list[dict[str, Json]]:
    text = op.text
    if sample_rows:
        drawn = f"USING SAMPLE reservoir({sample_rows} ROWS) REPEATABLE ({_SAMPLE_SEED})"
        text = f"SELECT * FROM ({text}) {drawn}"
    cursor.execute(text, dict(params) or None)
    rows: list[dict[str, Json]] = []
    convert: Callable[[Any, str], Json] = to_cell
    while batch := cursor.fetchmany(_FETCH_ROWS):
        rows.extend(
            {c: v if type(v) is str else convert(v, c) for c, v in zip(op.columns, r, strict=True)}
            for r in batch
        )
    return rows


def _count(row: Any) -> int:
    return int(row[0]) if row and isinstance(row[0], int) else 0
