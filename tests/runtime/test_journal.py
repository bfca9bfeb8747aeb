"""The journal: what it says is durable is there after anything, once, and reads back equal."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from costmodel.usage import OpMetrics, Usage
from planner.logical import Json
from runtime.clock import LoopClock, new_event_loop
from runtime.errors import RunDirectoryError, ValueTypeError
from runtime.journal import GROUP_RECORDS, VIRTUAL_COMMIT_S, Journal
from runtime.journal_reader import read_calls, read_metrics, read_outcomes, read_progress
from runtime.journal_schema import open_journal
from runtime.journal_summary import calls_by_name, failures_by_reason, slowest_calls
from runtime.memory_store import MemoryStore
from runtime.records import CallRecord, Outcome, RowError, Store

FIXTURES = Path(__file__).parents[1] / "fixtures" / "runs"

CALL = CallRecord(
    key="k" * 64,
    kind="model",
    name="m",
    op="op",
    query="q",
    row_key="row",
    value={"text": "an answer"},
    effect="sampled",
    path="map[3]/loop[1]",
    turn=2,
    usage=Usage(100, 20, 60, None),
    finish_reason="stop",
    queued_s=0.5,
    start_s=1.25,
    first_token_s=1.5,
    end_s=2.75,
    attempts=3,
)


def with_journal(path: Path, work: Callable[[Journal], Awaitable[None]], reason: str = "") -> None:
    async def main() -> None:
        journal = Journal(path, started_at="2026-01-01T00:00:00+00:00")
        try:
            await work(journal)
        finally:
            journal.close(reason)

    asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sqlite"


def test_both_stores_are_stores(path: Path) -> None:
    async def work(journal: Journal) -> None:
        stores: list[Store] = [journal, MemoryStore()]
        for store in stores:
            store.record_metrics({"op": OpMetrics(made=1)})
            await store.record_call(CALL)
            await store.record_outcome(Outcome("q", 0, "row", 1))
            await store.record_outcome(Outcome("q", 0, "row", 2))
            await store.durable()
            assert list(store.recorded_outcomes()) == [("q", "row")]

    with_journal(path, work)


@pytest.mark.parametrize(
    "value",
    [
        {"text": "an answer"},
        None,
        True,
        [1.5, 2, {"deep": [None]}],
        10**40,
        1e300,
        "",
        "line\nbreak \x00 nul",
        "naïve 日本語 \U0001f600",
        "half a pair: \ud83d",
        {"key \ud83d": "\u2028"},
    ],
)
def test_a_recorded_call_reads_back_equal_in_a_later_process(path: Path, value: Json) -> None:
    call = replace(CALL, value=value)

    async def record(journal: Journal) -> None:
        assert journal.recorded_call(call.key) is None
        await journal.record_call(call)

    async def replay(journal: Journal) -> None:
        assert journal.recorded_call(call.key) == call
        assert journal.recorded_call("another key") is None

    with_journal(path, record)
    with_journal(path, replay)
    assert list(read_calls(path)) == [(1, call)]


def test_unmeasured_cached_tokens_are_not_zero(path: Path) -> None:
    usages = [Usage(10, 5), Usage(10, 5, 0), Usage(10, 5, None, 0), Usage(10, 5, 4, 6)]

    async def work(journal: Journal) -> None:
        for i, usage in enumerate(usages):
            await journal.record_call(replace(CALL, key=str(i), usage=usage, start_s=float(i)))

    with_journal(path, work)
    assert [call.usage for _, call in read_calls(path)] == usages


def test_a_durable_record_is_visible_to_another_process_while_this_one_writes(path: Path) -> None:
    async def work(journal: Journal) -> None:
        journal.record_outcome(Outcome("q", 0, "a", {"x": 1}))
        await journal.durable()
        assert list(read_outcomes(path)) == [Outcome("q", 0, "a", {"x": 1})]
        await journal.record_outcome(Outcome("q", 1, "b", None, RowError("E", "why", "op")))
        assert list(read_outcomes(path, "q"))[1].error == RowError("E", "why", "op")
        assert list(read_outcomes(path, "other")) == []

    with_journal(path, work)


def test_nothing_is_recorded_twice(path: Path) -> None:
    async def first(journal: Journal) -> None:
        journal.record_call(CALL)
        journal.record_call(replace(CALL, value="second"))
        journal.record_outcome(Outcome("q", 0, "row", "first"))
        journal.record_outcome(Outcome("other", 0, "row", "of another query"))
        await journal.record_outcome(Outcome("q", 0, "row", None, RowError("E", "late")))

    async def second(journal: Journal) -> None:
        journal.record_call(replace(CALL, value="third"))
        await journal.record_outcome(Outcome("q", 0, "row", "third"))
        assert sorted(journal.recorded_outcomes()) == [("other", "row"), ("q", "row")]

    with_journal(path, first)
    with_journal(path, second)
    assert [call.value for _, call in read_calls(path)] == [CALL.value]
    assert [outcome.value for outcome in read_outcomes(path)] == ["of another query", "first"]


def test_failed_calls_are_kept_and_never_replayed(path: Path) -> None:
    failed = replace(CALL, value=None, error="engine gone", start_s=1.0)

    async def fail(journal: Journal) -> None:
        journal.record_call(failed)
        await journal.record_call(failed)

    async def succeed(journal: Journal) -> None:
        assert journal.recorded_call(CALL.key) is None
        await journal.record_call(CALL)

    async def replay(journal: Journal) -> None:
        assert journal.recorded_call(CALL.key) == CALL

    for work in (fail, succeed, replay):
        with_journal(path, work)
    assert list(read_calls(path)) == [(1, failed), (1, failed), (2, CALL)]


def test_records_of_one_turn_of_the_loop_are_one_commit(path: Path) -> None:
    async def work(journal: Journal) -> None:
        futures = {journal.record_outcome(Outcome("q", i, f"row{i}", i)) for i in range(100)}
        assert len(futures) == 1
        assert journal.durable() in futures
        await journal.durable()
        assert journal.durable().done()
        many = {
            journal.record_outcome(Outcome("q", i, f"row{i}", i))
            for i in range(100, 100 + 2 * GROUP_RECORDS + 1)
        }
        assert len(many) == 3
        await journal.durable()
        assert all(future.done() for future in many)

    with_journal(path, work)
    assert read_progress(path).queries["q"].done == 2 * GROUP_RECORDS + 101


def test_one_cancelled_waiter_does_not_cancel_the_others(path: Path) -> None:
    async def work(journal: Journal) -> None:
        async def wait(i: int) -> None:
            await journal.record_outcome(Outcome("q", i, f"row{i}", i))

        first, second = (asyncio.ensure_future(wait(i)) for i in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        await asyncio.wait([first])
        assert first.cancelled()

    with_journal(path, work)
    assert read_progress(path).queries["q"].done == 2


def test_close_keeps_what_nobody_waited_for_and_the_metrics(path: Path) -> None:
    async def work(journal: Journal) -> None:
        journal.record_metrics({"op": OpMetrics(requested=7)})
        journal.record_outcome(Outcome("q", 0, "row", 1))

    with_journal(path, work, "finished")
    assert read_progress(path).queries["q"].done == 1
    assert read_metrics(path) == {"op": OpMetrics(requested=7)}


def test_a_closed_journal_refuses_records(path: Path) -> None:
    async def work(journal: Journal) -> None:
        journal.close("finished")
        journal.close("again")
        with pytest.raises(RunDirectoryError, match="closed"):
            journal.record_call(CALL)

    with_journal(path, work)
    assert [p.exit_reason for p in read_progress(path).processes] == ["finished"]


def test_metrics_are_kept_with_each_commit_and_summed_over_processes(path: Path) -> None:
    async def first(journal: Journal) -> None:
        metrics = {"a": OpMetrics(requested=1, usage=Usage(10, 1)), "b": OpMetrics(shared=2)}
        journal.record_metrics(metrics)
        await journal.record_outcome(Outcome("q", 0, "x", 1))
        assert read_metrics(path) == metrics
        metrics["a"].requested += 1
        metrics["a"].usage += Usage(5, 2, 3)
        await journal.record_outcome(Outcome("q", 1, "y", 1))
        assert read_metrics(path) == metrics

    async def second(journal: Journal) -> None:
        journal.record_metrics({"a": OpMetrics(requested=10, replayed=4, busy_s=0.5)})

    with_journal(path, first)
    with_journal(path, second)
    assert read_metrics(path) == {
        "a": OpMetrics(requested=12, replayed=4, busy_s=0.5, usage=Usage(15, 3, 3)),
        "b": OpMetrics(shared=2),
    }


def test_metrics_of_a_huge_plan_cost_in_proportion_to_the_records(path: Path) -> None:
    metrics = {f"op{i}": OpMetrics() for i in range(1_000)}

    async def work(journal: Journal) -> None:
        journal.record_metrics(metrics)
        for i in range(1_000):
            metrics[f"op{i}"].made = 1
            journal.record_outcome(Outcome("q", i, f"row{i}", i))
            if i in (10, 998):
                await journal.durable()
                assert read_metrics(path) == {}
        await journal.durable()
        assert read_metrics(path) == metrics
        metrics["op0"].made = 2

    with_journal(path, work)
    assert read_metrics(path) == metrics


def test_commits_are_synced_to_the_disk(path: Path) -> None:
    """No kill can show it: only a power loss loses what was written and not synced."""
    with closing(open_journal(path)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_processes_tell_who_ran_and_how_it_ended(path: Path) -> None:
    async def main() -> None:
        journal = Journal(path, started_at="2026-01-01T00:00:00+00:00")
        assert journal.process == 1
        await journal.record_call(CALL)
        journal.close("interrupted", ended_at="2026-01-01T00:00:09+00:00", cpu_s=1.5)
        second = Journal(path, started_at="2026-01-02T00:00:00+00:00")
        assert second.process == 2
        running = read_progress(path).processes[1]
        assert (running.ended_at, running.exit_reason, running.cpu_s) == (None, None, None)
        second.close("finished")

    asyncio.run(main())
    first, second = read_progress(path).processes
    assert first.exit_reason == "interrupted"
    assert (first.started_at, first.ended_at) == (
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T00:00:09+00:00",
    )
    assert (first.cpu_s, first.last_s) == (1.5, 2.75)
    assert (second.exit_reason, second.last_s) == ("finished", 0.0)


def test_a_value_that_is_not_json_fails_its_row_and_nothing_else(path: Path) -> None:
    deep: Json = []
    for _ in range(200_000):
        deep = [deep]

    async def work(journal: Journal) -> None:
        for value in (float("nan"), deep):
            with pytest.raises(ValueTypeError, match="'m' cannot be recorded as JSON"):
                journal.record_call(replace(CALL, value=value))
        journal.record_outcome(Outcome("q", 0, "nan", {"x": float("inf")}))
        journal.record_outcome(Outcome("q", 1, "deep", deep))
        await journal.record_outcome(Outcome("q", 2, "fine", "fine"))

    with_journal(path, work)
    outcomes = list(read_outcomes(path))
    assert [o.error.type if o.error else o.value for o in outcomes] == [
        "ValueTypeError",
        "ValueTypeError",
        "fine",
    ]
    assert outcomes[0].error is not None
    assert "row 0 of 'q'" in outcomes[0].error.message
    # Taken apart from the outside in: freeing it whole would recurse.
    while isinstance(deep, list) and deep:
        deep = deep.pop()


def test_messages_with_broken_unicode_are_recorded(path: Path) -> None:
    async def work(journal: Journal) -> None:
        journal.record_call(replace(CALL, value=None, error="bad \udcff byte"))
        await journal.record_outcome(
            Outcome("q", 0, "row", None, RowError("ToolError", "bad \udcff byte", "op \udcff"))
        )

    with_journal(path, work)
    [outcome] = read_outcomes(path)
    assert outcome.error == RowError("ToolError", "bad \ufffd byte", "op \ufffd")


def test_on_virtual_time_commits_take_the_same_time_whatever_the_disk_does(path: Path) -> None:
    loop = new_event_loop(virtual=True)

    async def main() -> None:
        journal = Journal(path)
        other = asyncio.ensure_future(asyncio.sleep(1_000))
        for i in range(20):
            await journal.record_outcome(Outcome("q", i, f"row{i}", i))
        assert loop.time() == pytest.approx(20 * 2 * VIRTUAL_COMMIT_S)
        await other
        assert loop.time() == 1_000
        journal.close()

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


@pytest.mark.parametrize("is_written", [False, True])
def test_on_virtual_time_a_journal_that_is_closed_in_the_middle_is_settled_once(
    path: Path, is_written: bool
) -> None:
    faults: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what))
        journal = Journal(path)
        on_disk, written = asyncio.Event(), journal._written

        def tell(group: Any, error: RunDirectoryError | None) -> None:
            written(group, error)
            on_disk.set()

        journal._written = tell  # type: ignore[method-assign]
        durable = journal.record_call(CALL)
        await asyncio.sleep(1.5 * VIRTUAL_COMMIT_S)  # handed over, and not due yet
        if is_written:
            with LoopClock().outside():
                await on_disk.wait()
        journal.close()
        await durable
        await asyncio.sleep(1)

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as loop:
        loop.run(main())
    assert not faults


def test_an_unusable_journal_is_refused_with_a_reason(tmp_path: Path, path: Path) -> None:
    with_journal(path, lambda journal: journal.record_call(CALL))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = '999' WHERE key = 'schema_version'")
    connection.commit()
    connection.close()
    text = tmp_path / "text.sqlite"
    text.write_text("this is not a database, but a text that is long enough to be read as one" * 9)
    for file, words in (
        (path, "newer Halo.*999.*upgrade"),
        (text, "text.sqlite.*not a database"),
        (tmp_path / "missing" / "events.sqlite", "missing"),
    ):
        with pytest.raises(RunDirectoryError, match=words):
            Journal(file)
        with pytest.raises(RunDirectoryError, match=words):
            read_progress(file)


def test_a_full_disk_is_a_clear_error_and_loses_nothing_that_was_durable(tmp_path: Path) -> None:
    limits = [str(150_000 + 37_000 * i) for i in range(20)]
    done = subprocess.run(
        [sys.executable, str(FIXTURES / "full_disk.py"), str(tmp_path), *limits],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(limits)
    counts: list[int] = []
    for limit, result in zip(limits, found, strict=True):
        path = tmp_path / f"{limit}.sqlite"
        for error in (result["error"], result["next_error"]):
            assert str(path) in error
            assert f"halo resume {tmp_path}" in error
        check_integrity(path)
        keys = {call.key for _, call in read_calls(path)}
        assert set(result["durable"]) <= keys
        counts.append(len(result["durable"]))
        # Space has returned: the run goes on where it stopped.
        with_journal(path, lambda journal: journal.record_call(replace(CALL, key="after")))
        assert {call.key for _, call in read_calls(path)} == keys | {"after"}
    assert counts[0] < counts[-1]


def test_summaries_count_by_reason_name_and_duration(path: Path) -> None:
    async def work(journal: Journal) -> None:
        for i in range(6):
            tool = replace(CALL, key=f"t{i}", kind="tool", name="t", start_s=0.0, end_s=float(i))
            journal.record_call(tool if i else replace(tool, error="boom", value=None))
        journal.record_call(replace(CALL, start_s=0.0, end_s=2.5))
        for i, kind in enumerate(["A", "B", "A", "A"]):
            error = RowError(kind, f"{kind} in row {9 - i}", "op")
            journal.record_outcome(Outcome("q", 9 - i, f"row{i}", None, error))
        await journal.record_outcome(Outcome("q", 10, "ok", 1))

    with_journal(path, work)
    groups = failures_by_reason(path)
    assert [(g.type, g.op, g.rows, g.example_row) for g in groups] == [
        ("A", "op", 3, 6),
        ("B", "op", 1, 8),
    ]
    assert groups[0].example_message == "A in row 6"
    names = calls_by_name(path)
    assert [(g.kind, g.name, g.calls, g.failed, g.mean_s, g.max_s) for g in names] == [
        ("model", "m", 1, 0, 2.5, 2.5),
        ("tool", "t", 6, 1, 2.5, 5.0),
    ]
    assert [call.seconds for call in slowest_calls(path, 3)] == [5.0, 4.0, 3.0]


def check_integrity(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def kill_and_check(seed: int, kills: int, path: Path) -> None:
    """Kill a writing process after a random number of acknowledgements, again and again."""
    rng = random.Random(seed)
    acknowledged: set[str] = set()
    first = 0
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, str(FIXTURES / "journal_writer.py"), str(path), str(first), "1000000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None and child.stderr is not None
        with child:
            lines = [child.stdout.readline().strip() for _ in range(rng.randrange(1, 600))]
            child.kill()
            rest, errors = child.communicate()
        assert errors == ""
        # The last line may have been cut by the kill.
        lines += rest.split("\n")[:-1]
        acknowledged.update(lines)
        check_integrity(path)
        calls = [call for _, call in read_calls(path)]
        outcomes = list(read_outcomes(path))
        recorded = [f"call {c.key.removeprefix('key')}" for c in calls]
        recorded += [f"outcome {o.row_index}" for o in outcomes]
        assert len(recorded) == len(set(recorded)), "recorded twice"
        assert acknowledged <= set(recorded), "acknowledged and lost"
        assert [o.value for o in outcomes] == [o.row_index for o in outcomes]
        first = len(outcomes)
    assert acknowledged


@pytest.mark.parametrize("seed", range(2))
def test_what_was_acknowledged_survives_kills(seed: int, path: Path) -> None:
    kill_and_check(seed, 5, path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_what_was_acknowledged_survives_many_kills(seed: int, path: Path) -> None:
    kill_and_check(seed, 50, path)
