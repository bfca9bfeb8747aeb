"""The tool runner: sharing, effects, retries, limits and what is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tool_desk import Desk, once, pure, run, site, write

from planner.logical import Const, Effect, Json, Sql, Tool, ToolRef
from runtime import threads
from runtime.errors import DrainingError, ToolError, ToolTimeoutError
from runtime.http_tool import HttpTools
from runtime.memory_store import MemoryStore
from runtime.sql_tool import Databases
from runtime.tools import ToolSpec

# --- sharing and effects --------------------------------------------------------------------------


def test_equal_pure_calls_of_different_rows_are_made_once() -> None:
    calls: list[int] = []

    def double(x: int) -> int:
        calls.append(x)
        return 2 * x

    async def main() -> None:
        desk = Desk(pure(double))
        records = await asyncio.gather(*(desk.call("f", row, x=row % 2) for row in range(6)))
        assert [r.value for r in records] == [0, 2, 0, 2, 0, 2]
        metrics = desk.metrics["op"]
        assert (metrics.requested, metrics.made, metrics.shared) == (6, 2, 4)

    run(main)
    assert sorted(calls) == [0, 1]


def test_writes_are_made_for_each_row_and_keys_differ() -> None:
    calls: list[int] = []

    async def main() -> None:
        desk = Desk(write(lambda: calls.append(1)))
        first, second = await desk.call("f", 0), await desk.call("f", 1)
        assert first.key != second.key
        assert first.effect == "write"

    run(main)
    assert calls == [1, 1]


def test_keys_depend_on_tool_arguments_version_and_tenant() -> None:
    async def main() -> set[str]:
        keys: set[str] = set()
        for tenant in ("", "other"):
            for version in ("", "2"):
                desk = Desk(
                    pure(lambda x: x, version=version), pure(lambda x: x, "g"), tenant=tenant
                )
                for name in ("f", "g"):
                    for x in (1, "1"):
                        keys.add((await desk.call(name, x=x)).key)
        return keys

    assert len(run(main)) == 12  # g has no version


class SlowStore(MemoryStore):
    """A store whose records become durable when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[asyncio.Future[None]] = []

    def durable(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pending.append(future)
        return future

    def commit(self) -> None:
        for future in self.pending:
            if not future.done():
                future.set_result(None)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_write_starts_after_everything_before_it_is_durable() -> None:
    calls: list[int] = []

    async def tool() -> None:
        calls.append(1)

    async def main() -> None:
        store = SlowStore()
        task = asyncio.ensure_future(Desk(write(tool), store=store).call("f"))
        await settle()
        assert not calls
        store.commit()
        await settle()
        assert calls
        assert task.done()

    run(main)


def test_a_slot_is_free_again_when_the_record_is_durable() -> None:
    async def main() -> None:
        async def tool(x: int) -> int:
            return x

        store = SlowStore()
        desk = Desk(pure(tool, max_concurrency=1), store=store)
        first, second = (asyncio.ensure_future(desk.call("f", x=x)) for x in (1, 2))
        await settle()
        assert first.done()
        assert not second.done()
        store.commit()
        assert (await second).value == 2

    run(main)


def test_nothing_starts_when_records_can_no_longer_be_kept() -> None:
    async def main() -> None:
        async def tool(x: int) -> int:
            return x

        store = SlowStore()
        desk = Desk(pure(tool), store=store)
        await desk.call("f", x=1)
        store.pending[0].set_exception(OSError("disk full"))
        await settle()
        with pytest.raises(DrainingError, match="disk full"):
            await desk.call("f", x=2)

    run(main)


def test_concurrency_is_limited_for_each_tool() -> None:
    running = peak = 0

    async def tool(x: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(1)
        running -= 1
        return x

    async def main() -> float:
        desk = Desk(pure(tool, max_concurrency=3))
        await asyncio.gather(*(desk.call("f", x=x) for x in range(9)))
        return asyncio.get_running_loop().time()

    assert run(main) == pytest.approx(3.0)
    assert peak == 3


# --- errors ---------------------------------------------------------------------------------------


def test_an_error_names_the_tool_and_is_recorded_but_not_as_a_success() -> None:
    def search(q: str) -> str:
        raise ValueError(f"no index for {q}")

    async def main() -> None:
        desk = Desk(pure(search, "search", retries=0))
        with pytest.raises(ToolError, match="tool 'search' raised ValueError: no index for cats"):
            await desk.call("search", q="cats")
        (record,) = desk.store.calls
        assert record.value is None
        assert record.error is not None
        assert "no index" in record.error
        with pytest.raises(ToolError):
            await desk.call("search", q="cats")
        assert desk.metrics["op"].errors == 2
        good = Desk(dataclasses.replace(pure(len, "search"), function=lambda q: q))
        assert (await good.call("search", q="cats")).key != record.key

    run(main)


def test_pure_calls_are_tried_again_after_a_pause() -> None:
    calls: list[int] = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("busy")
        return "ok"

    async def main() -> None:
        desk = Desk(pure(flaky, retries=2))
        record = await desk.call("f")
        assert (record.value, record.attempts) == ("ok", 3)
        assert asyncio.get_running_loop().time() > 0
        assert desk.metrics["op"].retries == 2

    run(main)


def test_another_attempt_is_not_earlier_than_the_server_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main(asked_s: float) -> tuple[int, float]:
        calls: list[int] = []

        async def busy(*_: Any) -> str:
            calls.append(1)
            if len(calls) < 2:
                error = ToolError("busy", tool="fetch", retryable=True)
                error.retry_after_s = asked_s
                raise error
            return "ok"

        # Without a server: sockets have no virtual time.
        monkeypatch.setattr(HttpTools, "call", busy)
        desk = Desk(ToolSpec("fetch", None, url="http://127.0.0.1/", effect=Effect.PURE))
        with contextlib.suppress(ToolError):
            await desk.call("fetch")
        return len(calls), asyncio.get_running_loop().time()

    attempts, waited_s = run(lambda: main(90.0))
    assert attempts == 2
    assert waited_s >= 90.0
    # Longer than a slot is worth holding: the call fails at once.
    assert run(lambda: main(3600.0)) == (1, 0.0)


def test_retries_end_and_the_error_counts_the_attempts() -> None:
    def broken() -> None:
        raise OSError("busy")

    async def main() -> None:
        with pytest.raises(ToolError) as caught:
            await Desk(pure(broken, retries=2)).call("f")
        assert caught.value.attempts == 3

    run(main)


def test_writes_are_never_tried_again() -> None:
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        raise OSError("busy")

    with pytest.raises(ToolError):
        once(write(broken, retries=5))
    assert calls == [1]


@pytest.mark.parametrize("virtual", [False, True])
def test_a_hung_function_times_out_in_real_time(virtual: bool) -> None:
    release = threading.Event()

    async def main() -> None:
        desk = Desk(pure(release.wait, "slow", timeout_s=0.1, retries=0, max_concurrency=1))
        with pytest.raises(ToolTimeoutError, match=r"tool 'slow' did not answer within 0\.1 s"):
            await desk.call("slow")
        release.set()
        assert (await desk.call("slow", 1)).value is True  # its slot is free

    run(main, virtual)


def test_a_coroutine_function_times_out() -> None:
    async def slow() -> None:
        await asyncio.sleep(1000)

    with pytest.raises(ToolTimeoutError, match="within 60 s"):
        once(pure(slow, retries=0))


def test_a_timeout_error_of_the_tool_itself_is_not_a_timeout_of_the_call() -> None:
    async def tool() -> None:
        raise TimeoutError("the database")

    with pytest.raises(ToolError, match="raised TimeoutError: the database") as caught:
        once(pure(tool, retries=0))
    assert not isinstance(caught.value, ToolTimeoutError)


def test_a_hung_function_does_not_keep_the_process_from_ending() -> None:
    program = textwrap.dedent(
        """
        import asyncio, threading
        from planner.logical import Effect
        from runtime.clock import LoopClock
        from runtime.errors import ToolTimeoutError
        from runtime.python_tool import call_python
        from runtime.thread_lane import ThreadLane
        from runtime.tools import ToolSpec

        spec = ToolSpec("hang", threading.Event().wait, timeout_s=0.05)
        try:
            asyncio.run(call_python(spec, {}, "", LoopClock(), ThreadLane(1, "f")))
        except ToolTimeoutError as error:
            print(error.tool)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("hang\n", "")


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("x" * 9000), r"ValueError: x{2000} \.\.\.$"),
        (Unreadable(), "without a readable"),
    ],
)
def test_messages_of_errors_are_bounded(error: Exception, says: str) -> None:
    def tool() -> None:
        raise error

    with pytest.raises(ToolError, match=says):
        once(pure(tool, retries=0))


def test_without_threads_left_a_call_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        desk = Desk(pure(lambda: 1, retries=0))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            patch.setattr(threads, "_idle", [])  # none left from earlier calls
            with pytest.raises(ToolError, match="no thread could be started"):
                await desk.call("f")
        assert (await desk.call("f")).value == 1

    run(main, virtual=False)


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), KeyboardInterrupt()])
def test_exceptions_that_end_threads_are_errors_of_the_tool(error: BaseException) -> None:
    def tool() -> None:
        raise error

    with pytest.raises(ToolError, match=f"raised {type(error).__name__}"):
        once(pure(tool, retries=0))


def test_an_unknown_tool_names_the_known_ones() -> None:
    async def main() -> None:
        with pytest.raises(ToolError, match=r"no tool 'h'; the tools are: f, g"):
            await Desk(pure(len), pure(len, "g")).call("h")

    run(main)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"q": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["q"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "q"),
        ({"q": 1}, "q: 1 is not"),
        ({"q": "a", "n": "b"}, "n: "),
        ({"q": "a", "z": 1}, "z"),
    ],
)
def test_arguments_must_fit_before_the_tool_runs(arguments: dict[str, Json], says: str) -> None:
    calls: list[Any] = []
    with pytest.raises(ToolError, match=f"arguments of tool 'f' do not fit: .*{says}"):
        once(pure(lambda **a: calls.append(a), parameters=SCHEMA), **arguments)
    assert not calls


def test_messages_about_arguments_are_bounded() -> None:
    with pytest.raises(ToolError) as caught:
        once(pure(lambda **a: a, parameters=SCHEMA), q=["x" * 1_000_000])
    assert len(str(caught.value)) < 500
    assert str(caught.value).endswith('is not of type "string"')


def test_a_schema_reads_no_file_and_no_address(outside_reference: str) -> None:
    with pytest.raises(ToolError, match="is outside the schema"):
        once(pure(lambda: 1, parameters={"$ref": outside_reference}))


# --- draining -------------------------------------------------------------------------------------


def test_after_stop_running_calls_finish_and_others_are_refused() -> None:
    async def tool(x: int) -> int:
        await asyncio.sleep(5)
        return x

    async def main() -> None:
        desk = Desk(pure(tool, max_concurrency=1))
        running, waiting = (asyncio.ensure_future(desk.call("f", x=x)) for x in (1, 2))
        await settle()
        desk.runner.stop()
        assert (await running).value == 1
        for refused in (waiting, desk.call("f", x=3)):
            with pytest.raises(DrainingError):
                await refused
        assert [r.value for r in desk.store.calls] == [1]

    run(main)


def test_stop_ends_the_pause_before_another_attempt() -> None:
    async def tool() -> None:
        asyncio.get_running_loop().call_later(0.01, desk[0].runner.stop)
        raise OSError("busy")

    desk: list[Desk] = []

    async def main() -> float:
        desk.append(Desk(pure(tool, retries=9)))
        with pytest.raises(DrainingError):
            await desk[0].call("f")
        return asyncio.get_running_loop().time()

    assert run(main) == pytest.approx(0.01)


# --- queries --------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE items AS SELECT range AS id FROM range(5)")
    return path


def test_equal_queries_are_made_once_and_volatile_ones_for_each_asker(shop: Path) -> None:
    async def main() -> None:
        desk = Desk(databases=Databases(shop))
        op = Sql(max_rows=2)
        text = "SELECT id FROM items WHERE id > $low ORDER BY id"
        for row in range(3):
            record = await desk.runner.query(op, text, {"low": 1}, site(row))
            assert record.value == [{"id": 2}, {"id": 3}]
            assert (record.kind, record.name, record.effect) == ("sql", "shop.duckdb", "pure")
        assert desk.metrics["op"].made == 1
        values = [
            (await desk.runner.query(op, "SELECT uuid() AS u", {}, site(row))).value
            for row in (0, 1, 0)
        ]
        assert values[0] == values[2] != values[1]
        await desk.runner.close()

    run(main)


def test_a_read_after_a_write_is_not_answered_from_before_it(shop: Path) -> None:
    async def main() -> None:
        desk = Desk(databases=Databases(shop, writable=frozenset({""})))
        count = "SELECT count(*) AS n FROM items"
        insert = Sql(read_only=False, call_id="c1")
        results: list[Json] = []
        for row in range(2):
            at = site(row, effect=Effect.WRITE)
            await desk.runner.query(insert, "INSERT INTO items VALUES (9)", {}, at)
            results.append((await desk.runner.query(Sql(), count, {}, site(row))).value)
        assert results == [[{"n": 6}], [{"n": 7}]]
        assert [r.effect for r in desk.store.calls] == ["write", "pure"] * 2
        await desk.runner.close()

    run(main)


def test_a_refused_query_is_an_error_of_the_row(shop: Path) -> None:
    async def main() -> None:
        desk = Desk(databases=Databases(shop))
        with pytest.raises(ToolError, match="DROP"):
            await desk.runner.query(Sql(), "DROP TABLE items", {}, site())
        assert desk.metrics["op"].errors == 1
        await desk.runner.close()

    run(main)


@pytest.mark.parametrize(
    ("op", "writable", "shares"),
    [
        (Tool((), ToolRef("reads", "", Effect.PURE)), False, True),
        (Tool((), ToolRef("reads", "", Effect.PURE), fresh=True), False, True),
        (Tool((), ToolRef("reads", "", Effect.WRITE), call_id="c1"), False, False),
        (Tool((), ToolRef("writes", "", Effect.PURE)), False, False),
        (Tool((), ToolRef("gone", "", Effect.PURE)), False, False),
        (Sql((), text="SELECT id FROM items"), False, True),
        (Sql((), text="SELECT id FROM items", batched=True, derived=True), False, True),
        (Sql((), text="SELECT id FROM items"), True, False),
        (Sql((), text="SELECT random() AS r"), False, False),
        (Sql((), text="SELECT id FROM items", volatile=True, call_id="c1"), False, False),
        (Sql((), text="DELETE FROM items", read_only=False, call_id="c1"), True, False),
        (Sql((Const.of("SELECT 1"),)), False, False),
    ],
)
def test_what_shares_its_equal_calls(
    shop: Path, op: Tool | Sql, writable: bool, shares: bool
) -> None:
    async def main() -> bool:
        databases = Databases(shop, writable=frozenset({""} if writable else ()))
        specs = pure(lambda: 1, "reads"), write(lambda: 1, "writes")
        return Desk(*specs, databases=databases).runner.shares(op)

    assert run(main) is shares


class Held(Databases):
    """Holds the first query in the one thread that there is, until `gate` is open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, most_at_once=1)
        self.gate, self.begun = threading.Event(), threading.Event()
        self.seen: list[Json] = []

    async def query(self, *args: Any, **options: Any) -> list[Json]:
        return await super().query(*args, **{**options, "on_rows": self._hold})

    def _hold(self, rows: Sequence[Json]) -> None:
        self.begun.set()
        self.gate.wait(10)
        self.seen += rows

    async def first(self) -> None:
        """Wait until the first query is held, and others have come as far as they can."""
        assert await asyncio.to_thread(self.begun.wait, 10)
        await settle()


def ask(desk: Desk, text: str, row: int = 0) -> asyncio.Future[Any]:
    return asyncio.ensure_future(desk.runner.query(Sql(), text, {}, site(row)))


def test_a_thread_goes_from_one_query_to_the_next_while_the_loop_is_busy(shop: Path) -> None:
    last = threading.Event()

    class Watched(Held):
        def _hold(self, rows: Sequence[Json]) -> None:
            super()._hold(rows)
            if len(self.seen) == 40:
                last.set()

    async def main() -> None:
        databases = Watched(shop)
        desk = Desk(databases=databases)
        asked = [ask(desk, f"SELECT {i} AS n", i) for i in range(40)]
        await databases.first()
        databases.gate.set()
        assert last.wait(10)  # the loop stands still meanwhile
        records = await asyncio.gather(*asked)
        assert [r.value for r in records] == [[{"n": i}] for i in range(40)]
        assert databases.seen == [{"n": i} for i in range(40)]
        await desk.runner.close()

    run(main, virtual=False)


@pytest.mark.parametrize("text", ["SELECT 2 AS n", "SELECT gone"], ids=["answered", "failed"])
def test_the_record_of_a_query_begins_when_it_has_a_thread(shop: Path, text: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        databases = Held(shop)
        desk = Desk(databases=databases)
        origin_s = loop.time()
        first, second = ask(desk, "SELECT 1 AS n"), ask(desk, text)
        await databases.first()
        opened_s = loop.time() - origin_s
        databases.gate.set()
        with contextlib.suppress(ToolError):
            await asyncio.gather(first, second)
        begun, waited = desk.store.calls
        assert begun.start_s <= opened_s <= begun.end_s
        assert waited.queued_s <= opened_s <= waited.start_s <= waited.end_s
        await desk.runner.close()

    run(main, virtual=False)


def test_after_stop_a_query_that_waits_for_a_thread_is_refused(shop: Path) -> None:
    async def main() -> None:
        databases = Held(shop)
        desk = Desk(databases=databases)
        first, second = ask(desk, "SELECT 1 AS n"), ask(desk, "SELECT 2 AS n")
        await databases.first()
        desk.runner.stop()
        databases.gate.set()
        assert (await first).value == [{"n": 1}]
        with pytest.raises(DrainingError):
            await second
        assert [r.value for r in desk.store.calls] == [[{"n": 1}]]
        await desk.runner.close()

    run(main)
