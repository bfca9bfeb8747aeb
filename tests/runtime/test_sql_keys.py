"""Calls whose parameters differ, and what the query makes of them does not, are one call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costmodel.usage import OpMetrics
from planner.logical import Const, Json, Sql
from runtime.clock import LoopClock, new_event_loop
from runtime.journal import Journal
from runtime.memory_store import MemoryStore
from runtime.records import CallSite, Store
from runtime.sharing import CallTable
from runtime.sql_tool import Databases
from runtime.tool_runner import ToolRunner

EVALUATION = "typeof("


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.db"
    with duckdb.connect(path) as connection:
        connection.execute(
            "CREATE TABLE sales AS SELECT 1990 + i % 9 AS year, 'r' || i % 5 AS region, i AS id, "
            "DATE '1994-01-30' + CAST(i AS INTEGER) AS day, "
            "CAST(i AS DECIMAL(6, 2)) / 4 AS price, "
            "CASE i % 4 WHEN 0 THEN 'a' WHEN 1 THEN 'A b' WHEN 2 THEN '' END AS word "
            "FROM range(60) AS r(i)"
        )
    return path


@dataclass
class Asked:
    """What calls gave (values, or errors as text), the texts that the database got, metrics."""

    answers: list[Any]
    texts: list[str]
    metrics: OpMetrics

    @property
    def queries(self) -> list[str]:
        return [text for text in self.texts if EVALUATION not in text]


def ask_all(
    path: Path,
    op: Sql,
    tuples: Sequence[Mapping[str, Json]],
    *,
    store: Store | None = None,
    writable: bool = False,
    cancel: int | None = None,
) -> Asked:
    """Ask for all tuples of parameters at once."""
    return ask_each(path, [op], tuples, store=store, writable=writable, cancel=cancel)[0]


def ask_each(
    path: Path,
    ops: Sequence[Sql],
    tuples: Sequence[Mapping[str, Json]],
    *,
    store: Store | None = None,
    writable: bool = False,
    cancel: int | None = None,
) -> list[Asked]:
    """The same for each operator in turn, in one run."""

    async def main() -> list[Asked]:
        clock, kept = LoopClock(), store or MemoryStore()
        databases = Databases(path, writable=frozenset(("",)) if writable else frozenset())
        query = databases.query
        texts: list[str] = []

        async def counted(database: str, text: str, *args: Any, **options: Any) -> list[Json]:
            texts.append(text)
            return await query(database, text, *args, **options)

        databases.query = counted  # type: ignore[method-assign, assignment]
        metrics: dict[str, OpMetrics] = {}
        runner = ToolRunner({}, databases, CallTable(kept, metrics), kept, clock)
        found: list[Asked] = []
        try:
            for op in ops:
                site = CallSite(op.fingerprint, "q", 0, "k")
                calls = [
                    asyncio.ensure_future(runner.query(op, op.text or "", params, site))
                    for params in tuples
                ]
                if cancel is not None:
                    asyncio.get_running_loop().call_soon(calls[cancel].cancel)
                records = await asyncio.gather(*calls, return_exceptions=True)
                answers = [
                    f"{type(each).__name__}: {each}"
                    if isinstance(each, BaseException)
                    else each.value
                    for each in records
                ]
                found.append(Asked(answers, list(texts), metrics.get(op.fingerprint, OpMetrics())))
                texts.clear()
        finally:
            await runner.close()
        return found

    with asyncio.Runner(loop_factory=lambda: new_event_loop(False)) as loop:
        return loop.run(main())


def derived(text: str, *params: str, **fields: Any) -> Sql:
    inputs = tuple(Const.of(1) for _ in params)
    return Sql(inputs, text=text, params=params, derived=True, **fields)


def plain(op: Sql) -> Sql:
    return replace(op, derived=False)


BY_YEAR = derived(
    "SELECT region, count(*) AS n FROM sales "
    "WHERE year = CAST(split_part($p, ' ', 3) AS INTEGER) GROUP BY region ORDER BY region",
    "p",
)
QUESTIONS = [
    {"p": f"r{r} {segment} {1990 + y}"} for r, segment, y in product(range(4), "abcd", range(7))
][:96]


def test_a_query_that_uses_only_the_year_runs_once_a_year(shop: Path) -> None:
    asked = ask_all(shop, BY_YEAR, QUESTIONS)
    assert len({params["p"] for params in QUESTIONS}) == 96
    assert asked.queries == [BY_YEAR.text] * 7, "the user's own text, once for each year"
    assert len(asked.texts) - 7 <= 3, "parameters that wait are evaluated together"
    assert (asked.metrics.requested, asked.metrics.made, asked.metrics.shared) == (96, 7, 89)
    before = ask_all(shop, plain(BY_YEAR), QUESTIONS)
    assert asked.answers == before.answers
    assert len(before.texts) == 96


def test_parameters_that_are_used_as_they_are_keep_calls_apart(shop: Path) -> None:
    op = derived(
        "SELECT id FROM sales WHERE region = lower($r) AND year > $y ORDER BY id", "r", "y"
    )
    tuples = [{"r": r, "y": y} for r in ("r1", "R1", "r2") for y in (1995, 1996, "1996")]
    asked = ask_all(shop, op, tuples)
    assert asked.answers == ask_all(shop, plain(op), tuples).answers
    assert len(asked.queries) == 6


def test_types_keep_calls_apart(shop: Path) -> None:
    op = derived("SELECT typeof($a % 7) AS t, $a % 7 AS x", "a")
    tuples: list[dict[str, Json]] = [{"a": 8}, {"a": 15}, {"a": 7_000_000_001}, {"a": 8.0}]
    asked = ask_all(shop, op, tuples)
    assert asked.answers == ask_all(shop, plain(op), tuples).answers
    assert [row[0]["t"] for row in asked.answers] == ["INTEGER", "INTEGER", "BIGINT", "DOUBLE"]
    assert len([text for text in asked.texts if text == op.text]) == 3


def test_a_failing_cast_fails_its_own_row_with_the_message_of_its_own_query(shop: Path) -> None:
    tuples: list[dict[str, Json]] = [{"p": f"{x} a 1994"} for x in "xyz"]
    tuples[1:1] = [{"p": "x a MCMXCIV"}, {"p": None}, {"p": ""}, {"p": "x a MCMXCIV"}]
    asked = ask_all(shop, BY_YEAR, tuples)
    assert asked.answers == ask_all(shop, plain(BY_YEAR), tuples).answers
    assert asked.answers[1].startswith("ToolError") and "'MCMXCIV'" in asked.answers[1]
    assert f"The query was: {BY_YEAR.text}" in asked.answers[1]
    assert [isinstance(each, str) for each in asked.answers] == [
        False, True, False, True, True, False, False,
    ]  # fmt: skip
    # 1994, null, and two that fail.
    assert len(asked.queries) == 4


def test_errors_of_the_query_itself_are_the_same(shop: Path) -> None:
    op = derived("SELECT CAST(word AS INTEGER) AS x FROM sales WHERE id >= abs($n)", "n")
    missing = derived("SELECT id FROM nowhere WHERE id = abs($n)", "n")
    twice = derived("SELECT id, id FROM sales WHERE id = abs($n)", "n")
    for each in (op, missing, twice):
        tuples: list[dict[str, Json]] = [{"n": 3}, {"n": -3}]
        asked = ask_all(shop, each, tuples)
        assert asked.answers == ask_all(shop, plain(each), tuples).answers
        assert asked.answers[0].startswith("ToolError")


@pytest.mark.parametrize(
    "tuples",
    [
        [{"p": "a b c", "q": 1}, {"p": "a b c", "q": 2}],
        [{}, {}],
        [{"p": {"nested": "1994"}}, {"p": [["1994"]]}],
    ],
)
def test_parameters_that_do_not_fit_fail_as_they_did(
    shop: Path, tuples: list[dict[str, Json]]
) -> None:
    asked = ask_all(shop, BY_YEAR, tuples)
    assert asked.answers == ask_all(shop, plain(BY_YEAR), tuples).answers
    assert all(answer.startswith("ToolError") for answer in asked.answers)


def test_values_that_do_not_print_exactly_are_left_alone(shop: Path) -> None:
    op = derived("SELECT list_contains(string_split($p, ','), region) AS x FROM sales", "p")
    asked = ask_all(shop, op, [{"p": "r1,r2"}, {"p": "r1,r3"}])
    assert len(asked.queries) == 2


def test_volatile_queries_and_those_of_databases_that_are_written_stay_apart(shop: Path) -> None:
    tuples = [{"p": "a b 1994"}, {"p": "x y 1994"}]
    volatile = derived(f"{BY_YEAR.text} -- random()", "p")
    at_random = derived(
        "SELECT random() AS x WHERE 1994 = CAST(split_part($p, ' ', 3) AS INT)", "p"
    )
    assert len(ask_all(shop, at_random, tuples).texts) == 2
    assert len(ask_all(shop, volatile, tuples).queries) == 1, "a comment calls nothing"
    assert ask_all(shop, BY_YEAR, tuples, writable=True).texts == [BY_YEAR.text] * 2


def test_writes_are_untouched(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE log (word VARCHAR)")
    op = derived("INSERT INTO log VALUES (lower($w))", "w", read_only=False, call_id="q/1")
    asked = ask_all(path, op, [{"w": "A"}], writable=True)
    assert asked.texts == [op.text]
    with duckdb.connect(path) as connection:
        assert connection.execute("SELECT word FROM log").fetchall() == [("a",)]


def test_look_ups_are_shared_and_asked_together(shop: Path) -> None:
    op = derived("SELECT id, word FROM sales WHERE region = lower(trim($r))", "r", batched=True)
    tuples = [{"r": f"{' ' * i}{letter}{i % 6}"} for i in range(30) for letter in "rR"]
    asked = ask_all(shop, op, tuples)
    assert asked.answers == ask_all(shop, replace(op, derived=False, batched=False), tuples).answers
    assert (asked.metrics.made, asked.metrics.shared) == (6, 54)
    assert len(asked.queries) <= 3


def test_a_call_that_is_cancelled_leaves_the_others(shop: Path) -> None:
    tuples = [{"p": f"{x} a 1994"} for x in "xxyz"]
    asked = ask_all(shop, BY_YEAR, tuples, cancel=0)
    assert asked.answers[0].startswith("CancelledError")
    assert asked.answers[1:] == ask_all(shop, plain(BY_YEAR), tuples[1:]).answers


def test_recorded_calls_are_replayed_for_other_parameters_of_equal_value(
    shop: Path, tmp_path: Path
) -> None:
    def ask_journalled(tuples: Sequence[Mapping[str, Json]]) -> Asked:
        store = Journal(tmp_path / "events.sqlite", started_at="2026-01-01T00:00:00Z")
        try:
            return ask_all(shop, BY_YEAR, tuples, store=store)
        finally:
            store.close("stopped", ended_at="2026-01-01T00:00:01Z", cpu_s=0.0)

    first = ask_journalled(QUESTIONS[:5])
    second = ask_journalled(QUESTIONS[5:20])
    assert len(first.queries) == 5
    metrics = second.metrics
    assert (metrics.requested, metrics.made, metrics.shared, metrics.replayed) == (15, 2, 3, 10)
    assert len(second.queries) == 2
    assert second.answers == ask_all(shop, plain(BY_YEAR), QUESTIONS[5:20]).answers


# --- any expression ------------------------------------------------------------------------------

TEXTS = [
    *("", " ", "a", "A", " a", "A b", "a  b", "7", "07", " 7", "7.0", "2.50", "2.5", "1e1", "é"),
    *("1994-02-03", "1994-02-03 10:00:00", "03/02/1994", "true", "x'y", "%", "r1", "R1"),
]
NUMBERS: list[Json] = [0, 7, -7, 8, 7.0, 0.1, 0.30000000000000004, -0.0, 2**31, 2**63, 10**20]
VALUES: list[Json] = [*TEXTS, *NUMBERS, None, True, False, ["a", "b"], ["a", "B"]]


def made(forms: Sequence[str], *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Expressions of these forms over these parts."""
    return st.builds(str.format, st.sampled_from(forms), *parts)


def texts(depth: int) -> st.SearchStrategy[str]:
    leaves = st.sampled_from(["$p", "$p", "$q", "'a'", "''", "' '"])
    if not depth:
        return leaves
    inner = texts(depth - 1)
    one = [
        *("lower({0})", "trim({0})", "left({0}, 1)", "split_part({0}, ' ', 1)", "reverse({0})"),
        *("substr({0}, 2, 3)", "CAST({0} AS VARCHAR)", "strftime(TRY_CAST({0} AS DATE), '%m')"),
    ]
    two = [
        *("({0} || {1})", "concat({0}, {1})", "coalesce({0}, {1})", "nullif({0}, {1})"),
        *("CASE WHEN {0} = 'a' THEN {1} END", "greatest({0}, {1})", "replace({0}, {1}, 'r')"),
    ]
    numbered = ["CAST({0} AS VARCHAR)", "left('r1 a', {0})"]
    return leaves | made(one, inner) | made(two, inner, inner) | made(numbered, numbers(depth - 1))


def numbers(depth: int) -> st.SearchStrategy[str]:
    leaves = st.sampled_from(["$p", "$q", "2", "0.5", "length($p)", "NULL"])
    if not depth:
        return leaves
    inner = numbers(depth - 1)
    one = ["abs({0})", "-({0})", "round({0}, 1)", "floor({0})", "({0} % 3)", "sqrt(abs({0}))"]
    two = ["({0} + {1})", "({0} // {1})", "({0} * {1})", "({0} - {1})", "least({0}, {1})"]
    worded = [
        *("length({0})", "TRY_CAST({0} AS INTEGER)", "CAST({0} AS DOUBLE)", "ascii({0})"),
        *("CAST({0} AS DECIMAL(6, 2))", "TRY_CAST({0} AS DECIMAL(4, 1))", "CAST({0} AS INTEGER)"),
        *("TRY_CAST({0} AS FLOAT)", "TRY_CAST({0} AS HUGEINT) * 1000", "year(CAST({0} AS DATE))"),
    ]
    return made(one, inner) | made(two, inner, inner) | made(worded, texts(depth - 1))


def dates(depth: int) -> st.SearchStrategy[str]:
    worded = ["TRY_CAST({0} AS DATE)", "date_trunc('month', TRY_CAST({0} AS TIMESTAMP))"]
    moved = ["CAST('1994-03-01' AS DATE) + to_days(CAST({0} AS INTEGER))", "to_days({0})"]
    return made(worded, texts(depth)) | made(moved, numbers(depth))


def conditions(depth: int) -> st.SearchStrategy[str]:
    compared = ["({0} = {1})", "({0} < {1})", "({0} LIKE {1})", "({0} IN ({1}, 'a'))"]
    alone = ["({0} IS NULL)", "NOT ({0} = 'a')", "({0} IS DISTINCT FROM '' AND $p <> 'a')"]
    numbered = ["({0} > {1} OR {1} = 7)", "({0} BETWEEN 1 AND {1})"]
    return (
        made(compared, texts(depth), texts(depth))
        | made(alone, texts(depth))
        | made(numbered, numbers(depth), numbers(depth))
    )


EXPRESSIONS = texts(2) | numbers(2) | dates(1) | conditions(1)
CONTEXTS = st.sampled_from(
    [
        "SELECT {0} AS x, typeof({0}) AS t",
        "SELECT id FROM sales WHERE word = {0}",
        "SELECT id FROM sales WHERE region = {0} OR word LIKE {1}",
        "SELECT id, word || {0} AS x FROM sales WHERE id < 7",
        "SELECT id + {0} AS x, typeof(id + {0}) AS t FROM sales WHERE id < 3",
        "SELECT count(*) AS n, {0} AS x FROM sales WHERE year > {1}",
        "SELECT year, count(*) AS n FROM sales GROUP BY year, {0} ORDER BY 2, 1 LIMIT 3",
        "SELECT id FROM sales WHERE day >= {0} AND price < {1}",
        "SELECT id FROM sales WHERE price = {0} OR id IN (1, {0}, {1})",
        "SELECT id, typeof(coalesce({0}, 5)) AS t, coalesce(price, {1}) AS x FROM sales LIMIT 2",
        "SELECT max(id) AS n FROM sales WHERE {0} AND ({1} OR id > 4)",
        "SELECT DISTINCT left(region, length({0})) AS x FROM sales ORDER BY 1",
        "SELECT {0} AS x UNION ALL SELECT 5 AS x UNION ALL SELECT {1} AS x",
        "SELECT id FROM sales WHERE id = $p AND {0}",
    ]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    context=CONTEXTS,
    first=EXPRESSIONS,
    second=EXPRESSIONS,
    values=st.lists(st.sampled_from(VALUES), min_size=4, max_size=12),
    other=st.sampled_from(VALUES),
)
def test_every_call_has_the_answer_of_its_own_parameters(
    shop: Path, context: str, first: str, second: str, values: list[Json], other: Json
) -> None:
    text = context.format(first, second)
    names = [name for name in ("p", "q") if f"${name}" in text]
    op = derived(text, *names)
    tuples = [{name: value if name == "p" else other for name in names} for value in values]
    asked, alone = ask_each(shop, [op, plain(op)], tuples)
    assert asked.answers == alone.answers


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False), st.floats(width=32, allow_nan=False)
        ),
        min_size=1,
        max_size=30,
    )
)
@settings(max_examples=20)
def test_different_numbers_are_printed_differently(pairs: list[tuple[float, float]]) -> None:
    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        rows = connection.execute(
            "SELECT CAST(CAST(unnest($d) AS VARCHAR) AS DOUBLE), "
            "CAST(CAST(CAST(unnest($f) AS FLOAT) AS VARCHAR) AS FLOAT)",
            {"d": [double for double, _ in pairs], "f": [single for _, single in pairs]},
        ).fetchall()
    assert [(str(double), str(single)) for double, single in rows] == [
        (str(double), str(single)) for double, single in pairs
    ]
