"""What is refused: by name, with the reason, with the place in the text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import halo
from halo.ai_sql.batch import SqlBatch, SqlOptions
from halo.ai_sql.errors import SqlError, SqlRefusedError
from halo.session import Session


@pytest.fixture(scope="module")
def session(database: Path) -> Iterator[Session]:
    with Session(engine="simulated", db=database) as opened:
        yield opened


WRONG: list[tuple[str, str, str, str]] = [
    ("S001", "SELECT 1 FORM t", "syntax error", "t"),
    ("S001", "SELECT id FROM reviews WHERE (AI_FILTER('x')", "syntax error", ""),
    ("S002", "DROP TABLE reviews", "DROP is no statement", "DROP"),
    ("S002", "SELECT 1; UPDATE reviews SET id = 1", "UPDATE is no statement", "UPDATE"),
    ("S002", "ATTACH 'x.db'", "ATTACH is no statement", "ATTACH"),
    ("S002", "INSTALL httpfs", "INSTALL is no statement", "INSTALL"),
    ("S002", "PRAGMA version", "PRAGMA is no statement", "PRAGMA"),
    ("S002", "SET threads = 9", "Halo's own settings", "SET"),
    ("S002", "COPY reviews FROM 'x.csv'", "COPY is no statement", "COPY"),
    ("S003", "SELECT AI_SCORE('x {bdy}') FROM reviews", "bdy", "bdy"),
    ("S003", "SELECT AI_SCORE(body) FROM revews", "revews", "revews"),
    ("S003", "SELECT * FROM revews", "Did you mean 'reviews'", "revews"),
    ("S002", "SHOW TABLES", "information_schema.tables", "SHOW"),
    ("S101", "SELECT AI_FILTR(body) FROM reviews", "Did you mean 'ai_filter'", "AI_FILTR"),
    ("S102", "SELECT AI_SCORE(body, modle := 'x') FROM reviews", "Did you mean 'model'", "modle"),
    ("S102", "SELECT AI_SCORE(body, returns := 'INT') FROM reviews", "means nothing", "returns"),
    ("S102", "EXPLAIN (FORMAT xml) SELECT 1", "no option or format 'xml'", "EXPLAIN"),
    ("S102", "SET ai_modle = 'x'", "Did you mean 'ai_model'", "SET"),
    ("S103", "SELECT AI_SCORE(body, temperature := 9) FROM reviews", "between 0 and 2", "9"),
    ("S103", "SELECT AI_SCORE(body, model := lang) FROM reviews", "must be a literal", "lang"),
    ("S103", "SELECT AI_SCORE(body, on_error := 'skip') FROM reviews", "one of 'null'", "'skip'"),
    ("S103", "SELECT AI_COMPLETE(body, returns := 'NUMBR') FROM reviews", "not a DuckDB", "'NUM"),
    ("S103", "SELECT AI_FILTER(body, recall := 0.9) FROM reviews", "target of a cascade", "0.9"),
    ("S103", "SELECT AI_FILTER(body, cascade := 'small') FROM reviews", "two models", "'small'"),
    ("S103", "SELECT AI_SCORE(body, max_tokens := 1.5) FROM reviews", "a whole number", "1.5"),
    ("S103", "SELECT AI_SCORE(body, max_tokens := 0) FROM reviews", "between 1 and 1,000,000", "0"),
    ("S103", "SELECT AI_COMPLETE(body, returns := 'INTGER') FROM reviews",
     "Did you mean 'INTEGER'", "'INTGER'"),
    ("S103", "SET ai_on_error = 'detial'", "one of 'null'", "SET"),
    ("S103", "SET ai_max_tokens = 1.5", "a whole number", "SET"),
    ("S104", "SELECT AI_FILTER() FROM reviews", "needs prompt", "AI_FILTER"),
    ("S104", "SELECT AI_SCORE(body, lang) FROM reviews", "takes 1 arguments", "lang"),
    ("S104", "SELECT AI_FILTER(PROMPT('x {1}', body)) FROM reviews", "names {1}", "'x {1}'"),
    ("S104", "SELECT AI_FILTER(PROMPT('x', body)) FROM reviews", "does not use {0}", "body"),
    ("S105", "SELECT AI_CLASSIFY(body, ['a']) FROM reviews", "two different labels", "'a'"),
    ("S105", "SELECT AI_CLASSIFY(body, [lang]) FROM reviews", "list of literals", "lang"),
    ("S105", "SELECT AI_EXTRACT(body, {'a': 1}) FROM reviews", "field 'a'", "1"),
    ("S105", "SELECT AI_FILTER(PROMPT(body)) FROM reviews", "literal text", "body"),
    ("S107", "SELECT AI_RUN('nothing', body) FROM reviews", "no workflow 'nothing'", "'nothing'"),
    ("S200", "SELECT id FROM reviews LIMIT AI_SCORE('x')", "LIMIT", "AI_SCORE"),
    ("S201", "SELECT string_agg(body, ',' ORDER BY AI_SCORE(body)) FROM reviews",
     "aggregate's ORDER BY", "AI_SCORE"),
    ("S201", "SELECT AI_AGG(body, 'x' ORDER BY AI_SCORE(body)) FROM reviews",
     "aggregate's ORDER BY", "AI_SCORE"),
    ("S202", "SELECT list_transform([body], lambda x: AI_SCORE(x)) FROM reviews", "lambda",
     "AI_SCORE"),
    ("S203", "SELECT AI_AGG(body, 'x') OVER () FROM reviews", "window function", "AI_AGG"),
    ("S203", "SELECT AI_SCORE(lag(body) OVER (ORDER BY id)) FROM reviews", "window function",
     "AI_SCORE"),
    ("S204", "SELECT * FROM AI_COMPLETE('x')", "no table", "AI_COMPLETE"),
    ("S205", "SELECT AI_AGG(DISTINCT body, 'x') FROM reviews", "DISTINCT", "body"),
    ("S206", "WITH RECURSIVE r AS (SELECT 1 AS n, 'a' AS t UNION ALL SELECT n + 1, "
     "AI_COMPLETE(t) FROM r WHERE n < 3) SELECT * FROM r", "recursive", "AI_COMPLETE"),
    ("S207", "SELECT AI_SCORE(CAST(random() AS VARCHAR)) FROM reviews", "differently each time",
     "AI_SCORE"),
    ("S207", "SELECT id FROM reviews WHERE AI_FILTER(body, sample := 'per_row')", "select list",
     "AI_FILTER"),
    ("S208", "SELECT body FROM reviews UNION SELECT title FROM reviews ORDER BY AI_SCORE(body)",
     "UNION", "AI_SCORE"),
    ("S004", "SELECT ?", "positional parameter", ""),
]  # fmt: skip


@pytest.mark.parametrize(("code", "text", "reason", "at"), WRONG)
def test_wrong_statements(session: Session, code: str, text: str, reason: str, at: str) -> None:
    with pytest.raises(SqlError) as raised, SqlBatch(text, session):
        pass
    error = raised.value
    assert error.code == code, error
    assert reason in str(error)
    if at and code not in ("S001",):
        line, caret = str(error).split("\n")[-2:]
        assert line[caret.index("^") :].startswith(at), str(error)


def test_positions_are_those_of_the_whole_text(session: Session) -> None:
    text = "SELECT 1;\n\nSELECT id,\n  AI_SCORE(body, modle := 'x')\nFROM reviews"
    with pytest.raises(SqlError) as raised, SqlBatch(text, session):
        pass
    assert (raised.value.line, raised.value.column) == (4, 18)


def test_refused_statements_are_told_from_wrong_ones(session: Session) -> None:
    with pytest.raises(SqlRefusedError), SqlBatch("DELETE FROM reviews", session):
        pass


def test_unknown_models_and_rules_are_named(database: Path) -> None:
    options = SqlOptions(off=["limit-harvst"])
    with (
        Session(engine="simulated", db=database) as session,
        pytest.raises(SqlError, match=r"S005.*limit-harvest"),
    ):
        SqlBatch("SELECT 1", session, options)


def test_a_workflow_that_keeps_some_rows_is_no_function(session: Session) -> None:
    @halo.workflow(where=lambda question: question != "x", limit=1)
    def some(question: str) -> str:
        return halo.Model("m").gen(f"Answer: {question}")

    text = "SELECT AI_RUN('some', body) AS a FROM reviews"
    with pytest.raises(SqlError, match=r"S107.*'some' has where or a limit"):
        SqlBatch(text, session, SqlOptions(workflows=[some]))


def test_a_batch_that_is_refused_has_asked_nothing(session: Session) -> None:
    text = "SELECT AI_SCORE(body) FROM reviews; SELECT AI_SCORE(nope) FROM reviews"
    with pytest.raises(SqlError), SqlBatch(text, session):
        pass
    assert not session._engines.opened


def test_a_field_that_is_nearly_a_type_draws_a_warning(session: Session) -> None:
    text = "SELECT AI_EXTRACT(body, {{'a': '{}'}}) FROM reviews"
    with SqlBatch(text.format("INTGER"), session) as batch:
        assert any("Did you mean 'INTEGER'" in warning for warning in batch.warnings)
    with SqlBatch(text.format("Who wrote it?"), session) as batch:
        assert not batch.warnings


def test_the_overlap_of_small_chunks_is_small(session: Session) -> None:
    with SqlBatch("SELECT * FROM ai_chunks('one two three', tokens := 1)", session) as batch:
        (result,) = batch.run()
        assert len(result) > 1
    text = "SELECT * FROM ai_chunks('one two three', tokens := 1, overlap := 1)"
    with pytest.raises(SqlError, match="smaller than tokens"):
        SqlBatch(text, session)


def test_a_statement_that_fails_says_so_in_words_of_its_own(session: Session) -> None:
    with SqlBatch("SELECT AI_SCORE(body) + 'x' FROM reviews", session) as batch:
        batch.run()
        (failure,) = batch.failures
    assert "Could not convert" in str(failure) and "halo_ai" not in str(failure)
    text = "SELECT AI_COMPLETE('x', returns := 'INTEGER[]', max_tokens := 1, on_error := 'fail')"
    with SqlBatch(text, session) as batch:
        batch.run()
        (failure,) = batch.failures
    assert "calls without an answer: 1; the first: " in str(failure) and "halo_ai" not in str(
        failure
    )


def test_a_place_is_looked_for_in_the_statement_that_is_wrong(session: Session) -> None:
    with pytest.raises(SqlError) as raised:
        SqlBatch("SELECT 1 AS nope;\nSELECT nope FROM reviews", session)
    assert (raised.value.line, raised.value.column) == (2, 8)


@pytest.mark.parametrize("rows", [[1, 2], [], {"a": [1]}, "a.csv"])
def test_what_is_no_table_is_told(session: Session, rows: object) -> None:
    with pytest.raises(SqlError, match="S303: table 't' must be a data frame"):
        SqlBatch("SELECT * FROM t", session, SqlOptions(tables={"t": rows}))


def test_concatenation_draws_a_warning(session: Session) -> None:
    with SqlBatch("SELECT AI_COMPLETE('Sum up ' || body) FROM reviews", session) as batch:
        assert any("PROMPT" in warning for warning in batch.warnings)
