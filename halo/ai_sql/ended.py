"""Parts of a batch that had ended when it was interrupted: what they gave, from their directories.

What a part has read may have been written by the next one since. To run it again would give other
rows, and make calls for them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from halo.ai_sql.access import OpenDatabase
from halo.ai_sql.documents import sql_text
from halo.ai_sql.results import QueryResult, RowFailure
from halo.ai_sql.types import quoted
from halo.planning import Prepared
from halo.result import RunResult
from runtime.journal_reader import read_outcomes
from runtime.run_directory import RunDirectory

ERRORS = "halo_errors.jsonl"
"""The file of calls without an answer."""


def part_directory(out: Path, number: int) -> Path:
    """Where part `number` of a batch in several parts has its run."""
    return out / f"part{number}"


def has_begun(directory: Path) -> bool:
    """Whether there is a run in a directory."""
    return (directory / "manifest.json").exists()


def kept_identity(out: Path) -> str:
    """What tells the writes of the batch in `out` from those of others; empty before it began."""
    first = part_directory(out, 1)
    begun = first if has_begun(first) else out
    return str(RunDirectory.open(begun).manifest.get("run_id", "")) if has_begun(begun) else ""


def ended_run(prepared: Prepared, directory: Path) -> RunResult:
    """The outcomes of a run that has ended, as of a process that made no call."""
    journal = RunDirectory.open(directory).journal
    names = [name for name, _ in prepared.plan.logical.outputs]
    outcomes = {name: list(read_outcomes(journal, name)) for name in names}
    return RunResult(
        outcomes, prepared.plan, prepared.stats, metrics={},
        rows_total=sum(map(len, outcomes.values())), elapsed_s=0.0, run_clock_s=0.0, cpu_s=0.0,
        warmed_tokens=0, out=directory,
    )  # fmt: skip


def take_back(results: Sequence[QueryResult], directory: Path, database: OpenDatabase) -> None:
    """Put the rows and the errors that a run has exported into its results again."""
    lines = (directory / ERRORS).read_text("utf-8").splitlines()
    failures = [RowFailure(**json.loads(line)) for line in lines]
    for result in results:
        result.errors = [each for each in failures if each.query == result.name]
        if result.written is None:
            _take_rows(result, directory / "results" / f"{result.name}.parquet", database)


def _take_rows(result: QueryResult, file: Path, database: OpenDatabase) -> None:
    # DuckDB may read nothing but what the statements name, and its own directory.
    aside = database.scratch / file.name
    shutil.copyfile(file, aside)
    columns = ", ".join(
        # A type in quotes is one of a name: a user's, or that of NULL.
        quoted(name)
        if kind.startswith('"')
        else f"CAST({quoted(name)} AS {kind}) AS {quoted(name)}"
        for name, kind in zip(result.columns, result.types, strict=True)
    )
    database.running.execute(
        f"CREATE OR REPLACE TABLE {result.table} AS "
        f"SELECT {columns} FROM read_parquet({sql_text(str(aside))})"
    )
    aside.unlink()
