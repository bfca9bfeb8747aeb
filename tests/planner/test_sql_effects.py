"""What a query does, read from its text; and look-ups that become one query."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.sql_batch import INDEX, INDICES, ORDER, batched_text
from planner.sql_effects import query_effects


@pytest.mark.parametrize(
    "text",
    [
        "SELECT a FROM t WHERE k = $k",
        "SELECT count(*), lower(a), list_sum([1]), date_diff('day', a, b) FROM t GROUP BY ALL",
        "WITH s AS (SELECT 1 AS x) SELECT x FROM s UNION SELECT 'random()' FROM range(3)",
        "FROM t ORDER BY 1",
        "SELECT CASE WHEN a THEN 1 END, a ->> 'x', EXTRACT(YEAR FROM d) FROM t",
        "SELECT row_number() OVER (ORDER BY a) FROM t",
    ],
)
def test_queries_that_always_answer_the_same(text: str) -> None:
    effects = query_effects(text)
    assert effects.understood
    assert effects.reads_only
    assert not effects.volatile


@pytest.mark.parametrize(
    "text",
    [
        "SELECT random()",
        "SELECT a FROM t ORDER BY RANDOM()",
        "SELECT now(), a FROM t",
        "SELECT current_date",
        "SELECT gen_random_uuid()",
        "SELECT nextval('s')",
        "SELECT a FROM t USING SAMPLE 10%",
        "SELECT * FROM 'reviews.csv'",
        "SELECT * FROM read_csv('x.csv')",
        "SELECT * FROM duckdb_settings()",
        "SELECT my_macro(1)",
        "SELECT getvariable('x')",
    ],
)
def test_queries_that_may_answer_something_else(text: str) -> None:
    assert query_effects(text).volatile


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO t VALUES (1)",
        "WITH x AS (INSERT INTO t VALUES (1)) SELECT 1",
        "DROP TABLE t",
        "COPY t TO 'x.csv'",
        "SELECT 1; SELECT 2",
        "SELEC a",
        "",
        "SELECT " + "(" * 3000 + "1" + ")" * 3000,
        "x" * 300_000,
    ],
)
def test_what_is_no_single_query_is_taken_for_the_worse(text: str) -> None:
    effects = query_effects(text)
    assert effects.volatile
    assert not effects.reads_only


def test_words_around_a_query_do_not_matter_and_names_do() -> None:
    key = query_effects("SELECT Name FROM t WHERE k = $k").key
    assert key == query_effects("select Name  from t -- all\nwhere k=$k").key
    assert key != query_effects("SELECT name FROM t WHERE k = $k").key
    assert key != query_effects("SELECT Name FROM t WHERE k = $j").key


# --- look-ups together ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "SELECT DISTINCT name FROM items WHERE id = $id",
        "SELECT a.name FROM items a JOIN items b ON a.id = b.id WHERE a.id = $id",
        "SELECT kind, count(*) FROM items WHERE id = $id GROUP BY kind",
        "SELECT name, name FROM items WHERE id = $id",
        "SELECT name FROM items WHERE id = $other",
        "SELECT name FROM items",
        "SELECT name FROM items WHERE id = $id AND price > random()",
        "INSERT INTO items VALUES ($id)",
        "SELECT name FROM items WHERE kind = $id ORDER BY price DESC, name LIMIT 2",
        "SELECT kind, price FROM items WHERE id = $id ORDER BY 2",
        "SELECT sum(price) AS total FROM items WHERE kind = $id",
        "SELECT name FROM items WHERE kind = $id LIMIT 2",
        "SELECT 1 UNION SELECT $id",
    ],
)
def test_look_ups_that_are_asked_alone(text: str) -> None:
    assert batched_text(text, ("id",)) is None


@pytest.mark.parametrize(
    "text",
    [
        "SELECT name, price FROM items WHERE id = $id",
        "SELECT * FROM items WHERE id = $id AND price < $most",
        "SELECT name AS n, $most AS m FROM items WHERE id >= $id",
        "SELECT count(*) AS n, max(price) AS most FROM items WHERE id = $id AND price < $most",
    ],
)
def test_a_batch_gives_each_look_up_what_it_would_get_alone(text: str, tmp_path: Path) -> None:
    import duckdb

    names = tuple(name for name in ("id", "most") if f"${name}" in text)
    asked: list[tuple[object, ...]] = [(1, 9), (2, 3), (None, 9), (7, 9), (1, 2), (1, 9)]
    batch = batched_text(text, names)
    assert batch is not None
    with duckdb.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE items (id INT, kind INT, name VARCHAR, price INT)")
        connection.execute(
            "INSERT INTO items VALUES (1, 1, 'a', 1), (1, 2, 'b', 2), (2, 1, 'c', NULL), "
            "(NULL, 1, 'd', 4), (3, 7, 'e', 5)"
        )
        alone = [
            connection.execute(text, dict(zip(names, each, strict=False))).fetchall()
            for each in asked
        ]
        lists: dict[str, object] = {INDICES: list(range(len(asked)))}
        for i, name in enumerate(names):
            lists[name] = [each[i] for each in asked]
        found = connection.execute(batch, lists)
        columns = [column[0] for column in found.description or ()]
        rows = found.fetchall()
    assert (columns[0], columns[-1]) == (INDEX, ORDER)
    routed = [[row[1:-1] for row in rows if row[0] == i] for i in range(len(asked))]
    assert routed == alone
