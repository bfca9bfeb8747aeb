"""Many rows with few distinct inputs cost few calls and little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import duckdb

from halo.ai_sql.batch import SqlBatch
from halo.session import Session


def test_rows_stay_in_duckdb(tmp_path: Path) -> None:
    path = tmp_path / "big.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute(
            "CREATE TABLE big AS SELECT i AS id, 'text ' || (i % 50) || repeat('x', 200) AS t "
            "FROM range(20000) r(i)"
        )
    text = "SELECT id, AI_CLASSIFY(t, ['a', 'b']) AS k FROM big"
    with Session(engine="simulated", db=path) as session, SqlBatch(text, session) as batch:
        tracemalloc.start()
        (result,) = batch.run()
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(result) == 20_000
        assert result.run.summary()["calls"]["made"] == 50
    # The rows themselves, as Python objects, would take some 8 MB.
    assert peak_bytes < 4_000_000
