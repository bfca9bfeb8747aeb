"""SQL tools: what a query may do, what it returns, and when it is stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pytest

from planner.logical import Json
from runtime.clock import LoopClock, new_event_loop
from runtime.errors import ToolError, ToolTimeoutError
from runtime.sql_tool import Databases

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]], virtual: bool = True) -> T:
    with asyncio.Runner(loop_factory=lambda: new_event_loop(virtual)) as runner:
        return runner.run(main())


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE items (id INTEGER, name VARCHAR, price DECIMAL(6, 2))")
        connection.execute("INSERT INTO items VALUES (1, 'cup', 2.50), (2, 'pot', 9)")
        connection.execute('CREATE TABLE "Old Orders" ("order" TIMESTAMP, item INTEGER)')
        connection.execute("CREATE SEQUENCE numbers")
    (tmp_path / "secret.csv").write_text("word\nxyzzy\n")
    with duckdb.connect(tmp_path / "other.duckdb") as connection:
        connection.execute("CREATE TABLE secrets AS SELECT 'xyzzy' AS word")
    return path


def ask(databases: Databases, text: str, database: str = "", **options: Any) -> list[Json]:
    params: dict[str, Json] = options.pop("params", {})

    async def main() -> list[Json]:
        try:
            return await databases.query(database, text, params, LoopClock(), **options)
        finally:
            await databases.close()

    return run(main)


def items(path: Path) -> list[Any]:
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute("SELECT * FROM items ORDER BY id").fetchall()


def test_rows_are_objects_of_json_values(shop: Path) -> None:
    rows = ask(Databases(shop), "SELECT id, name, price FROM items ORDER BY id")
    assert rows == [
        {"id": 1, "name": "cup", "price": 2.5},
        {"id": 2, "name": "pot", "price": 9.0},
    ]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("DATE '2024-02-01'", "2024-02-01"),
        ("TIMESTAMP '2024-02-01 10:00:00'", "2024-02-01T10:00:00"),
        ("TIME '10:30:00'", "10:30:00"),
        ("12::DECIMAL(4, 0)", 12),
        ("1::HUGEINT << 100", 2**100),
        ("INTERVAL 90 SECOND", 90.0),
        ("'00000000-0000-0000-0000-000000000001'::UUID", "00000000-0000-0000-0000-000000000001"),
        ("{'a': [1, NULL], 'b': DATE '2024-01-01'}", {"a": [1, None], "b": "2024-01-01"}),
        ("MAP {1: 'x'}", {"1": "x"}),
        ("NULL", None),
    ],
)
def test_each_type_has_a_json_form(shop: Path, expression: str, value: Json) -> None:
    assert ask(Databases(shop), f"SELECT {expression} AS x") == [{"x": value}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SELECT 'ab'::BLOB AS b", "'b' is binary"),
        ("SELECT 'nan'::DOUBLE AS d", "'d' holds nan"),
        ("SELECT 1 AS a, 2 AS a", "more than one column 'a'"),
        ("SELECT nothing FROM items", "nothing"),
        ("SELEC 1", "SELEC"),
        ("", "0 statements"),
        ("SELECT '\ud800'", "TypeError"),
        ("SELECT " + "(" * 100, "failed"),
    ],
)
def test_what_cannot_be_answered_says_why(shop: Path, text: str, says: str) -> None:
    with pytest.raises(ToolError, match=says):
        ask(Databases(shop), text)


def test_decimals_keep_their_digits(shop: Path) -> None:
    text = (
        "SELECT 0.1::DECIMAL(30, 20) AS tenth, 7::DECIMAL(9, 0) AS whole, "
        "12345678901234567890.123::DECIMAL(38, 3) AS long"
    )
    (row,) = ask(Databases(shop), text)
    assert row == {"tenth": 0.1, "whole": 7, "long": "12345678901234567890.123"}


@pytest.mark.parametrize(
    "text", ["VALUES (1)", "FROM items", "DESCRIBE items", "SHOW TABLES", "SUMMARIZE items"]
)
def test_what_reads_like_a_select_is_allowed(shop: Path, text: str) -> None:
    assert ask(Databases(shop), text)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "(" * 4000,
        "SELECT * FROM " + "t JOIN (" * 1500,
        "WITH a AS (" * 10,
        "WITH a AS (" * 10 + "SELEC 1" + ") SELECT 1" * 10,
        "with\na/**/as(" * 10,
        "WITH a AS (" * 5 + "SELECT " + "1, " * 3000,
        "SELECT " + "1, " * 100_000 + "1",
    ],
    ids=range(7),
)
def test_what_would_block_the_parser_is_refused_before_it(shop: Path, text: str) -> None:
    # Without the check, the first of these takes 7 s, in which nothing else runs.
    with pytest.raises(ToolError, match="that a model writes may have"):
        ask(Databases(shop), text)


def test_an_ordinary_long_query_is_not_refused(shop: Path) -> None:
    steps = ", ".join(f"c{i} AS (SELECT id + {i} AS id FROM items)" for i in range(200))
    text = f"WITH {steps} SELECT count(*) AS n FROM c7"
    assert ask(Databases(shop), text) == [{"n": 2}]
    nested = (
        "WITH a AS (WITH b AS (WITH c AS (FROM items) FROM c) FROM b) SELECT count(*) AS n FROM a"
    )
    assert ask(Databases(shop), nested) == [{"n": 2}]
    values = "SELECT count(*) AS n FROM (VALUES " + ", ".join(["(1)"] * 2000) + ")"
    assert ask(Databases(shop), values, bounded=False) == [{"n": 2000}]


def test_parameters_are_values_and_never_text(shop: Path) -> None:
    text = "SELECT id FROM items WHERE name = $name OR id IN $ids"
    hostile = "x' OR true; DROP TABLE items --"
    assert ask(Databases(shop), text, params={"name": hostile, "ids": [2]}) == [{"id": 2}]


@pytest.mark.parametrize(
    ("text", "params", "says"),
    [
        ("SELECT $a + $b", {"a": 1}, r"uses \$b, which got no value"),
        ("SELECT $a", {"a": 1, "other": 2}, "does not use the parameter other"),
        ("SELECT ?", {}, "write named parameters"),
        ("SELECT $a", {"a": {"x": 1}}, "parameter a is a nested value"),
        ("SELECT $a", {"a": 2**200}, "too large"),
        ("SELECT $a", {"a": "\ud800"}, "surrogate"),
    ],
)
def test_parameters_must_match(shop: Path, text: str, params: dict[str, Json], says: str) -> None:
    with pytest.raises(ToolError, match=says):
        ask(Databases(shop), text, params=params)


HOSTILE = [
    "COPY items TO '{dir}/out.csv'",
    "COPY items FROM '{dir}/secret.csv'",
    "COPY (SELECT 1) TO '{dir}/out.parquet' (FORMAT parquet)",
    "EXPORT DATABASE '{dir}/out'",
    "IMPORT DATABASE '{dir}/out'",
    "ATTACH '{dir}/out.db'",
    "ATTACH ':memory:' AS m",
    "DETACH shop",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{dir}/out.so'",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET enable_external_access",
    "PRAGMA enable_profiling",
    "PRAGMA version",
    "SELECT * FROM read_csv('{dir}/secret.csv')",
    "SELECT * FROM read_text('{dir}/secret.csv')",
    "SELECT * FROM read_blob('{dir}/secret.csv')",
    "SELECT * FROM '{dir}/secret.csv'",
    "SELECT * FROM read_csv('https://example.invalid/a.csv')",
    "SELECT * FROM read_json('{dir}/secret.csv')",
    "SELECT * FROM read_parquet('{dir}/secret.csv')",
    "SELECT * FROM read_csv('/dev/stdin')",
    "SELECT * FROM sniff_csv('{dir}/secret.csv')",
    "SELECT * FROM read_duckdb('{dir}/other.duckdb')",
    "SELECT * FROM '{dir}/other.duckdb'",
    "SELECT * FROM enable_logging('QueryLog', storage='file', storage_path='{dir}/logs')",
    "SELECT * FROM enable_profiling()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM glob('{dir}/*')",
    "SELECT * FROM query('COPY items TO ''{dir}/out.csv''')",
    "SELECT * FROM query_table('{dir}/secret.csv')",
    "SELECT getenv('HOME')",
    "SELECT * FROM python_rows",
    "CREATE TABLE more (a INTEGER)",
    "CREATE TEMP TABLE more AS SELECT 1",
    "CREATE SECRET s (TYPE s3)",
    "CREATE MACRO f() AS 1",
    "INSERT INTO items VALUES (3, 'jug', 1)",
    "WITH w AS (INSERT INTO items VALUES (3, 'jug', 1) RETURNING *) SELECT * FROM w",
    "WITH w AS (DELETE FROM items RETURNING *) SELECT * FROM w",
    "UPDATE items SET price = 0",
    "DELETE FROM items",
    "TRUNCATE items",
    "DROP TABLE items",
    "ALTER TABLE items ADD COLUMN c INTEGER",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE items",
    "COMMIT; DROP TABLE items",
    "BEGIN TRANSACTION",
    "ROLLBACK",
    "CALL pragma_version()",
    "CHECKPOINT",
    "VACUUM",
    "PREPARE p AS DROP TABLE items",
    "EXECUTE p",
    "EXPLAIN ANALYZE DELETE FROM items",
    "SELECT nextval('numbers')",
]


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_statements_are_refused(shop: Path, text: str, writable: bool) -> None:
    python_rows = [{"a": 1}]
    assert python_rows
    before, files = items(shop), sorted(path.name for path in shop.parent.iterdir())
    databases = Databases(shop, writable=frozenset({""} if writable else ()))
    with pytest.raises(ToolError):
        ask(databases, text.format(dir=shop.parent))
    assert items(shop) == before
    after = {path.name for path in shop.parent.iterdir()} - {"shop.duckdb.wal"}
    assert sorted(after) == files


def test_at_most_max_rows_of_an_endless_result(shop: Path) -> None:
    rows = ask(Databases(shop), "SELECT range AS n FROM range(10000000000)", max_rows=100)
    assert rows == [{"n": n} for n in range(100)]


@pytest.mark.parametrize(
    "text",
    ["SELECT repeat('x', 2000000) AS x", "SELECT repeat('x', 900) AS x FROM range(2000)"],
)
def test_a_result_has_a_size_limit(shop: Path, text: str) -> None:
    with pytest.raises(ToolError, match="more than 1,000,000 bytes"):
        ask(Databases(shop, max_result_bytes=1_000_000), text, max_rows=5000)


def test_a_query_has_a_memory_limit(shop: Path) -> None:
    text = "SELECT list(range::VARCHAR) AS x FROM range(100000000)"
    with pytest.raises(ToolError, match="OutOfMemory"):
        ask(Databases(shop, memory_limit_bytes=16 * 2**20), text)


def test_a_query_has_a_limit_of_disk_space(shop: Path) -> None:
    text = (
        "SELECT row_number() OVER (ORDER BY hash(a.range + b.range), a.range) AS n "
        "FROM range(3000) a, range(3000) b"
    )
    databases = Databases(shop, memory_limit_bytes=64 * 2**20, spill_limit_bytes=2**20)
    with pytest.raises(ToolError, match="max_temp_directory_size"):
        ask(databases, text, max_rows=1)
    assert not list(shop.parent.glob("*.tmp"))


def test_a_query_runs_on_as_many_threads_as_asked(shop: Path) -> None:
    text = "SELECT current_setting('threads')::INTEGER AS n"
    assert ask(Databases(shop), text) == [{"n": 1}]
    assert ask(Databases(shop, threads=2), text) == [{"n": 2}]


ENDLESS = "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r"


@pytest.mark.parametrize("virtual", [False, True])
def test_a_query_without_end_is_interrupted_and_the_next_one_runs(
    shop: Path, virtual: bool
) -> None:
    databases = Databases(shop, timeout_s=0.3)

    async def main() -> list[Json]:
        with pytest.raises(ToolTimeoutError, match=r"within 0\.3 s"):
            await databases.query("", ENDLESS, {}, LoopClock())
        rows = await databases.query("", "SELECT 1 AS one", {}, LoopClock())
        await databases.close()
        return rows

    assert run(main, virtual) == [{"one": 1}]


@pytest.mark.parametrize("virtual", [False, True])
def test_a_query_may_wait_for_a_thread_for_longer_than_it_may_run(
    shop: Path, virtual: bool
) -> None:
    databases = Databases(shop, timeout_s=0.3, most_at_once=1)

    async def main() -> list[Any]:
        texts = [ENDLESS, ENDLESS, *(f"SELECT {i} AS n" for i in range(5))]
        asked = (databases.query("", text, {}, LoopClock()) for text in texts)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await databases.close()
        return answers

    *late, n0, n1, n2, n3, n4 = run(main, virtual)
    assert [type(each) for each in late] == [ToolTimeoutError] * 2
    assert [n0, n1, n2, n3, n4] == [[{"n": i}] for i in range(5)]


class Held:
    """Holds queries in their threads, once they have a row, until `gate` is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.running = self.most = 0
        self._begun = threading.Semaphore(0)
        self._lock = threading.Lock()

    def __call__(self, rows: Sequence[Json]) -> None:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self._begun.release()
        self.gate.wait(10)
        with self._lock:
            self.running -= 1

    async def begun(self, n: int) -> None:
        """Wait until `n` queries are held."""
        for _ in range(n):
            assert await asyncio.to_thread(self._begun.acquire, timeout=10)


@pytest.mark.parametrize("virtual", [False, True])
def test_more_queries_than_threads_are_all_answered(shop: Path, virtual: bool) -> None:
    databases, held = Databases(shop, most_at_once=3), Held()

    async def main() -> list[list[Json]]:
        clock = LoopClock()
        asked = [
            asyncio.ensure_future(databases.query("", f"SELECT {i} AS n", {}, clock, on_rows=held))
            for i in range(20)
        ]
        await held.begun(3)
        # Another file has threads of its own.
        other = str(shop.parent / "other.duckdb")
        assert await databases.query(other, "FROM secrets", {}, clock) == [{"word": "xyzzy"}]
        assert held.running == 3
        held.gate.set()
        answers = await asyncio.gather(*asked)
        await databases.close()
        return answers

    assert run(main, virtual) == [[{"n": i}] for i in range(20)]
    assert held.most == 3


def test_a_query_that_is_cancelled_while_it_waits_for_a_thread_never_runs(shop: Path) -> None:
    databases = Databases(shop, most_at_once=1, writable=frozenset({""}))
    held = Held()

    async def main() -> None:
        clock = LoopClock()
        first = asyncio.ensure_future(
            databases.query("", "SELECT 1 AS one", {}, clock, on_rows=held)
        )
        waiting = asyncio.ensure_future(
            databases.query("", "DELETE FROM items", {}, clock, read_only=False)
        )
        await held.begun(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        held.gate.set()
        assert await first == [{"one": 1}]
        count = "SELECT count(*) AS n FROM items"
        assert await databases.query("", count, {}, clock) == [{"n": 2}]
        await databases.close()

    run(main)
    assert len(items(shop)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "WITH w AS (INSERT INTO items VALUES (3, 'jug', 1) RETURNING *) SELECT * FROM w",
        "WITH w AS (UPDATE items SET price = 0 RETURNING *) SELECT * FROM w",
        "WITH w AS (DELETE FROM items RETURNING *) FROM w",
        "SELECT nextval('numbers')",
    ],
)
def test_a_file_that_is_open_for_reading_refuses_what_a_select_hides(shop: Path, text: str) -> None:
    before = items(shop)
    databases = Databases(shop, most_at_once=1)

    async def main() -> list[Json]:
        clock = LoopClock()
        with pytest.raises(ToolError, match="read-only"):
            await databases.query("", text, {}, clock)
        rows = await databases.query("", "SELECT count(*) AS n FROM items", {}, clock)
        await databases.close()
        return rows

    assert run(main) == [{"n": 2}]
    assert items(shop) == before


def test_writes_are_seen_by_later_reads(shop: Path) -> None:
    databases = Databases(shop, writable=frozenset({""}))

    async def main() -> tuple[list[Json], list[Json]]:
        clock = LoopClock()
        added = await databases.query(
            "",
            "INSERT INTO items VALUES ($id, 'jug', 1) RETURNING id",
            {"id": 3},
            clock,
            read_only=False,
        )
        with pytest.raises(ToolError, match="COPY"):
            await databases.query("", "COPY items TO 'x.csv'", {}, clock, read_only=False)
        count = await databases.query("", "SELECT count(*) AS n FROM items", {}, clock)
        await databases.close()
        return added, count

    assert run(main) == ([{"id": 3}], [{"n": 3}])
    assert len(items(shop)) == 3


def test_a_write_that_fails_changes_nothing(shop: Path) -> None:
    databases = Databases(shop, writable=frozenset({""}))
    text = "UPDATE items SET id = CAST(name AS INTEGER)"
    before = items(shop)
    with pytest.raises(ToolError, match="cup"):
        ask(databases, text, read_only=False)
    assert items(shop) == before


def test_a_database_that_is_not_declared_writable_is_not_written(shop: Path) -> None:
    with pytest.raises(ToolError, match="reading only"):
        ask(Databases(shop), "DELETE FROM items", read_only=False)


def test_a_file_has_one_name(shop: Path) -> None:
    link = shop.parent / "link.duckdb"
    link.symlink_to(shop)
    databases = Databases(link, writable=frozenset({str(shop)}))

    async def main() -> list[Json]:
        clock = LoopClock()
        await databases.query(str(shop), "DELETE FROM items", {}, clock, read_only=False)
        other = f"{shop.parent}/../{shop.parent.name}/shop.duckdb"
        rows = await databases.query(other, "FROM items", {}, clock)
        rows += await databases.query("", "FROM items", {}, clock)
        await databases.close()
        return rows

    assert run(main) == []


def test_a_name_that_is_no_path_is_an_error_of_the_query() -> None:
    with pytest.raises(ToolError, match="no path of a database"):
        ask(Databases(), "SELECT 1", database="a\0b")


def test_missing_databases_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="--db FILE"):
        ask(Databases(), "SELECT 1")
    with pytest.raises(ToolError, match=r"no database file .*gone\.duckdb"):
        ask(Databases(), "SELECT 1", database=str(tmp_path / "gone.duckdb"))
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and long enough to have a header" * 100)
    with pytest.raises(ToolError, match="cannot be opened"):
        ask(Databases(text), "SELECT 1")


def test_the_schema_is_one_sorted_line_a_table(shop: Path) -> None:
    assert Databases.schema(shop).splitlines() == [
        '"Old Orders"("order" TIMESTAMP, item INTEGER)',
        "items(id INTEGER, name VARCHAR, price DECIMAL(6,2))",
    ]


@pytest.mark.parametrize(
    ("text", "volatile"),
    [
        ("SELECT random()", True),
        ("SELECT CURRENT_DATE", True),
        ("SELECT Now() - at FROM t", True),
        ("SELECT gen_random_uuid()", True),
        ('SELECT "uuid"()', True),
        ("SELECT nextval('numbers')", True),
        ("SELECT * FROM t USING SAMPLE 5", True),
        ("SELECT current_localtimestamp()", True),
        ("SELECT setval('numbers', 3)", True),
        ("FROM duckdb_memory()", True),
        ("SELECT date_trunc('day', at) FROM t", False),
        ("SELECT 'unclosed", True),
        ("SELECT name FROM items WHERE name = 'random'", False),
        ("SELECT 1 -- now()", False),
    ],
)
def test_volatile_queries_are_recognized(text: str, volatile: bool) -> None:
    assert Databases.volatile(text) is volatile


def test_every_function_that_duckdb_calls_volatile_is_recognized() -> None:
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE'"
        ).fetchall()
    # These answer the same each time, and are called volatile so that they are not folded away.
    same = {"current_query", "error", "sleep_ms", "stats", "vector_type"}
    names = {str(name) for (name,) in found} - same
    assert len(names) >= 5
    assert [name for name in sorted(names) if not Databases.volatile(f"SELECT {name}()")] == []
