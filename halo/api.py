"""`halo.run` and `halo.explain`: a session for one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halo.flow import Flow
from halo.queries import Batch
from halo.result import RunResult
from halo.session import Session


def run(
    flow: Flow | Batch,
    rows: Any = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    session: Session | None = None,
    **settings: Any,
) -> RunResult:
    """Run a workflow over rows, or several as one merged batch.

    `rows` is a path or glob (`.jsonl`, `.json`, `.csv`, `.parquet`, documents), a list of mappings
    or pydantic models, or a data frame. A batch is a list of (workflow, rows) pairs. `out` names a
    run directory, which makes the run resumable (`resume=True` continues it). Further keywords are
    settings of `Session` (`engine=`, `model=`, `seed=`, `db=`, ...).

    A failing row does not raise: it is in `result.errors`.
    """
    if session is not None:
        return session.run(flow, rows, out=out, resume=resume)
    with Session(**settings) as own:
        return own.run(flow, rows, out=out, resume=resume)


def explain(
    flow: Flow | Batch,
    rows: Any = None,
    *,
    stage: str = "physical",
    format: str = "text",
    verbose: bool = False,
    session: Session | None = None,
    **settings: Any,
) -> str:
    """The plan of a run with its estimates, without running it. Stages: bound, merged, optimized,
    physical; formats: text, json, mermaid, dot, html."""
    if session is not None:
        return session.explain(flow, rows, stage=stage, format=format, verbose=verbose)
    with Session(**settings) as own:
        return own.explain(flow, rows, stage=stage, format=format, verbose=verbose)
