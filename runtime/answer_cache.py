"""The answer cache: greedy answers and results of pure tools, kept from run to run.

A local SQLite file. Answers are keyed by what was asked, of what, by which tenant; a batch of which
some rows are known makes the calls of the others alone. It is off unless asked for, and may be
deleted at any time: nothing depends on it but the calls that it saves.

Sampled and writing calls are never kept, nor are failed ones, nor fresh ones (their authors want an
answer of this run), nor queries on databases, whose tables may have changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from asyncio import Future
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from costmodel.usage import OpMetrics
from runtime.errors import CacheError
from runtime.records import FRESH, CallRecord, Outcome, Store

FILE = "answers.sqlite"
SCHEMA_VERSION = 1
GROUP = 256
"""Answers that are written together: the last ones may be lost when a process is killed."""
PRUNED_SHARE = 0.9
"""What a cache that has become too large is cut down to, so that it is not cut at every write."""
_ENTRY_BYTES = 160
"""What an entry takes beside its value: key, columns and index."""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS answers (
        key BLOB PRIMARY KEY,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        scope TEXT NOT NULL,
        value TEXT NOT NULL,
        finish_reason TEXT NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        hits INTEGER NOT NULL,
        made_at TEXT NOT NULL,
        used_at TEXT NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS answers_by_use ON answers (used_at)",
)


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Answers of one model or tool: how many, of what size, how often used, for how many tokens."""

    kind: str
    name: str
    scope: str
    answers: int
    size_bytes: int
    hits: int
    input_tokens: int
    output_tokens: int


class AnswerCache:
    """A cache in a directory, made if it is not there. Several processes may use one.

    Args:
        scope: who answers, such as "local" or "simulated seed=0": an answer of one engine is none
            of another. Results of tools are shared by all scopes.
        max_bytes: the least recently used answers go when there are more.
        now: a timestamp that sorts as text, for `made_at` and `used_at`.

    Raises `CacheError` for a file that is no answer cache, or cannot be used.
    """

    def __init__(
        self, directory: Path, *, scope: str = "", max_bytes: int = 1 << 30, now: str = ""
    ) -> None:
        self.path = directory / FILE
        self.scope = scope
        self.max_bytes = max_bytes
        self._now = now
        self._new: dict[bytes, tuple[object, ...]] = {}
        self._used: dict[bytes, int] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30.0, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            # A cache may lose its last answers: what it holds is checked by its keys.
            self._db.execute("PRAGMA synchronous = NORMAL")
            with self._transaction():
                for table in _TABLES:
                    self._db.execute(table)
                self._db.execute(
                    "INSERT OR IGNORE INTO meta VALUES ('schema_version', ?)",
                    (str(SCHEMA_VERSION),),
                )
            self._check_version()
        except (sqlite3.Error, OSError) as error:
            raise CacheError(
                f"the answer cache {self.path} cannot be used: {error}; delete it, or name another "
                "directory"
            ) from error

    def get(self, key: str) -> CallRecord | None:
        """The answer of a call, as a record that took no time and no tokens; None when it is not
        known."""
        own, shared = self._keys(key)
        try:
            row = self._db.execute(
                "SELECT key, kind, name, value, finish_reason FROM answers WHERE key IN (?, ?)",
                (own, shared),
            ).fetchone()
        except sqlite3.Error as error:
            raise CacheError(f"the answer cache {self.path} cannot be read: {error}") from error
        if row is None:
            return None
        self._used[row[0]] = self._used.get(row[0], 0) + 1
        return CallRecord(
            key=key,
            kind=row[1],
            name=row[2],
            op="",
            query="",
            row_key="",
            value=json.loads(row[3]),
            finish_reason=row[4],
            attempts=0,
        )

    def put(self, record: CallRecord) -> None:
        """Keep the answer of a call, if it is one to keep."""
        if record.effect != "pure" or record.error is not None or record.kind == "sql":
            return
        if record.is_fresh:
            return
        own, shared = self._keys(record.key)
        key = own if record.kind == "model" else shared
        scope = self.scope if record.kind == "model" else ""
        value = json.dumps(record.value, separators=(",", ":"))
        usage = record.usage
        self._new[key] = (
            key, record.kind, record.name, scope, value, record.finish_reason, usage.input_tokens,
            usage.output_tokens, len(value) + _ENTRY_BYTES, 0, self._now, self._now,
        )  # fmt: skip
        if len(self._new) >= GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what has come, and note what was used; cut the cache down when it is too large."""
        new, self._new = self._new, {}
        used, self._used = self._used, {}
        if not new and not used:
            return
        try:
            with self._transaction():
                self._db.executemany(
                    f"INSERT OR IGNORE INTO answers VALUES ({', '.join('?' * 12)})", new.values()
                )
                self._db.executemany(
                    "UPDATE answers SET hits = hits + ?, used_at = ? WHERE key = ?",
                    [(hits, self._now, key) for key, hits in used.items()],
                )
            if new:
                self.prune(self.max_bytes, leave=PRUNED_SHARE)
        except sqlite3.Error as error:
            raise CacheError(f"the answer cache {self.path} cannot be written: {error}") from error

    @property
    def size_bytes(self) -> int:
        """What the answers take, in the file's own count."""
        (size,) = self._db.execute("SELECT coalesce(sum(size_bytes), 0) FROM answers").fetchone()
        return int(size)

    def groups(self) -> list[CacheGroup]:
        """What it holds, by model and tool."""
        rows = self._db.execute(
            "SELECT kind, name, scope, count(*), sum(size_bytes), sum(hits), sum(hits * "
            "input_tokens), sum(hits * output_tokens) FROM answers GROUP BY kind, name, scope "
            "ORDER BY kind, name, scope"
        )
        return [CacheGroup(*row) for row in rows]

    def prune(self, max_bytes: int, *, leave: float = 1.0) -> int:
        """Drop the least recently used answers until at most `max_bytes` (times `leave`, if
        anything has to go) are left; how many went."""
        size = self.size_bytes
        if size <= max_bytes:
            return 0
        target = int(max_bytes * leave)
        dropped: list[tuple[bytes]] = []
        by_use = self._db.execute("SELECT key, size_bytes FROM answers ORDER BY used_at, key")
        for key, each in by_use.fetchall():
            if size <= target:
                break
            dropped.append((key,))
            size -= each
        with self._transaction():
            self._db.executemany("DELETE FROM answers WHERE key = ?", dropped)
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.execute("PRAGMA incremental_vacuum")
        return len(dropped)

    def clear(self) -> int:
        """Drop everything and give the space back; how many answers went."""
        (count,) = self._db.execute("SELECT count(*) FROM answers").fetchone()
        self._db.execute("DELETE FROM answers")
        self._db.execute("VACUUM")
        return int(count)

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            self._db.close()

    def _keys(self, key: str) -> tuple[bytes, bytes]:
        """The keys of a call as an answer of this scope, and as a result for all."""
        return _digest(f"engine {self.scope}\n{key}"), _digest(f"tool\n{key}")

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _check_version(self) -> None:
        (found,) = self._db.execute(
            "SELECT value FROM meta WHERE key = 'schema_version'"
        ).fetchone()
        if int(found) != SCHEMA_VERSION:
            raise CacheError(
                f"{self.path} is an answer cache of version {found}, this Halo uses version "
                f"{SCHEMA_VERSION}; delete it, or name another directory"
            )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


class CachedStore:
    """A run's store that also knows the answers of earlier runs, and tells the cache new ones.

    An answer from the cache is recorded in the run like any other, so that the run's directory is
    whole without the cache. `hits` counts the calls that it answered, each once.
    """

    def __init__(self, store: Store, cache: AnswerCache) -> None:
        self._store = store
        self._cache = cache
        self._answered: dict[str, CallRecord] = {}

    @property
    def hits(self) -> int:
        return len(self._answered)

    def recorded_call(self, key: str) -> CallRecord | None:
        record = self._answered.get(key) or self._store.recorded_call(key)
        if record is not None or key.endswith(FRESH):
            return record
        record = self._cache.get(key)
        if record is not None:
            self._answered[key] = record
            self._store.record_call(record)
        return record

    def record_call(self, record: CallRecord) -> Future[None]:
        durable = self._store.record_call(record)
        self._cache.put(record)
        return durable

    def record_outcome(self, outcome: Outcome) -> Future[None]:
        return self._store.record_outcome(outcome)

    def recorded_outcomes(self) -> Iterable[tuple[str, str]]:
        return self._store.recorded_outcomes()

    def record_metrics(self, metrics: Mapping[str, OpMetrics]) -> None:
        self._store.record_metrics(metrics)

    def durable(self) -> Future[None]:
        return self._store.durable()
