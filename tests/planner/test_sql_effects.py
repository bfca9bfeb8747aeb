"""What a query does, read from its text; and look-ups that become one query."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        "SELECT kind, price FROM items WHERE id = $id ORDER BY 2",
        "SELECT sum(price) AS total FROM items WHERE kind = $id",
        "SELECT kind FROM items WHERE id = $id ORDER BY 3",
        "SELECT name FROM items WHERE id = $id ORDER BY name COLLATE NOCASE",
        "SELECT * FROM items WHERE id = $id ORDER BY id",
        "SELECT name FROM items WHERE id = $id ORDER BY ALL",
        "SELECT name FROM items WHERE id = $id ORDER BY upper(name)",
        "SELECT upper(name) AS name FROM items WHERE id = $id ORDER BY items.name",
        "SELECT name FROM items WHERE kind = $id ORDER BY name LIMIT $id",
        "SELECT name FROM items WHERE kind = $id ORDER BY name LIMIT 10%",
        "SELECT kind, count(*) AS n FROM items WHERE id = $id GROUP BY kind ORDER BY n",
        "SELECT kind, sum(price) AS s FROM items WHERE id = $id GROUP BY kind ORDER BY kind",
        "SELECT count(*) AS n FROM items WHERE id = $id ORDER BY n",
        "SELECT count(*) AS n FROM items WHERE id = $id LIMIT 1",
        "SELECT 1 UNION SELECT $id",
        # Columns that DuckDB names by the text.
        "SELECT CAST(price AS VARCHAR) FROM items WHERE id = $id",
        "SELECT name, $id FROM items WHERE id = $id",
        # Several rows of one.
        "SELECT unnest([kind, price]) AS n FROM items WHERE id = $id LIMIT 2",
        "SELECT generate_subscripts([kind, price], 1) AS n FROM items WHERE id = $id",
        # Not what sqlglot writes for it.
        "SELECT log2(price) AS bits FROM items WHERE id = $id",
        "SELECT name FROM items WHERE jaro_winkler_similarity(name, $id, 0.7) > 0.9",
        "SELECT list_transform([kind], k -> k + 1) AS k FROM items WHERE id = $id",
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
        "SELECT name FROM items WHERE id = $id OR id > $most ORDER BY price DESC, name LIMIT 2",
        "SELECT price + $id AS sum FROM items WHERE id > $id ORDER BY sum DESC",
        "SELECT count(*), MAX(items.price), min(name) FROM items WHERE id = $id",
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
        names_alone = [column[0] for column in connection.description or ()]
        lists: dict[str, object] = {INDICES: list(range(len(asked)))}
        for i, name in enumerate(names):
            lists[name] = [each[i] for each in asked]
        found = connection.execute(batch, lists)
        columns = [column[0] for column in found.description or ()]
        rows = found.fetchall()
    assert columns == [INDEX, *names_alone, ORDER]
    routed = [[row[1:-1] for row in rows if row[0] == i] for i in range(len(asked))]
    assert routed == alone


def test_a_column_that_is_not_there_is_no_parameter_of_its_name() -> None:
    import duckdb

    batch = batched_text("SELECT name FROM items WHERE kid = $kid", ("kid",))
    assert batch is not None
    with database() as connection, pytest.raises(duckdb.BinderException, match="kid"):
        connection.execute("CREATE OR REPLACE TABLE items (id INT, name VARCHAR)")
        connection.execute(batch, {INDICES: [0, 1], "kid": [1, 2]})


ITEMS = st.lists(
    st.tuples(
        st.none() | st.integers(0, 3),
        st.none() | st.integers(0, 2),
        st.none() | st.sampled_from(["a", "A", "b", ""]),
        st.none() | st.integers(0, 3),
        st.none() | st.sampled_from([0.0, -0.0, 0.1, 0.2, 1e300]),
    ),
    max_size=24,
)
COLUMNS = ("id", "kind", "name", "price", "weight")


@st.composite
def look_ups(draw: st.DrawFn) -> str:
    """A look-up that orders by all that it selects, or by the keys of its groups, or not at all,
    with or without LIMIT and OFFSET."""
    chosen = draw(st.lists(st.sampled_from(COLUMNS[1:]), min_size=1, max_size=3, unique=True))
    selected, group = ", ".join(chosen), ""
    ordered = chosen + draw(st.lists(st.sampled_from(COLUMNS), max_size=2))
    if draw(st.booleans()):
        group = f" GROUP BY {selected}"
        selected += ", count(*) AS n, max(price) AS most"
        ordered = [*chosen, *draw(st.sampled_from([[], ["n"]]))]
    elif draw(st.booleans()):
        selected = selected.replace(chosen[0], f"{chosen[0]} AS other", 1) + ", $id AS asked"
        ordered[0] = draw(st.sampled_from(["other", "1", f"items.{chosen[0]}"]))
    order = " ORDER BY " + ", ".join(
        f"{key} {draw(st.sampled_from(['', 'DESC', 'NULLS FIRST', 'DESC NULLS LAST']))}".strip()
        for key in draw(st.permutations(ordered))
    )
    if not group and draw(st.booleans()):
        order = ""
    limit = draw(st.sampled_from(["", " LIMIT 2", " LIMIT 1 OFFSET 1", " OFFSET 2", " LIMIT 0"]))
    where = draw(st.sampled_from(["id = $id", "price >= $id OR id IS NULL", "id <> $id"]))
    return f"SELECT {selected} FROM items WHERE {where}{group}{order}{limit}"


@cache
def _opened() -> Any:
    import duckdb

    return duckdb.connect(":memory:", config={"threads": 1})


def database() -> Any:
    """A cursor of one database for all examples."""
    return _opened().cursor()


@settings(max_examples=60, deadline=None)
@given(look_ups(), ITEMS, st.lists(st.none() | st.integers(0, 4), min_size=1, max_size=6))
def test_ordered_and_limited_look_ups_answer_together_what_they_answer_alone(
    text: str, rows: list[tuple[object, ...]], asked: list[int | None]
) -> None:
    batch = batched_text(text, ("id",))
    assert batch is not None, text
    with database() as connection:
        connection.execute(
            "CREATE OR REPLACE TABLE "
            "items (id INT, kind INT, name VARCHAR, price INT, weight DOUBLE)"
        )
        if rows:
            connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", rows)
        alone = [connection.execute(text, {"id": each}).fetchall() for each in asked]
        found = connection.execute(
            batch, {INDICES: list(range(len(asked))), "id": asked}
        ).fetchall()
    routed = [[row[1:-1] for row in found if row[0] == i] for i in range(len(asked))]
    assert routed == alone, text
