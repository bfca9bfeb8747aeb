"""Tables that statements are tested on: small, seeded, with duplicates and nulls."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pytest

if TYPE_CHECKING:
    from udf_oracle import Oracle

sys.path.insert(0, str(Path(__file__).parent))


def make_tables(connection: duckdb.DuckDBPyConnection, *, rows: int = 60, seed: int = 7) -> None:
    """reviews, claims, policies, questions, todo: with equal texts, nulls and empty groups."""
    draw = random.Random(seed)
    words = ["late", "broken", "great", "refund", "box", "cold", "kind", "slow", "blue", "loud"]
    bodies = [" ".join(draw.choices(words, k=draw.randint(2, 6))) for _ in range(rows // 3)]
    connection.execute(
        "CREATE TABLE reviews (id INTEGER, product_id INTEGER, title VARCHAR, body VARCHAR, "
        "stars INTEGER, lang VARCHAR)"
    )
    connection.executemany(
        "INSERT INTO reviews VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                i,
                draw.randint(1, 6),
                f"title {draw.randint(1, 9)}",
                None if draw.random() < 0.08 else draw.choice(bodies),
                draw.choice([1, 1, 2, 3, 4, 5, None]),
                draw.choice(["en", "en", "de", "fr"]),
            )
            for i in range(rows)
        ],
    )
    connection.execute(
        "CREATE TABLE claims (id INTEGER, line INTEGER, amount INTEGER, text VARCHAR)"
    )
    connection.executemany(
        "INSERT INTO claims VALUES (?, ?, ?, ?)",
        [(i, draw.randint(1, 4), draw.randint(1, 40), f"claim {i % 9}") for i in range(24)],
    )
    connection.execute("CREATE TABLE policies (code VARCHAR, line INTEGER, clause VARCHAR)")
    connection.executemany(
        "INSERT INTO policies VALUES (?, ?, ?)",
        [(f"P{i}", draw.randint(1, 4), None if i == 5 else f"clause {i % 4}") for i in range(8)],
    )
    connection.execute("CREATE TABLE questions (id INTEGER, text VARCHAR)")
    connection.executemany(
        "INSERT INTO questions VALUES (?, ?)", [(i, f"question {i % 5}") for i in range(10)]
    )
    connection.execute("CREATE TABLE todo AS SELECT id FROM questions WHERE id % 2 = 0")


@pytest.fixture(scope="session")
def oracle(database: Path) -> Iterator[Oracle]:
    """The oracle over the tables, on one connection for all tests."""
    # Here, since the module is found by the path that is set above.
    from udf_oracle import Oracle

    with duckdb.connect(database, read_only=True) as connection:
        connection.execute("SET threads = 1")
        yield Oracle(connection)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DuckDB file with the tables."""
    path = tmp_path_factory.mktemp("sql") / "shop.duckdb"
    with duckdb.connect(path) as connection:
        make_tables(connection)
    return path
