"""Statements made at random equal the same statements with AI calls as UDFs, and ask no more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from query_maker import Query, QueryMaker
from udf_oracle import Oracle, canonical, same_rows

from halo.ai_sql.batch import SqlBatch, SqlOptions
from halo.ai_sql.compile import RULES
from halo.session import Session

BATCH = 20
BATCHES = 100


@pytest.fixture(scope="module")
def session(database: Path) -> Iterator[Session]:
    with Session(engine="simulated", db=database) as opened:
        yield opened


def check(session: Session, oracle: Oracle, queries: list[Query], off: list[str]) -> None:
    """Run `queries` as one batch and one by one against the oracle."""
    text = ";\n".join(query.text for query in queries)
    with SqlBatch(text, session, SqlOptions(off=off)) as batch:
        results = batch.run()
        assert [result.name for result in results] == [f"q{i + 1}" for i in range(len(queries))]
        calls = results[0].run.summary()["calls"]["made"] if results else 0
        rows = [list(result.tuples()) for result in results]
    oracle.asked = 0
    for query, found in zip(queries, rows, strict=True):
        expected = oracle.run(query.text)
        if query.limit:
            asked = oracle.asked
            whole = oracle.run(query.unlimited)
            oracle.asked = asked
            assert len(found) == len(expected), query.text
            assert {canonical(r) for r in found} <= {canonical(r) for r in whole}, query.text
        else:
            assert same_rows(found, expected), f"{query.text}\n{found[:5]}\n{expected[:5]}"
    if not off:
        assert calls <= oracle.asked, (calls, oracle.asked, text)


@pytest.mark.parametrize("seed", range(BATCHES))
def test_equal_to_udfs(session: Session, oracle: Oracle, seed: int) -> None:
    maker = QueryMaker(seed)
    draw = random.Random(seed)
    off = [] if seed % 2 == 0 else draw.sample(RULES, draw.randint(1, len(RULES)))
    check(session, oracle, [maker.query() for _ in range(BATCH)], off)
