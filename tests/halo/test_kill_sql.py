"""A run whose queries are shared by what they make of their parameters, killed and resumed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb

SCRIPT = Path(__file__).parents[1] / "fixtures" / "runs" / "sql_run.py"
FILES = ("results.jsonl", "results.parquet", "errors.jsonl", "plan.json")
YEARS = 7
QUERIES_AT_ONCE = 4


def run_until(directory: Path, log: Path, database: Path, queries: int | None) -> None:
    """Run, and kill after so many queries; never, for None."""
    child = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(directory), str(log), str(database)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stderr is not None
    with child:
        if queries is not None:
            assert len(child.stdout.read(queries)) == queries
            child.kill()
            return
        _, errors = child.communicate()
    assert child.returncode == 0, errors.decode()


def test_killed_runs_end_as_if_undisturbed(tmp_path: Path) -> None:
    database = tmp_path / "sales.db"
    with duckdb.connect(database) as connection:
        connection.execute(
            "CREATE TABLE sales AS SELECT 1990 + i % 9 AS year, 'r' || i % 5 AS region "
            "FROM range(60) AS r(i)"
        )
    run_until(tmp_path / "whole", tmp_path / "whole.log", database, None)
    assert sorted((tmp_path / "whole.log").read_text().split()) == [
        str(1990 + i) for i in range(YEARS)
    ]
    run, log = tmp_path / "run", tmp_path / "run.log"
    run_until(run, log, database, 5)
    run_until(run, log, database, 1)
    run_until(run, log, database, None)
    for name in FILES:
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    asked = Counter(log.read_text().split())
    assert len(asked) == YEARS
    # A kill repeats at most the queries that were under way.
    assert sum(asked.values()) <= YEARS + 2 * QUERIES_AT_ONCE
