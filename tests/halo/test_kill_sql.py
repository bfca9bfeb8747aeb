"""A run whose queries are shared by what they make of their parameters, killed and resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import duckdb

SCRIPT = "sql_run.py"
FILES = ("results.jsonl", "results.parquet", "errors.jsonl", "plan.json")
YEARS = 7
QUERIES_AT_ONCE = 4


def test_killed_runs_end_as_if_undisturbed(tmp_path: Path, run_until: Callable[..., bool]) -> None:
    database = tmp_path / "sales.db"
    with duckdb.connect(database) as connection:
        connection.execute(
            "CREATE TABLE sales AS SELECT 1990 + i % 9 AS year, 'r' || i % 5 AS region "
            "FROM range(60) AS r(i)"
        )
    assert run_until(None, SCRIPT, tmp_path / "whole", tmp_path / "whole.log", database)
    assert sorted((tmp_path / "whole.log").read_text().split()) == [
        str(1990 + i) for i in range(YEARS)
    ]
    run, log = tmp_path / "run", tmp_path / "run.log"
    for queries in (5, 1, None):
        assert run_until(queries, SCRIPT, run, log, database) == (queries is None)
    for name in FILES:
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    asked = Counter(log.read_text().split())
    assert len(asked) == YEARS
    # A kill repeats at most the queries that were under way.
    assert sum(asked.values()) <= YEARS + 2 * QUERIES_AT_ONCE
