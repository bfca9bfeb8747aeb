"""Tables that statements write: what is wrong with one is told before any call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import halo
from halo.ai_sql.batch import SqlBatch, SqlOptions
from halo.ai_sql.errors import SqlError
from halo.session import Session

ASKING = "SELECT id, AI_SCORE('Urgent? {body}') AS s FROM mail"
MAIL_IDS: list[dict[str, object]] = [{"id": 1}, {"id": 2}]
MAIL = [{"id": 1, "body": "late"}, {"id": 2, "body": "broken"}]


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    path = tmp_path / "shop.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE t (id INTEGER, s DOUBLE); CREATE VIEW v AS SELECT 1 AS a")
    with Session(engine="simulated", db=path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"CREATE TABLE t AS {ASKING}", "there is a table 't' already"),
        (f"CREATE TABLE v AS {ASKING}", "there is a table 'v' already"),
        (f"INSERT INTO tt {ASKING}", r"no table 'tt'. Did you mean 't'"),
        (f"INSERT INTO t SELECT id FROM ({ASKING})", "2 columns but 1 values"),
        (f"INSERT INTO t BY NAME SELECT s AS score FROM ({ASKING})", "score"),
    ],
)
def test_a_wrong_target(session: Session, text: str, reason: str) -> None:
    with pytest.raises(SqlError, match=reason):
        SqlBatch(text, session, SqlOptions(tables={"mail": MAIL}))


@pytest.mark.parametrize(
    ("text", "calls", "written"),
    [
        (f"CREATE OR REPLACE TABLE t AS {ASKING}", 2, 2),
        (f"CREATE TABLE IF NOT EXISTS t AS {ASKING}", 0, 0),
        (f"CREATE TABLE IF NOT EXISTS u AS {ASKING}", 2, 2),
        (f"CREATE TEMP TABLE t AS {ASKING}", 2, 2),
        (f"INSERT INTO t {ASKING}", 2, 2),
        (f"INSERT INTO t (id) SELECT id FROM ({ASKING}) WHERE s >= 0", 2, 2),
    ],
)
def test_a_right_target(session: Session, text: str, calls: int, written: int) -> None:
    with SqlBatch(text, session, SqlOptions(tables={"mail": MAIL})) as batch:
        (result,) = batch.run()
        assert result.written == written and not batch.failures
        assert batch.runs[0].summary()["calls"]["made"] == calls


def test_a_table_in_memory_that_nothing_reads_draws_a_warning() -> None:
    options = SqlOptions(tables={"mail": MAIL})
    with Session(engine="simulated") as session:
        with SqlBatch(f"CREATE TABLE t AS {ASKING}", session, options) as batch:
            assert any("--db FILE" in warning for warning in batch.warnings)
        text = f"CREATE TABLE t AS {ASKING}; SELECT max(s) FROM t"
        with SqlBatch(text, session, options) as batch:
            assert not batch.warnings


@pytest.mark.parametrize(
    "text",
    [
        f"CREATE TABLE u AS {ASKING}; SELECT * FROM u",
        f"CREATE TABLE IF NOT EXISTS u AS {ASKING}; SELECT * FROM u",
        f"INSERT INTO t {ASKING}; SELECT * FROM t",
        f"INSERT INTO t {ASKING}; INSERT INTO t SELECT 3, 3; SELECT * FROM t WHERE id < 3",
    ],
)
def test_a_run_that_goes_on_finds_what_it_has_written(
    session: Session, tmp_path: Path, text: str
) -> None:
    for resume in (False, True):
        result = halo.sql(
            text, tables={"mail": MAIL}, out=tmp_path / "run", resume=resume, session=session
        )
        assert [row["id"] for row in result] == [1, 2]
        assert result.batch[0].written == 2


def test_results_that_are_kept_do_not_keep_the_file(session: Session, tmp_path: Path) -> None:
    made = halo.sql(f"CREATE TABLE u AS {ASKING}", tables={"mail": MAIL}, session=session)
    first = halo.sql("SELECT id FROM u ORDER BY id", session=session)
    second = halo.sql("SELECT count(*) AS n FROM u", session=session)
    with duckdb.connect(tmp_path / "shop.duckdb") as connection:
        assert connection.execute("SELECT count(*) FROM u").fetchall() == [(2,)]
    assert made.written == 2
    assert list(first) == MAIL_IDS and first.relation.fetchall() == [(1,), (2,)]
    assert list(second) == [{"n": 2}]
