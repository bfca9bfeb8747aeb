"""Filters of one WHERE: asked in the order that measured pass rates make the cheapest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from halo.ai_sql.batch import SqlBatch, SqlOptions
from halo.ai_sql.results import QueryResult
from halo.session import Session
from planner.logical import Choose, Filter, LogicalPlan
from planner.surgery import row_cone

GOOD, SHORT = "Is it good?", "Is it short?"
TEXT = f"SELECT id FROM mail WHERE AI_FILTER('{GOOD} {{body}}') AND AI_FILTER('{SHORT} {{body}}')"
ROWS = 40

Table = list[dict[str, Any]]


def run(
    session: Session, table: Table, text: str = TEXT, sample: int = 0, **where: Any
) -> tuple[QueryResult, list[Any], int]:
    """The result of a statement, its first column, and how many requests its engine got, those of
    a sample included."""
    options = SqlOptions(tables={"mail": table}, sample=sample)
    with SqlBatch(text, session, options) as batch:
        (engine,) = session._engines.opened.values() if session._engines.opened else (None,)
        before = engine.requests_seen if engine is not None else 0
        (result,) = batch.run(**where)
        assert not batch.failures
        (engine,) = session._engines.opened.values()
        return result, [row[0] for row in result.tuples()], engine.requests_seen - before


def order(plan: LogicalPlan) -> list[str]:
    """The questions of the filters, the first to be asked first."""
    return [
        str(call.prompt.segments[0]).strip()
        for op in plan.walk()
        if isinstance(op, Filter)
        for call in row_cone([op.predicate])
        if isinstance(call, Choose)
    ]


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(engine="simulated") as opened:
        yield opened


@pytest.fixture(scope="module")
def pool() -> dict[tuple[bool, bool], list[str]]:
    """Texts by whether they are good and short in the eyes of the simulated engine."""
    table = [{"body": f"letter number {i}"} for i in range(400)]
    text = (
        f"SELECT body, AI_FILTER('{GOOD} {{body}}') AS good, AI_FILTER('{SHORT} {{body}}') AS short"
        " FROM mail"
    )
    found: dict[tuple[bool, bool], list[str]] = {}
    with (
        Session(engine="simulated") as session,
        SqlBatch(text, session, SqlOptions(tables={"mail": table})) as batch,
    ):
        for body, good, short in batch.run()[0].tuples():
            found.setdefault((good, short), []).append(body)
    return found


def mail(pool: dict[tuple[bool, bool], list[str]], good: int, short: int, skip: int = 0) -> Table:
    """`ROWS` different texts of which `good` are good and `short` are short, two both; without the
    first `skip` of each kind."""
    counts = {
        (True, True): 2,
        (True, False): good - 2,
        (False, True): short - 2,
        (False, False): ROWS - good - short + 2,
    }
    bodies = [body for kind, n in counts.items() for body in pool[kind][skip : skip + n]]
    assert len(bodies) == ROWS
    # Evenly mixed, so that a sample sees the rates of the whole.
    return [{"id": i, "body": bodies[i * 7 % ROWS]} for i in range(ROWS)]


def test_rates_of_earlier_runs_choose_the_order(
    session: Session, pool: dict[tuple[bool, bool], list[str]], tmp_path: Path
) -> None:
    monday, tuesday = mail(pool, good=36, short=4), mail(pool, good=4, short=36)
    for table, name in ((monday, "monday"), (tuesday, "tuesday")):
        result, _, _ = run(session, table, out=tmp_path / name)
        assert order(result.run.plan.logical) == [GOOD, SHORT]

    with Session(engine="simulated", learn=[tmp_path / "monday"]) as taught:
        other = mail(pool, good=34, short=6, skip=40)
        result, found, calls = run(taught, other)
        assert order(result.run.plan.logical) == [SHORT, GOOD]
        _, expected, as_written = run(session, other)
        assert sorted(found) == sorted(expected) and len(found) == 2
        assert (calls, as_written) == (ROWS + 6, ROWS + 34)

    # Other rates, another order; and both runs together teach the rates of all their rows.
    for names, expected_order in (
        (["tuesday"], [GOOD, SHORT]),
        (["monday", "monday", "tuesday"], [SHORT, GOOD]),
    ):
        with Session(engine="simulated", learn=[tmp_path / name for name in names]) as taught:
            result, found, calls = run(taught, tuesday)
            assert order(result.run.plan.logical) == expected_order
            assert calls == ROWS + (4 if expected_order[0] == GOOD else 36)


def test_a_rule_that_is_off_leaves_the_order_as_written(
    session: Session, pool: dict[tuple[bool, bool], list[str]], tmp_path: Path
) -> None:
    monday = mail(pool, good=36, short=4)
    run(session, monday, out=tmp_path / "run")
    off = ["order_model_predicates"]
    with Session(engine="simulated", learn=[tmp_path / "run"], off=off) as taught:
        result, _, calls = run(taught, monday)
        assert order(result.run.plan.logical) == [GOOD, SHORT]
        assert calls == ROWS + 36


def test_a_sample_chooses_the_order_and_its_answers_are_used(
    session: Session, pool: dict[tuple[bool, bool], list[str]], tmp_path: Path
) -> None:
    monday = mail(pool, good=36, short=4)
    _, expected, as_written = run(session, monday)
    result, found, calls = run(session, monday, sample=10, out=tmp_path / "run")
    assert order(result.run.plan.logical) == [SHORT, GOOD]
    assert sorted(found) == sorted(expected)
    # What the sample asked in the order as written, and nothing twice.
    assert calls <= ROWS + 4 + 10 < as_written
    assert "°" in result.explain()
    # A run that goes on does so with its plan, and samples nothing.
    again, found, calls = run(session, monday, sample=10, out=tmp_path / "run", resume=True)
    assert (sorted(found), calls) == (sorted(expected), 0)
    assert order(again.run.plan.logical) == [SHORT, GOOD]
    # EXPLAIN shows the plan by the sample.
    with SqlBatch(
        f"EXPLAIN {TEXT}", session, SqlOptions(tables={"mail": monday}, sample=10)
    ) as batch:
        (plan,) = batch.explanations()
    assert plan.index(SHORT) < plan.index(GOOD)


def test_a_sample_writes_nothing(pool: dict[tuple[bool, bool], list[str]], tmp_path: Path) -> None:
    database = tmp_path / "shop.duckdb"
    monday = mail(pool, good=36, short=4)
    with duckdb.connect(database) as connection:
        connection.execute("CREATE TABLE kept (id INTEGER)")
    text = f"INSERT INTO kept {TEXT}; SELECT count(*) FROM kept; SELECT id FROM kept WHERE " \
           f"AI_FILTER('Again? {{id}}') IS NOT NULL"  # fmt: skip
    options = SqlOptions(tables={"mail": monday}, sample=10)
    with (
        Session(engine="simulated", db=database) as session,
        SqlBatch(text, session, options) as batch,
    ):
        results = batch.run()
        assert not batch.failures
        assert results[0].written == 2
        assert [list(row) for row in results[1].tuples()] == [[2]]
        assert len(results[2]) == 2
