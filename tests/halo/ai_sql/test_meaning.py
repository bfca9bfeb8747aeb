"""What statements mean: nulls, errors, sharing, sampling, limits, writes, settings, parameters."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from query_maker import QueryMaker

from halo.ai_sql.batch import SqlBatch, SqlOptions
from halo.ai_sql.errors import SqlError
from halo.ai_sql.results import QueryResult
from halo.session import Session


@pytest.fixture
def session(database: Path, tmp_path: Path) -> Iterator[Session]:
    path = tmp_path / "shop.duckdb"
    shutil.copy(database, path)
    with Session(engine="simulated", db=path) as opened:
        yield opened


def run(session: Session, text: str, options: SqlOptions | None = None) -> list[QueryResult]:
    """The results of a batch; rows are read before its database is closed."""
    with SqlBatch(text, session, options) as batch:
        results = batch.run()
        if batch.failures:
            raise batch.failures[0]
        for result in results:
            result.read = list(result)  # type: ignore[attr-defined]
        return results


def rows(session: Session, text: str, options: SqlOptions | None = None) -> list[dict[str, object]]:
    return run(session, text, options)[-1].read  # type: ignore[attr-defined,no-any-return]


def calls(results: list[QueryResult]) -> int:
    return int(results[0].run.summary()["calls"]["made"])


def test_a_null_input_gives_null_and_no_call(session: Session) -> None:
    (result,) = run(session, "SELECT AI_COMPLETE(PROMPT('x {0}', CAST(NULL AS VARCHAR))) AS a")
    assert result.read == [{"a": None}]  # type: ignore[attr-defined]
    assert calls([result]) == 0


def test_a_constant_prompt_is_one_call_and_none_over_no_rows(session: Session) -> None:
    assert calls(run(session, "SELECT id, AI_COMPLETE('Say hello') FROM reviews")) == 1
    assert calls(run(session, "SELECT AI_COMPLETE('Say hello') FROM reviews WHERE false")) == 0


def test_every_row_is_in_one_of_three_parts(session: Session, database: Path) -> None:
    """rows(p) + rows(not p) + rows(p is null) = all rows, for predicates made at random."""
    maker = QueryMaker(99)
    predicates = [
        maker.filter() if i % 2 else f"({maker.cheap()} OR {maker.filter()})" for i in range(20)
    ]
    text = ";".join(
        f"SELECT id FROM reviews WHERE {p}; SELECT id FROM reviews WHERE NOT ({p}); "
        f"SELECT id FROM reviews WHERE ({p}) IS NULL"
        for p in predicates
    )
    results = run(session, text)
    for i in range(len(predicates)):
        parts = [r.read for r in results[3 * i : 3 * i + 3]]  # type: ignore[attr-defined]
        ids = sorted(row["id"] for part in parts for row in part)
        assert ids == list(range(60)), predicates[i]


CUT = "AI_COMPLETE('{body}?', returns := 'STRUCT(a VARCHAR, b VARCHAR)', max_tokens := 2{more})"


def test_a_failed_call_is_null_and_an_entry(session: Session) -> None:
    (result,) = run(session, f"SELECT id, {CUT.format(body='{body}', more='')} AS x FROM reviews")
    found = result.read  # type: ignore[attr-defined]
    assert len(found) == 60 and all(row["x"] is None for row in found)
    distinct = {failure.key for failure in result.errors}
    assert len(distinct) == len(result.errors) > 5
    assert {f.error_class for f in result.errors} == {"OutputTypeError"}
    assert {f.function for f in result.errors} == {"AI_COMPLETE"}


def test_errors_in_detail(session: Session) -> None:
    call = CUT.format(body="{body}", more=", on_error := 'detail'")
    found = rows(session, f"SELECT r.value AS v, r.error AS e FROM (SELECT {call} AS r "
                          "FROM reviews WHERE body IS NOT NULL)")  # fmt: skip
    assert all((row["v"] is None and "does not fit" in str(row["e"])) or "cut" in str(row["e"])
               for row in found)  # fmt: skip
    good = "AI_CLASSIFY(body, ['a', 'b'], on_error := 'detail')"
    found = rows(session, f"SELECT r.value AS v, r.error AS e FROM (SELECT {good} AS r FROM reviews"
                          " WHERE body IS NOT NULL)")  # fmt: skip
    assert {row["e"] for row in found} == {None} and {row["v"] for row in found} <= {"a", "b"}


def test_a_statement_may_fail_for_one_error(session: Session) -> None:
    call = CUT.format(body="{body}", more=", on_error := 'fail'")
    with SqlBatch(f"SELECT {call} FROM reviews; SELECT 1 AS one", session) as batch:
        results = batch.run()
        (failure,) = batch.failures
        assert failure.code == "S500" and "statement 1" in str(failure)
        assert [list(result) for result in results] == [[{"one": 1}]]


def test_an_error_is_never_an_answer(session: Session) -> None:
    """A filter that fails is neither true nor false."""
    call = "AI_COMPLETE('{body}', returns := 'BOOLEAN', max_tokens := 1)"
    text = f"SELECT id FROM reviews WHERE {call}; SELECT id FROM reviews WHERE NOT {call}"
    results = run(session, text)
    assert [r.read for r in results] == [[], []]  # type: ignore[attr-defined]


def test_equal_calls_of_a_batch_are_made_once(session: Session) -> None:
    one = "SELECT id FROM reviews WHERE AI_FILTER('Good? {body}')"
    alone = calls(run(session, one))
    batch = (
        f"{one}; SELECT count(*) FROM reviews r WHERE AI_FILTER(PROMPT('Good? {{0}}', r.body)); "
        "SELECT lang, AI_FILTER('Good? {body}') AS g FROM reviews WHERE stars = 1"
    )
    assert calls(run(session, batch)) == alone


def test_sampled_calls_are_shared_within_a_statement_and_not_between(session: Session) -> None:
    call = "AI_COMPLETE('Name {lang}', temperature := 0.9)"
    both = f"SELECT lang, {call} AS a, {call} AS b FROM reviews"
    found = rows(session, both)
    assert all(row["a"] == row["b"] for row in found)
    by_lang = {(row["lang"], row["a"]) for row in found}
    assert len(by_lang) == 3
    two = run(session, f"SELECT lang, {call} AS a FROM reviews; SELECT lang, {call} AS a "
                       "FROM reviews")  # fmt: skip
    first, second = ({(r["lang"], r["a"]) for r in x.read} for x in two)  # type: ignore[attr-defined]
    assert not first & second and calls(two) == 6


def test_a_sampled_call_in_two_clauses_is_one_call(session: Session) -> None:
    """Rule 2 wins over the effect of sampled calls within a statement: a call is a function of its
    arguments there, wherever it is written."""
    call = "AI_COMPLETE('Name {lang}', temperature := 0.9)"
    text = f"SELECT lang, {call} AS a FROM reviews WHERE stars > 1 AND length({call}) > 0"
    results = run(session, text)
    assert calls(results) == 3


def test_a_fresh_answer_for_each_row(session: Session) -> None:
    call = "AI_COMPLETE('Name {lang}', temperature := 0.9, sample := 'per_row')"
    found = rows(session, f"SELECT id, {call} AS a FROM reviews")
    assert len({row["a"] for row in found}) == 60


def test_limit_stops_early(session: Session) -> None:
    full = calls(run(session, "SELECT id FROM reviews WHERE AI_FILTER('{id}: good? {title}')"))
    few = run(session, "SELECT id FROM reviews WHERE AI_FILTER('{id}: good? {title}') LIMIT 3")
    assert len(few[0].read) == 3  # type: ignore[attr-defined]
    assert full == 60 and calls(few) <= 16
    off = SqlOptions(off=["slice-limits"])
    text = "SELECT id FROM reviews WHERE AI_FILTER('{id}: good? {title}') LIMIT 3"
    assert calls(run(session, text, off)) == 60


def test_projections_are_asked_for_the_rows_of_the_limit(session: Session) -> None:
    text = "SELECT id, AI_COMPLETE('{id}') AS c FROM reviews ORDER BY id LIMIT 4"
    assert calls(run(session, text)) == 4
    assert calls(run(session, "SELECT id, AI_COMPLETE('{id}') AS c FROM reviews LIMIT 4")) == 4


def test_create_insert_and_copy(session: Session, tmp_path: Path) -> None:
    text = f"""
        CREATE TABLE labels AS SELECT id, AI_CLASSIFY(body, ['a', 'b']) AS k FROM reviews;
        INSERT INTO labels SELECT id + 1000, AI_CLASSIFY(body, ['a', 'b']) FROM reviews;
        COPY (SELECT id, AI_SCORE('U {{body}}') AS s FROM reviews) TO '{tmp_path}/s.csv'
            (FORMAT csv, HEADER);
        SELECT count(*) AS n, count(k) AS k FROM labels"""
    results = run(session, text)
    assert [result.written for result in results] == [60, 60, 60, None]
    assert results[-1].read[0]["n"] == 120  # type: ignore[attr-defined]
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 61
    db = session.config.db
    assert db is not None
    with duckdb.connect(db, read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM labels").fetchall() == [(120,)]


@pytest.mark.parametrize(
    "write",
    [
        "INSERT INTO todo SELECT id + 100 FROM todo",
        "CREATE OR REPLACE TABLE todo AS SELECT 7 AS id",
        "COPY (SELECT 8 AS id) TO '{file}'",
    ],
)
def test_a_statement_sees_nothing_of_what_comes_after_it(
    session: Session, tmp_path: Path, write: str
) -> None:
    assert session.config.db is not None
    with duckdb.connect(session.config.db) as connection:
        connection.execute("CREATE VIEW open_todo AS SELECT * FROM todo")
    file = tmp_path / "todo.csv"
    for source in ("open_todo", f"'{file}'") if "COPY" in write else ("todo", "open_todo"):
        file.write_text("id\n0\n2\n4\n6\n8\n")
        text = f"SELECT id, AI_COMPLETE('{{id}}') IS NULL AS unanswered FROM {source} ORDER BY id"
        first, *_ = run(session, f"{text}; {write.format(file=file)}")
        assert first.read == [  # type: ignore[attr-defined]
            {"id": i, "unanswered": False} for i in range(0, 10, 2)
        ]
        with duckdb.connect(session.config.db) as connection:
            connection.execute(
                "CREATE OR REPLACE TABLE todo AS SELECT 2 * i AS id FROM range(5) t(i)"
            )


def test_a_file_that_is_there_is_replaced_by_copy(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    file.write_text("s\n1\n2\n")
    copied, read = run(
        session, f"COPY (SELECT AI_SCORE('x') AS s) TO '{file}'; SELECT count(s) AS n FROM '{file}'"
    )
    assert copied.written == 1 and read.read == [{"n": 1}]  # type: ignore[attr-defined]


def test_parameters_are_values(session: Session) -> None:
    hostile = "x'; DROP TABLE reviews; --"
    options = SqlOptions(parameters={"word": hostile, "n": 3, "none": None, "ids": [1, 2]})
    text = ("SELECT $word AS w, id FROM reviews WHERE id < $n AND $none IS NULL "
            "AND id IN (SELECT unnest($ids)) AND AI_FILTER(PROMPT('Is it {0}? {1}', $word, id)) "
            "IS NOT NULL")  # fmt: skip
    found = rows(session, text, options)
    assert [(row["w"], row["id"]) for row in found] == [(hostile, 1), (hostile, 2)]
    with pytest.raises(SqlError, match=r"names \$word"):
        run(session, "SELECT $word")
    with pytest.raises(SqlError, match="'extra' is not used"):
        run(session, "SELECT 1", SqlOptions(parameters={"extra": 1}))


def test_settings_are_defaults(session: Session) -> None:
    (result,) = run(session, "SET ai_model = 'other'; SELECT AI_COMPLETE('x') AS a")
    assert list(result.run.engine_requests) == ["simulated:other"]
    with SqlBatch("SET ai_on_error = 'fail'; SELECT " + CUT.format(body="{body}", more="")
                  + " FROM reviews", session) as batch:  # fmt: skip
        batch.run()
        assert batch.failures


def test_tables_may_be_given(session: Session) -> None:
    import pandas
    import polars

    given = [{"text": "a", "n": 1}, {"text": "b", "n": None}]
    for table in (given, pandas.DataFrame(given), polars.DataFrame(given)):
        options = SqlOptions(tables={"mine": table})
        found = rows(session, "SELECT text, AI_SCORE('U {text}') AS s FROM mine", options)
        assert [row["text"] for row in found] == ["a", "b"]


def test_errors_of_the_batch_before_are_a_table(session: Session) -> None:
    (result,) = run(session, f"SELECT {CUT.format(body='{body}', more='')} FROM reviews")
    options = SqlOptions(errors=result.errors)
    text = "SELECT function, error_class, count(*) AS n FROM halo_errors GROUP BY ALL"
    assert rows(session, text, options) == [
        {"function": "AI_COMPLETE", "error_class": "OutputTypeError", "n": len(result.errors)}
    ]


def test_explain_makes_no_call_and_counts_the_harvest(session: Session) -> None:
    with SqlBatch("EXPLAIN SELECT AI_SCORE('U {lang}') FROM reviews", session) as batch:
        (plan,) = batch.explanations()
        assert batch.run() == [] and not batch.runs
    assert "est. 3 calls for 3 uses" in plan
    forms = {"json": "{", "mermaid": "flowchart", "graphviz": "digraph", "html": "<"}
    for name, start in forms.items():
        text = f"EXPLAIN (FORMAT {name}) SELECT AI_SCORE('U {{lang}}') FROM reviews"
        with SqlBatch(text, session) as batch:
            assert (
                start in batch.explanations()[0][:200].lower() or start in batch.explanations()[0]
            )


def test_explain_analyze_shows_estimate_beside_actual(session: Session) -> None:
    with SqlBatch("EXPLAIN ANALYZE SELECT AI_SCORE('U {lang}') FROM reviews", session) as batch:
        batch.run()
        (analysis,) = batch.analyses()
    assert "actual 3  est. 3" in analysis


def test_prompts_share_their_instruction_and_come_in_order(session: Session) -> None:
    """Rows that share the first argument stand together, whatever the order of the table."""
    text = ("SELECT AI_FILTER(PROMPT('Compare {0} with {1}', p.clause, c.text)) AS f "
            "FROM claims c, policies p")  # fmt: skip
    with SqlBatch(text, session) as batch:
        harvest = next(op for op in batch.compiled[0].plan.walk() if op.kind == "SqlRows")
        found = batch.database.planning.execute(harvest.text).fetchall()  # type: ignore[attr-defined]
    assert found == sorted(found)
