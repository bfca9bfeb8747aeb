"""The journal of a run: a `Store` over SQLite whose futures tell what would survive `kill -9`.

Records gather in a group on the event loop's thread. One thread writes: a group is committed whole
(WAL, `synchronous=FULL`), its shared future is resolved, and what gathered meanwhile is the next
group. So a slow disk makes groups larger instead of making the run wait for each record.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import sqlite3
import threading
from asyncio import Future
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from queue import SimpleQueue

from costmodel.usage import OpMetrics
from runtime.clock import Clock, LoopClock, VirtualEventLoop
from runtime.errors import RunDirectoryError
from runtime.journal_rows import Row, call_from_row, call_row, metrics_row, outcome_row
from runtime.journal_schema import (
    CALL_FIELDS,
    INSERT_CALL,
    INSERT_FAILED_CALL,
    INSERT_OUTCOME,
    REPLACE_METRICS,
    open_journal,
)
from runtime.records import CallRecord, Outcome

GROUP_RECORDS = 5_000
"""A group is closed at this size: a commit stays short, and so does the wait for it."""

VIRTUAL_COMMIT_S = 0.025
"""On virtual time, a group gathers for this long, and its commit takes as long again, whatever the
disk needs: time stands still only when the disk needs longer. So the disk does not set the pace of
a simulation, and two simulations of one run are equal.

A simulation runs about ten times as fast as its own clock, so this is some milliseconds of a real
disk. Less makes it wait for the disk, and costs more commits, each about as much processor time as
a call. More keeps slots so long that it shows in simulated times: this much makes a run of calls
that take half a second 1 percent longer."""

CHEAP_SNAPSHOT_OPS = 256
"""Up to this many operators, metrics are compared at each commit; beyond, less often."""


class _Durable(Future[None]):
    """The future of a group. Many wait for it, so none of them can cancel it: a cancelled task
    that waits for it ends when the commit does."""

    def cancel(self, msg: object = None) -> bool:
        return False


class _Group:
    """Records that are committed together."""

    __slots__ = (
        "calls", "due", "durable", "end", "error", "failed_calls", "held", "metrics", "outcomes",
        "size", "written",
    )  # fmt: skip

    def __init__(self) -> None:
        self.calls: list[Row] = []
        self.failed_calls: list[Row] = []
        self.outcomes: list[Row] = []
        self.metrics: list[Row] = []
        self.end: Row | None = None
        self.durable: _Durable | None = None
        self.held: AbstractContextManager[None] | None = None
        self.size = 0
        self.written = False
        self.due = False
        self.error: RunDirectoryError | None = None


class Journal:
    """The records of one process of a run, on top of what earlier processes of the run recorded.

    Use it from one event loop, and close it. Hold the run directory's lock meanwhile: the journal
    itself does not keep a second writer out.

    A failed write (full disk, I/O error) fails the futures of everything that was not yet durable
    with `RunDirectoryError`, and every later record raises it: what is on disk stays valid and can
    be resumed.

    Attributes:
        process: ordinal of this process in the run, from 1.
    """

    def __init__(self, path: Path, *, started_at: str = "", clock: Clock | None = None) -> None:
        """Open or create the journal at `path` (`events.sqlite`).

        `started_at` is the wall-clock time as ISO 8601 text, for people. Virtual time of `clock`
        (by default, of the running loop) stands still while a commit is under way. Raises
        `RunDirectoryError`.
        """
        self._path = path
        self._clock: Clock = clock or LoopClock()
        self._connection = open_journal(path)
        self._reader: sqlite3.Connection | None = None
        try:
            self.process = self._begin(started_at)
            earlier = self._connection.execute("SELECT key FROM calls")
            self._earlier_calls = frozenset(key for (key,) in earlier)
        except sqlite3.Error as error:
            self._connection.close()
            raise RunDirectoryError(f"cannot read the journal {path}: {error}") from error
        self._gathering: _Group | None = None
        self._writing: deque[_Group] = deque()
        self._metrics: Mapping[str, OpMetrics] = {}
        self._kept_metrics: dict[str, Row] = {}
        self._since_snapshot = 0
        self._broken: RunDirectoryError | None = None
        self._closed = False
        self._virtual = False
        self._queue: SimpleQueue[_Group | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_groups, name="halo-journal", daemon=True)
        self._thread.start()

    # --- Store -----------------------------------------------------------------------------------

    def recorded_call(self, key: str) -> CallRecord | None:
        """The successful call of this key that an earlier process of the run recorded, or None.
        Calls of this process are not looked up: whoever made them has them (`CallTable`)."""
        if key not in self._earlier_calls:
            return None
        row = self._read(f"SELECT {CALL_FIELDS} FROM calls WHERE key = ?", (key,)).fetchone()
        return None if row is None else call_from_row(row)

    def record_call(self, record: CallRecord) -> Future[None]:
        """Record a call. A successful one is never overwritten; failed ones are all kept, for the
        trace. Raises `ValueTypeError` when the value is not JSON, and `RunDirectoryError`."""
        row = call_row(self.process, record)
        group = self._group()
        (group.calls if record.error is None else group.failed_calls).append(row)
        return self._added(group)

    def record_outcome(self, outcome: Outcome) -> Future[None]:
        """Record the end of a row; a second one for the same (query, row_key) is dropped. A value
        that is not JSON is recorded as the row's failure. Raises `RunDirectoryError`."""
        row = outcome_row(self.process, outcome)
        group = self._group()
        group.outcomes.append(row)
        return self._added(group)

    def recorded_outcomes(self) -> Iterator[tuple[str, str]]:
        """(query, row_key) of every durable outcome."""
        return iter(self._read("SELECT query, row_key FROM outcomes", ()))

    def record_metrics(self, metrics: Mapping[str, OpMetrics]) -> None:
        """Keep `metrics` with the next commits. The mapping is looked at again at each of them, so
        calling this once, or after every row, is the same."""
        self._metrics = metrics

    def durable(self) -> Future[None]:
        """Done when everything recorded so far is on disk. Raises `RunDirectoryError`."""
        self._check()
        last = self._gathering or (self._writing[-1] if self._writing else None)
        if last is not None and last.durable is not None:
            return last.durable
        done: Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    # --- the end ---------------------------------------------------------------------------------

    def close(self, reason: str = "", *, ended_at: str = "", cpu_s: float | None = None) -> None:
        """Commit what has gathered and note how this process ended; blocks until that is on disk.

        `reason` is "finished", "interrupted" or words of the caller; a process that never closes
        its journal was killed. `ended_at` is ISO 8601 text, `cpu_s` processor seconds used. Safe to
        call twice. Raises `RunDirectoryError` when this last commit fails.
        """
        if self._closed:
            return
        self._closed = True
        broken_before = self._broken is not None
        last = self._gathering or _Group()
        last.end = (ended_at or None, reason, cpu_s, self.process)
        self._gathering = last
        self._since_snapshot = len(self._metrics)
        self._hand_over()
        self._queue.put(None)
        self._thread.join()
        if self._reader is not None:
            self._reader.close()
        self._connection.close()
        if self._broken is not None and not broken_before:
            raise self._broken

    # --- the event loop's thread -----------------------------------------------------------------

    def _begin(self, started_at: str) -> int:
        begun = self._connection.execute(
            "INSERT INTO processes (pid, host, started_at) VALUES (?, ?, ?)",
            (os.getpid(), platform.node(), started_at),
        )
        return int(begun.lastrowid or 0)

    def _check(self) -> None:
        if self._broken is not None:
            raise RunDirectoryError(str(self._broken)) from self._broken
        if self._closed:
            raise RunDirectoryError(f"the journal {self._path} is closed; nothing was recorded")

    def _group(self) -> _Group:
        self._check()
        group = self._gathering
        if group is None:
            loop = asyncio.get_running_loop()
            group = self._gathering = _Group()
            group.durable = _Durable(loop=loop)
            self._virtual = isinstance(loop, VirtualEventLoop)
            if self._virtual:
                loop.call_later(VIRTUAL_COMMIT_S, self._hand_over_virtual, group)
            elif not self._writing:
                # Not at once: what else this turn of the loop records belongs to the group.
                loop.call_soon(self._hand_over)
        return group

    def _added(self, group: _Group) -> Future[None]:
        durable = group.durable
        assert durable is not None
        group.size += 1
        self._since_snapshot += 1
        if group.size >= GROUP_RECORDS:
            self._hand_over()
        return durable

    def _hand_over_virtual(self, group: _Group) -> None:
        if self._gathering is group:
            self._hand_over()

    def _hand_over(self) -> None:
        group = self._gathering
        if group is None:
            return
        self._gathering = None
        if self._virtual and not self._closed:
            asyncio.get_running_loop().call_later(VIRTUAL_COMMIT_S, self._commit_due, group)
        group.metrics = self._changed_metrics()
        self._writing.append(group)
        self._queue.put(group)

    def _changed_metrics(self) -> list[Row]:
        # Plans can have more operators than a group has records: the cost of looking at all of
        # them stays in proportion to what was recorded.
        if self._since_snapshot < len(self._metrics) > CHEAP_SNAPSHOT_OPS:
            return []
        self._since_snapshot = 0
        changed: list[Row] = []
        for op, metrics in self._metrics.items():
            row = metrics_row(self.process, op, metrics)
            if self._kept_metrics.get(op) != row:
                self._kept_metrics[op] = row
                changed.append(row)
        return changed

    def _commit_due(self, group: _Group) -> None:
        """Virtual time has come to the end of a commit; it goes on when the disk is that far."""
        if group.durable is not None and group.durable.done():
            return  # the journal was closed meanwhile, and did not wait
        group.due = True
        if group.written:
            self._settle(group)
        else:
            group.held = self._clock.outside()
            group.held.__enter__()

    def _written(self, group: _Group, error: RunDirectoryError | None) -> None:
        group.written, group.error = True, error
        if group.due or not self._virtual or self._closed:
            self._settle(group)

    def _settle(self, group: _Group) -> None:
        self._writing.popleft()
        if group.held is not None:
            group.held.__exit__(None, None, None)
        error = group.error
        if group.durable is not None:
            if error is None:
                group.durable.set_result(None)
            else:
                group.durable.set_exception(error)
                group.durable.exception()  # seen: nobody has to wait for a record
        if self._gathering is not None and not self._writing and not self._virtual:
            self._hand_over()

    def _read(self, query: str, parameters: Row) -> sqlite3.Cursor:
        try:
            if self._reader is None:
                self._reader = sqlite3.connect(
                    self._path, timeout=30.0, isolation_level=None, check_same_thread=False
                )
                self._reader.execute("PRAGMA query_only = ON")
            return self._reader.execute(query, parameters)
        except sqlite3.Error as error:
            raise RunDirectoryError(f"cannot read the journal {self._path}: {error}") from error

    # --- the writer's thread ---------------------------------------------------------------------

    def _write_groups(self) -> None:
        while (group := self._queue.get()) is not None:
            if self._broken is None:
                try:
                    self._commit(group)
                except Exception as error:
                    self._broken = RunDirectoryError(
                        f"cannot write the journal {self._path}: {error}; what was recorded before "
                        "is safe: make room or repair the disk, then continue with `halo resume "
                        f"{self._path.parent}`"
                    )
                    self._broken.__cause__ = error
            if group.durable is not None:
                # A loop that has ended has nobody who waits.
                with contextlib.suppress(RuntimeError):
                    group.durable.get_loop().call_soon_threadsafe(
                        self._written, group, self._broken
                    )

    def _commit(self, group: _Group) -> None:
        write = self._connection
        write.execute("BEGIN IMMEDIATE")
        try:
            for insert, rows in (
                (INSERT_CALL, group.calls),
                (INSERT_FAILED_CALL, group.failed_calls),
                (INSERT_OUTCOME, group.outcomes),
                (REPLACE_METRICS, group.metrics),
            ):
                if rows:
                    write.executemany(insert, rows)
            if group.end is not None:
                write.execute(
                    "UPDATE processes SET ended_at = ?, exit_reason = ?, cpu_s = ? "
                    "WHERE process = ?",
                    group.end,
                )
            write.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors, such as a full disk.
            with contextlib.suppress(sqlite3.Error):
                write.execute("ROLLBACK")
            raise
