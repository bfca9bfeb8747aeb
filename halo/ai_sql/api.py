"""`halo.sql(...)` outside a workflow: run a batch now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halo.ai_sql.batch import SqlBatch, SqlOptions
from halo.ai_sql.results import QueryResult
from halo.flow import Flow
from halo.session import Session, default_session


def run_sql(
    text: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    tables: Mapping[str, Any] | None = None,
    workflows: Sequence[Flow] = (),
    allow: Sequence[str | Path] = (),
    out: str | Path | None = None,
    resume: bool = False,
    off: Sequence[str] = (),
    on: Sequence[str] = (),
    sample: int = 0,
    session: Session | None = None,
) -> QueryResult:
    """Run a batch of SQL and return the result of its last statement; `batch` of it has all.

    The rows stay in DuckDB, in memory, as long as its results are referred to. Raises `SqlError`.
    """
    options = SqlOptions(
        parameters=dict(parameters or {}),
        tables=dict(tables or {}),
        workflows=tuple(workflows),
        allow=tuple(Path(each) for each in allow),
        off=tuple(off),
        on=tuple(on),
        sample=sample,
        resumed=resume,
    )
    batch = SqlBatch(text, session or default_session(), options)
    try:
        results = batch.run(out=Path(out) if out is not None else None, resume=resume)
        if batch.failures:
            raise batch.failures[0]
        if not results:
            raise batch.nothing_to_return()
        # Results are kept for as long as somebody likes; the file is for the next batch.
        batch.database.release()
    except BaseException:
        batch.close()
        raise
    for result in results:
        result.batch = results
    return results[-1]
