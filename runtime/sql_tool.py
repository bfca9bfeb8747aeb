"""SQL on DuckDB files: queries that may be model-written, so they can read one file and no more.

A query runs in a cursor of a locked-down connection (no file or network access, no extensions, no
settings), inside a transaction that is read-only: a statement's type is no proof, because
`WITH x AS (INSERT ...) SELECT` is a SELECT. Time, memory, rows and result bytes are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from planner.logical import Json
from runtime.clock import Clock
from runtime.deadline import real_timer
from runtime.errors import ToolError, ToolTimeoutError
from runtime.python_tool import OnEnd, no_thread
from runtime.sql_bounds import check_text
from runtime.sql_connection import Limits, connect, describe, is_volatile
from runtime.sql_statement import run_statement
from runtime.thread_lane import NoThreadError, ThreadLane
from runtime.tools import OnRows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MOST_AT_ONCE = min(8, max(4, os.cpu_count() or 1))
"""Queries of one file, at once. Each has one thread (`sql_connection.Limits`). With more of them
the threads wait for the interpreter: on 8 cores, queries of 3 ms took 60 ms with 16 and 10 with 4.
"""
_ABANDON_S = 5.0
"""How long after the interrupt of a late query its thread is waited for."""
_INTERRUPT_AGAIN_S = 1.0


@dataclass(slots=True)
class _Opened:
    """A database file: the threads of its queries, its connection, opened by the first of them,
    and the lock of its writes."""

    path: Path
    writable: bool
    lane: ThreadLane
    connection: DuckDBPyConnection | None = None
    opening: threading.Lock = field(default_factory=threading.Lock)
    writing: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class _Query:
    """A query under way, between the loop and its thread."""

    text: str
    params: Mapping[str, Json]
    max_rows: int
    read_only: bool
    on_rows: OnRows | None = None
    began_s: float | None = None
    """On the real clock, since it has a thread."""
    late: bool = False
    cursor: DuckDBPyConnection | None = None


class Databases:
    """The databases of a run, by path; "" is `default`.

    Args:
        default: the run's database, None when it has none.
        memory_limit_bytes, spill_limit_bytes: DuckDB's working memory for each database, and the
            disk space beside it for what does not fit.
        timeout_s: real seconds for each query; then it is interrupted.
        max_result_bytes: a result's size as JSON; a larger one is an error.
        threads: of each query. More than one makes sums of floats depend on timing.
        most_at_once: queries of one file that run at once; others wait, in order.
        writable: the databases (as plans name them) that the plan writes to. Only they are opened
            for writing, because a file cannot be open both ways; queries that read see them
            through read-only transactions.
    """

    def __init__(
        self,
        default: Path | None = None,
        *,
        memory_limit_bytes: int = Limits().memory_bytes,
        spill_limit_bytes: int = Limits().spill_bytes,
        timeout_s: float = 30.0,
        max_result_bytes: int = 8 * 2**20,
        threads: int = Limits().threads,
        most_at_once: int = MOST_AT_ONCE,
        writable: frozenset[str] = frozenset(),
    ) -> None:
        self.most_at_once = most_at_once
        self._default = default
        self._limits = Limits(memory_limit_bytes, spill_limit_bytes, threads)
        self._timeout_s = timeout_s
        self._max_result_bytes = max_result_bytes
        self._paths: dict[str, Path] = {}
        self._writable = frozenset(self.path(name) for name in writable)
        self._opened: dict[Path, _Opened] = {}

    def path(self, database: str) -> Path:
        """The absolute path of a database as plans name it, links followed: a file has one name."""
        path = self._paths.get(database)
        if path is None:
            path = self._paths[database] = self._find(database)
        return path

    def _find(self, database: str) -> Path:
        if not database and self._default is None:
            raise ToolError(
                "the query names no database and the run has none; use --db FILE, or "
                "halo.sql.readonly(path)",
                tool="sql",
            )
        try:
            return Path(database or self._default or "").resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise ToolError(f"{database!r} is no path of a database: {error}", tool="sql") from None

    def is_writable(self, database: str) -> bool:
        """Whether the run may write to it, so that equal queries may have different answers."""
        return self.path(database) in self._writable

    def is_open(self, database: str) -> bool:
        """Whether a query is answered at once, without a file being opened before."""
        return self._file(database).connection is not None

    async def query(
        self,
        database: str,
        text: str,
        params: Mapping[str, Json],
        clock: Clock,
        *,
        max_rows: int = 1000,
        read_only: bool = True,
        bounded: bool = True,
        on_rows: OnRows | None = None,
        on_end: OnEnd | None = None,
    ) -> list[Json]:
        """The first `max_rows` rows of a query as objects, whoever wrote it; those after them are
        left out, and nothing tells that they exist. Of a statement that writes: what it returns.
        `bounded` refuses texts that would block the parser (`sql_bounds`): for all but an author's
        own. `on_rows` is told of rows in the query's thread, as they are read; `on_end` when the
        query began and how long it ran (`ThreadLane.run`). Time limits do not count the wait for a
        thread. Raises `ToolError`, `ToolTimeoutError`."""
        opened = self._file(database)
        name = opened.path.name
        if not read_only and not opened.writable:
            raise ToolError(
                f"{opened.path} is open for reading only; name it as writable to write to it",
                tool=name,
            )
        if bounded:
            check_text(text, name)
        query = _Query(text, params, max_rows, read_only, on_rows)
        late = partial(self._late, name)
        # The interrupt makes the thread end, and tells what became of a write. The lane's limit is
        # for a query that DuckDB does not interrupt.
        with clock.outside(), real_timer(self._timeout_s, partial(self._look, query)):
            try:
                return await opened.lane.run(
                    lambda: self._run(opened, query, late),
                    self._timeout_s + _ABANDON_S,
                    late,
                    on_end,
                )
            except asyncio.CancelledError:
                _interrupt(query)
                raise
            except NoThreadError as refused:
                raise no_thread(name, refused) from refused

    def _look(self, query: _Query) -> float | None:
        """Interrupt `query` when it has run for its time; otherwise when to look again."""
        if query.began_s is None:
            return self._timeout_s
        left_s = query.began_s + self._timeout_s - time.perf_counter()
        if left_s > 0:
            return left_s
        _interrupt(query)
        return _INTERRUPT_AGAIN_S  # this time may have come a moment before its statement began

    def refuse(self, error: Callable[[], Exception]) -> None:
        """Queries that wait for a thread are not run: `error()` is raised for each."""
        for opened in self._opened.values():
            opened.lane.refuse(error)

    async def close(self) -> None:
        """Close all connections."""
        opened, self._opened = self._opened, {}
        for each in opened.values():
            if each.connection is not None:
                # Closing may write a checkpoint.
                await asyncio.to_thread(each.connection.close)

    @staticmethod
    def volatile(text: str) -> bool:
        """Whether a query may answer differently each time (random, now, ...)."""
        return is_volatile(text)

    @staticmethod
    def schema(path: str | os.PathLike[str]) -> str:
        """Tables and columns, one line a table: `table(column TYPE, ...)`, sorted by table."""
        return describe(Path(path).resolve())

    def _file(self, database: str) -> _Opened:
        path = self.path(database)
        opened = self._opened.get(path)
        if opened is None:
            lane = ThreadLane(self.most_at_once, f"halo-sql-{path.name}")
            opened = self._opened[path] = _Opened(path, path in self._writable, lane)
        return opened

    def _late(self, name: str) -> ToolTimeoutError:
        return ToolTimeoutError(
            f"the query on {name} was not done within {self._timeout_s:g} s and was interrupted",
            tool=name,
        )

    def _run(self, opened: _Opened, query: _Query, late: Callable[[], Exception]) -> list[Json]:
        """In a thread: the rows of `query`."""
        import duckdb

        name = opened.path.name
        query.began_s = time.perf_counter()
        try:
            with opened.opening:
                if opened.connection is None:
                    opened.connection = connect(opened.path, opened.writable, self._limits)
                cursor = opened.connection.cursor()
            with cursor:
                query.cursor = cursor
                with contextlib.nullcontext() if query.read_only else opened.writing:
                    if query.late:
                        raise late()
                    return run_statement(
                        cursor,
                        name,
                        query.text,
                        query.params,
                        max_rows=query.max_rows,
                        max_bytes=self._max_result_bytes,
                        read_only=query.read_only,
                        writable=opened.writable,
                        on_rows=query.on_rows,
                    )
        except duckdb.InterruptException:
            raise late() from None
        except (duckdb.Error, ValueError, TypeError, OverflowError, RecursionError) as error:
            # Not only its own: a text with half a surrogate pair, for one, is a TypeError.
            raise ToolError(
                f"the query on {name} failed: {type(error).__name__}: {error}\n"
                f"The query was: {query.text[:1000]}",
                tool=name,
            ) from error
        finally:
            query.cursor = None


def _interrupt(query: _Query) -> None:
    import duckdb

    query.late = True
    if (cursor := query.cursor) is not None:
        with contextlib.suppress(duckdb.Error):  # its thread has closed it a moment ago
            cursor.interrupt()
