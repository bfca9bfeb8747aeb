"""Look-ups that wait together go to a real database as one query, and get what is theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from planner.logical import Const, Json, Sql
from runtime import sql_batches
from runtime.clock import LoopClock, new_event_loop
from runtime.errors import ToolError
from runtime.memory_store import MemoryStore
from runtime.records import CallSite
from runtime.sharing import CallTable
from runtime.sql_batches import SqlBatches
from runtime.sql_tool import Databases
from runtime.tool_runner import ToolRunner

LOOKUP = Sql(
    (Const.of(1),), text="SELECT name FROM items WHERE id = $id", params=("id",), batched=True
)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    import duckdb

    path = tmp_path / "shop.db"
    with duckdb.connect(path) as connection:
        connection.execute(
            "CREATE TABLE items AS SELECT i // 2 AS id, 'n' || i AS name FROM range(40) t(i)"
        )
    return path


def ask_all(path: Path, op: Sql, values: Sequence[Json], **settings: int) -> tuple[list[Json], int]:
    """The rows for each value, and how many queries the database got."""

    async def main() -> tuple[list[Json], int]:
        clock, store = LoopClock(), MemoryStore()
        databases = Databases(path, **settings)
        queries = 0
        query = databases.query

        async def counted(*args: object, **options: object) -> list[Json]:
            nonlocal queries
            queries += 1
            return await query(*args, **options)  # type: ignore[arg-type]

        databases.query = counted  # type: ignore[method-assign, assignment]
        runner = ToolRunner({}, databases, CallTable(store, {}), store, clock)
        site = CallSite(op.fingerprint, "q", 0, "k")
        try:
            records = await asyncio.gather(
                *(runner.query(op, op.text or "", {"id": value}, site) for value in values),
                return_exceptions=True,
            )
        finally:
            await runner.close()
        return [r if isinstance(r, BaseException) else r.value for r in records], queries  # type: ignore[misc]

    with asyncio.Runner(loop_factory=lambda: new_event_loop(False)) as loop:
        return loop.run(main())


def test_look_ups_of_many_rows_are_few_queries(shop: Path) -> None:
    # One at once, so that there are few however slow the machine is.
    found, queries = ask_all(shop, LOOKUP, [i % 25 for i in range(60)], most_at_once=1)
    assert found == [
        [{"name": f"n{2 * (i % 25)}"}, {"name": f"n{2 * (i % 25) + 1}"}] if i % 25 < 20 else []
        for i in range(60)
    ]
    assert queries <= 3


def test_values_of_different_types_are_not_mixed(shop: Path) -> None:
    found, _ = ask_all(shop, LOOKUP, [1, "1", None, 2.0, True])
    alone = [ask_all(shop, LOOKUP, [value])[0][0] for value in (1, "1", None, 2.0, True)]
    assert found == alone


def test_a_bad_look_up_fails_alone(shop: Path) -> None:
    found, _ = ask_all(shop, LOOKUP, [1, "not a number", "2"])
    assert found[0] == [{"name": "n2"}, {"name": "n3"}]
    assert isinstance(found[1], ToolError)
    assert found[2] == [{"name": "n4"}, {"name": "n5"}]


def test_each_look_up_has_its_own_limit(shop: Path) -> None:
    op = Sql(LOOKUP.inputs, text=LOOKUP.text, params=("id",), batched=True, max_rows=1)
    assert ask_all(shop, op, [3, 4])[0] == [[{"name": "n6"}], [{"name": "n8"}]]


class SlowDatabase:
    """Takes `each_s` for every look-up of a query."""

    def __init__(self, each_s: float) -> None:
        self.sizes: list[int] = []
        self.running = self.peak = 0
        self._each_s = each_s

    async def ask(self, text: str, params: Mapping[str, Json], max_rows: int) -> Sequence[Json]:
        indices = params.get("halo_indices")
        values = params["id"]
        size = len(indices) if isinstance(indices, list) else 1
        self.sizes.append(size)
        self.running += 1
        self.peak = max(self.peak, self.running)
        await asyncio.sleep(self._each_s * size)
        self.running -= 1
        if not isinstance(values, list):
            return [{"name": values}]
        return [{"halo index": i, "name": value, "halo order": 0} for i, value in enumerate(values)]


def ask_slowly(
    database: SlowDatabase, values: Sequence[int], most_parts: int, monkeypatch: pytest.MonkeyPatch
) -> list[list[Json]]:
    """Look-ups that become ready a tenth of a second after each other."""

    async def main() -> list[list[Json]]:
        batches = SqlBatches(most_parts)
        monkeypatch.setattr(sql_batches, "wall_s", asyncio.get_running_loop().time)

        async def later(value: int) -> list[Json]:
            await asyncio.sleep(0.1 * value)
            return await batches.query(LOOKUP, {"id": value}, database.ask)

        return await asyncio.gather(*(later(value) for value in values))

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as loop:
        return loop.run(main())


def test_a_batch_takes_those_that_gathered_while_the_last_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = SlowDatabase(0.25)
    assert ask_slowly(database, range(20), 1, monkeypatch) == [[{"name": i}] for i in range(20)]
    # Those that came meanwhile, and then all the others, each when the last was done.
    assert database.sizes == [1, 2, 5, 12]


def test_a_batch_that_would_take_long_is_asked_in_parts_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = SlowDatabase(1.0)
    values = list(range(9))
    assert ask_slowly(database, values, 4, monkeypatch) == [[{"name": i}] for i in values]
    assert database.sizes == [1, 2, 2, 2, 2]
    assert database.peak == 4


def test_short_look_ups_are_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    database = SlowDatabase(0.0001)
    assert ask_slowly(database, [0] * 50, 4, monkeypatch) == [[{"name": 0}]] * 50
    assert database.sizes == [1, 49]
