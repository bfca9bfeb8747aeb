"""Look-ups that wait together go to a real database as one query, and get what is theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from planner.logical import Const, Json, Sql
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


def ask_all(path: Path, op: Sql, values: Sequence[Json]) -> tuple[list[Json], int]:
    """The rows for each value, and how many queries the database got."""

    async def main() -> tuple[list[Json], int]:
        clock, store = LoopClock(), MemoryStore()
        databases = Databases(path)
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
    found, queries = ask_all(shop, LOOKUP, [i % 25 for i in range(60)])
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


def test_a_batch_takes_those_that_gathered_while_the_last_was_asked() -> None:
    asked: list[int] = []

    async def ask(text: str, params: Mapping[str, Json], max_rows: int) -> Sequence[Json]:
        indices = params.get("halo_indices")
        size = len(indices) if isinstance(indices, list) else 1
        asked.append(size)
        await asyncio.sleep(1)
        return (
            [{"halo index": i, "name": i, "halo order": 0} for i in range(size)]
            if size > 1
            else [{"name": 0}]
        )

    async def main() -> int:
        batches = SqlBatches()

        async def later(value: int) -> None:
            await asyncio.sleep(0.1 * value)
            await batches.query(LOOKUP, {"id": value}, ask)

        await asyncio.gather(*(later(value) for value in range(20)))
        return batches.lookups

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as loop:
        assert loop.run(main()) == 19
    assert asked[0] == 1
    assert sum(asked) == 20
    assert len(asked) <= 4


def test_a_defect_reaches_all_who_wait() -> None:
    """What fails in no way that a query fails ends the look-ups instead of leaving them waiting."""

    async def ask(text: str, params: Mapping[str, Json], max_rows: int) -> Sequence[Json]:
        await asyncio.sleep(1)
        raise RuntimeError("defect")

    async def main() -> list[BaseException | list[Json]]:
        batches = SqlBatches()
        asked = (batches.query(LOOKUP, {"id": value}, ask) for value in range(5))
        async with asyncio.timeout(60):
            return await asyncio.gather(*asked, return_exceptions=True)

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as loop:
        found = loop.run(main())
    assert [repr(each) for each in found] == ["RuntimeError('defect')"] * 5
