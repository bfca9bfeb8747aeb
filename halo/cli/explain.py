"""`halo explain`: a plan before the run, or beside what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halo.analyze import explain_analyze
from halo.cli.run import prepare
from halo.config import load_config
from halo.errors import WorkflowError
from halo.session import Session


def explain(
    flows: list[str],
    rows: str | None,
    *,
    analyze: Path | None,
    stage: str,
    format: str,
    verbose: bool,
    config_file: Path | None,
    flags: dict[str, Any],
    sample: int = 0,
    kv_tokens: int | None = None,
) -> int:
    """Print the plan; returns the exit code."""
    if analyze is not None:
        print(explain_analyze(analyze, format=format, verbose=verbose))
        return 0
    if not flows or rows is None:
        raise WorkflowError("halo explain needs FLOW and --input ROWS, or --analyze DIR")
    config, _ = load_config(flags, file=config_file)
    with Session(config) as session:
        prepared = prepare(session, flows, rows)
        if sample:
            prepared = session.learn(prepared, sample)
        print(session.explain_prepared(prepared, stage=stage, format=format, verbose=verbose))
        if kv_tokens is not None:
            print(session.explain_prefixes(prepared, kv_tokens))
    return 0
