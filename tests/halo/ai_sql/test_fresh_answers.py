"""`cache := false` where there is an answer cache: such calls neither read it nor write to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from halo.ai_sql.batch import SqlBatch, SqlOptions
from halo.dsl.model import Model
from halo.dsl.tool import tool
from halo.dsl.workflow import workflow
from halo.session import Session
from runtime.answer_cache import AnswerCache

MAIL = [{"id": i, "body": f"letter {i % 3}"} for i in range(6)]


@tool(pure=True)
def shout(text: str) -> str:
    return text.upper()


@workflow
def reply(text: str) -> str:
    answer = Model().gen(f"Answer {shout(text)}")
    return Model().gen(f"Shorten {answer}")


def run(cache: Path, text: str) -> tuple[list[dict[str, object]], int, int]:
    """The rows of the last statement, the calls made, and those that the cache answered."""
    options = SqlOptions(tables={"mail": MAIL}, workflows=[reply])
    with (
        Session(engine="simulated", cache=cache) as session,
        SqlBatch(text, session, options) as batch,
    ):
        results = batch.run()
        assert not batch.failures
        calls = results[-1].run.summary()["calls"]
        return list(results[-1]), calls["made"], calls["cached"]


def answers(cache: Path) -> int:
    """How many answers the cache holds."""
    opened = AnswerCache(cache)
    try:
        return sum(group.answers for group in opened.groups())
    finally:
        opened.close()


CALLS = {
    "AI_COMPLETE('Sum up {body}'%s)": 3,
    "AI_COMPLETE('Count {body}', returns := 'INTEGER'%s)": 3,
    "AI_FILTER('Urgent? {body}'%s)": 3,
    "AI_CLASSIFY(body, ['a', 'b']%s)": 3,
    "AI_CLASSIFY(body, ['a', 'b'], multi := true%s)": 3,
    "AI_EXTRACT(body, {'n': 'INTEGER'}%s)": 3,
    "AI_SCORE('Urgent? {body}'%s)": 3,
    "AI_SUMMARIZE(body%s)": 3,
    "AI_EMBED(body%s)": 3,
    "AI_SIMILARITY(body, 'x'%s)": 1,  # beside the embeddings above
    "AI_RUN('reply', body%s)": 12,  # decode, shout, and two model calls for each
}


def test_a_fresh_call_neither_reads_nor_writes_the_store(tmp_path: Path) -> None:
    def text(option: str) -> str:
        return f"SELECT id, {', '.join(call % option for call in CALLS)} FROM mail ORDER BY id"

    fresh, kept, all_calls = text(", cache := false"), text(""), sum(CALLS.values())
    for _ in range(2):
        rows, made, cached = run(tmp_path, fresh)
        assert (made, cached, answers(tmp_path)) == (all_calls, 0, 0)
    # The same calls without the option fill the store, and they alone are answered from there.
    assert [list(row.values()) for row in run(tmp_path, kept)[0]] == [
        list(row.values()) for row in rows
    ]
    assert answers(tmp_path) == all_calls
    assert run(tmp_path, kept)[1:] == (0, all_calls)
    assert run(tmp_path, fresh)[1:] == (all_calls, 0)
    assert answers(tmp_path) == all_calls


def test_a_fresh_call_stays_fresh_beside_an_equal_one_from_the_cache(tmp_path: Path) -> None:
    kept = "SELECT AI_FILTER('Urgent? {body}') AS a FROM mail"
    fresh = "SELECT AI_FILTER('Urgent? {body}', cache := false) AS a FROM mail"
    run(tmp_path, kept)
    for text in (f"{kept}; {fresh}", f"{fresh}; {kept}", f"{fresh}; {fresh}; {kept}"):
        rows, made, cached = run(tmp_path, text)
        assert (made, cached) == (3, 3), text
        assert len(rows) == 6


def test_fresh_aggregates_filters_in_a_chain_and_cascades(tmp_path: Path) -> None:
    text = """
        SELECT AI_AGG(body, 'List them', cache := false) AS a FROM mail;
        SELECT id FROM mail WHERE AI_FILTER('Urgent? {body}', cache := false)
            AND AI_FILTER('Kind? {body}', cache := false);
        SELECT id FROM mail WHERE AI_FILTER('New? {body}', cache := false,
            cascade := 'small->large')"""
    first = run(tmp_path, text)
    assert first[1] > 6 and answers(tmp_path) == 0
    assert run(tmp_path, text) == first


def test_documents_are_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same path may name another text by the next run, so it is not a key of the cache."""
    monkeypatch.chdir(tmp_path)
    text = "SELECT content, AI_SCORE('Urgent? {content}') AS s FROM read_document('*.txt')"
    (tmp_path / "a.txt").write_text("first")
    run(tmp_path / "cache", text)
    (tmp_path / "a.txt").write_text("second")
    (row,), _, cached = run(tmp_path / "cache", text)
    assert row["content"] == "second" and cached == 0
