"""What a report counts in a journal: failures by reason, calls by name, the slowest calls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.journal_reader import reading


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed rows with the same error class at the same operator. `example_message` is that of the
    first of them (by query and row)."""

    type: str
    op: str
    rows: int
    example_query: str
    example_row: int
    example_message: str


@dataclass(frozen=True, slots=True)
class CallGroup:
    """Recorded calls of one model or tool; times are seconds of a call from start to end."""

    kind: str
    name: str
    calls: int
    failed: int
    mean_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class SlowCall:
    """One call with its first asker."""

    kind: str
    name: str
    op: str
    query: str
    row_key: str
    path: str
    seconds: float
    error: str | None


def failures_by_reason(path: Path) -> list[FailureGroup]:
    """Most frequent first."""
    with reading(path) as connection:
        rows = connection.execute(
            """SELECT error_type, error_op, n, query, row_index, error_message
            FROM (
                SELECT error_type, error_op, query, row_index, error_message,
                    count(*) OVER (PARTITION BY error_type, error_op) AS n,
                    row_number() OVER (
                        PARTITION BY error_type, error_op ORDER BY query, row_index, row_key
                    ) AS place
                FROM outcomes WHERE error_type IS NOT NULL
            )
            WHERE place = 1 ORDER BY n DESC, error_type, error_op"""
        )
        return [FailureGroup(*row) for row in rows]


def calls_by_name(path: Path) -> list[CallGroup]:
    """Models and tools, by kind and name."""
    with reading(path) as connection:
        rows = connection.execute(
            """SELECT kind, name, count(*), count(error), avg(end_s - start_s),
                max(end_s - start_s)
            FROM (
                SELECT kind, name, error, start_s, end_s FROM calls
                UNION ALL SELECT kind, name, error, start_s, end_s FROM failed_calls
            )
            GROUP BY kind, name ORDER BY kind, name"""
        )
        return [CallGroup(*row) for row in rows]


def slowest_calls(path: Path, limit: int = 10) -> list[SlowCall]:
    """The longest calls, longest first."""
    fields = "kind, name, op, query, row_key, path, end_s - start_s AS seconds, error"
    with reading(path) as connection:
        rows = connection.execute(
            f"SELECT {fields} FROM calls UNION ALL SELECT {fields} FROM failed_calls "
            "ORDER BY seconds DESC, name, row_key LIMIT ?",
            (limit,),
        )
        return [SlowCall(*row) for row in rows]
