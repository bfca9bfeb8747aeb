"""The executor: what runs when, for which row, and what a run leaves behind."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from executor_setup import Engine, Q, Records, Setup, Tools, gen, pure, rows, run, write

from planner.errors import InvariantError
from planner.logical import (
    Body,
    Column,
    Compare,
    Const,
    Field,
    Format,
    Json,
    Map,
    Op,
    Ordered,
    Param,
    Project,
    Prompt,
    Ref,
    Result,
    Scan,
    When,
)
from runtime.backends.base import Completion, Request
from runtime.records import CallRecord, CallSite, Outcome, row_keys

ONE_CALL = Body(1, gen("", Param((), 0)))
TWO_CALLS = Body(1, gen("then ", gen("", Param((), 0))))


# --- order ---------------------------------------------------------------------------------------


def test_both_arms_of_a_diamond_run_at_once() -> None:
    left, right = gen("left ", Q), gen("right ", Q)

    async def main() -> tuple[list[Json], float]:
        setup = Setup({"main": gen("join ", left, right)})
        values = await setup.values(rows(1))
        return values, asyncio.get_running_loop().time()

    values, seconds = run(main)
    assert values == ["JOIN LEFT Q0RIGHT Q0"]
    assert seconds == 2.0, "two calls deep, not three"


def test_rows_do_not_wait_for_each_other() -> None:
    async def main() -> dict[str, float]:
        setup = Setup(
            {"main": gen("second ", gen("first ", Q))},
            latency_s=lambda text: 100.0 if text == "first q0" else 1.0,
        )
        await setup.run(rows(3))
        return setup.ours.started_s

    started_s = run(main)
    assert started_s["second FIRST Q1"] == started_s["second FIRST Q2"] == 1.0
    assert started_s["second FIRST Q0"] == 100.0


def test_earlier_rows_get_a_free_slot_first() -> None:
    async def main() -> list[str]:
        setup = Setup({"main": gen("c ", gen("b ", gen("a ", Q)))}, slots=1)
        await setup.run(rows(3))
        return setup.ours.asked

    places = [(int(text[-1]), text[0]) for text in run(main)]
    # A row has no call ready while its own is in the engine, so two rows alternate; the third does
    # not start a call while an earlier one has any.
    assert places[:3] == [(0, "a"), (1, "a"), (0, "b")]
    assert places.index((2, "a")) > places.index((0, "c"))


def test_at_most_the_window_of_rows_is_under_way() -> None:
    async def main() -> tuple[int, list[Json]]:
        setup = Setup({"main": gen("", Q)}, window=3)
        values = await setup.values(rows(10))
        return setup.ours.most_busy, values

    most_busy, values = run(main)
    assert most_busy == 3
    assert values == [f"Q{i}" for i in range(10)]


def test_rows_start_in_the_planned_order_and_end_in_input_order() -> None:
    async def main() -> tuple[list[str], list[Json]]:
        setup = Setup({"main": gen("", Q)}, window=1, row_order=(2, 0, 1))
        values = await setup.values(rows(3))
        return setup.ours.asked, values

    assert run(main) == (["q2", "q0", "q1"], ["Q0", "Q1", "Q2"])


def test_a_plan_for_other_rows_is_refused() -> None:
    async def main() -> None:
        await Setup({"main": gen("", Q)}, row_order=(0, 1)).run(rows(3))

    with pytest.raises(InvariantError, match="orders 2 rows"):
        run(main)


def test_a_chain_of_thousands_of_operators_in_one_row() -> None:
    cheap: Op = Q
    for _ in range(5000):
        cheap = Format((cheap,), Prompt((Ref(0),)))
    calls: Op = Q
    for _ in range(5000):
        calls = Field((pure("echo", calls),), 0)

    async def main() -> tuple[list[Json], int]:
        setup = Setup({"main": Project((cheap, calls), ("cheap", "calls"))})
        return await setup.values(rows(1)), len(setup.tools.begun)

    assert run(main) == ([{"cheap": "q0", "calls": "q0"}], 5000)


# --- sharing -------------------------------------------------------------------------------------


def test_an_operator_of_two_queries_runs_once_a_row() -> None:
    shared = pure("lookup", Q)

    async def main() -> tuple[int, dict[str, list[Outcome]]]:
        setup = Setup({"one": gen("one ", shared), "two": gen("two ", shared)})
        outcomes = await setup.run(rows(4))
        return len(setup.tools.begun), outcomes

    calls, outcomes = run(main)
    assert calls == 4
    assert [o.value for o in outcomes["one"]] == [f'ONE ["Q{i}"]' for i in range(4)]
    assert [o.value for o in outcomes["two"]] == [f'TWO ["Q{i}"]' for i in range(4)]


def test_sampled_calls_of_equal_rows_are_different_calls() -> None:
    drawn = gen("", Q, temperature=1.0, call_id="main/1")

    async def main() -> tuple[int, int]:
        setup = Setup({"main": Project((gen("", Q), drawn), ("greedy", "drawn"))})
        await setup.values([{"q": "same"}] * 5)
        return len(setup.ours.asked), len(setup.store.calls)

    assert run(main) == (6, 6)


def test_queries_over_different_rows_run_side_by_side_in_one_run() -> None:
    other = Scan((), "others", ("q",))

    async def main() -> dict[str, list[Outcome]]:
        outcome = Result((gen("", Column((other,), "q")), other))
        setup = Setup({"one": gen("", Q), "two": outcome})
        return await setup.executor.run({"rows": rows(2), "others": [{"q": "x"}]})

    outcomes = run(main)
    assert {name: [o.value for o in found] for name, found in outcomes.items()} == {
        "one": ["Q0", "Q1"],
        "two": ["X"],
    }


# --- errors --------------------------------------------------------------------------------------


def test_a_failing_row_ends_in_its_error_and_stops_no_other() -> None:
    async def main() -> list[Outcome]:
        setup = Setup({"main": gen("after ", gen("ask ", Q))})
        return (await setup.run([{"q": "a"}, {"q": "FAIL"}, {"q": "c"}]))["main"]

    first, failed, last = run(main)
    assert (first.value, last.value) == ("AFTER ASK A", "AFTER ASK C")
    assert failed.value is None and failed.error is not None
    assert failed.error.type == "BackendError"
    assert failed.error.op == "ask "
    assert "cannot answer ask FAIL" in failed.error.message


def test_a_failing_operator_fails_only_the_queries_that_need_it() -> None:
    async def main() -> dict[str, list[Outcome]]:
        fine = pure("fine", Q)
        setup = Setup({"needs": gen("FAIL ", fine), "does not": gen("ok ", fine)})
        return await setup.run(rows(2))

    outcomes = run(main)
    assert all(o.error is not None for o in outcomes["needs"])
    assert [o.value for o in outcomes["does not"]] == ['OK ["Q0"]', 'OK ["Q1"]']


@pytest.mark.parametrize("slow", ["FAIL a q0", "FAIL b q0"])
def test_the_reported_error_does_not_depend_on_which_came_first(slow: str) -> None:
    async def main() -> list[Outcome]:
        arms = gen("FAIL a ", Q), gen("FAIL b ", Q)
        setup = Setup(
            {"main": gen("join ", *arms)}, latency_s=lambda text: 9.0 if text == slow else 1.0
        )
        return (await setup.run(rows(1)))["main"]

    (outcome,) = run(main)
    assert outcome.error is not None and outcome.error.op == "FAIL a "


@pytest.mark.parametrize(
    ("root", "type_", "says"),
    [
        (Field((Q,), "name"), "ValueTypeError", "needs an object, got a text: 'q0'"),
        (Field((Project((Q,), ("a",)),), "b"), "ValueTypeError", "no field 'b'.*'a'"),
        (Field((Const.of([1, 2]),), 2), "ValueTypeError", "no element 2; the list has 2"),
        (Compare((Q, Const.of(1)), "<"), "ValueTypeError", "a text < a number"),
        (pure("lookup", Const.of("nan")), "ValueTypeError", "lookup.*nan.*use null"),
        (pure("lookup", Const.of("bad")), "ToolError", "lookup cannot"),
    ],
)
def test_errors_of_values_say_what_there_was(root: Op, type_: str, says: str) -> None:
    async def main() -> list[Outcome]:
        return (await Setup({"main": root}).run(rows(1)))["main"]

    (outcome,) = run(main)
    assert outcome.error is not None
    assert outcome.error.type == type_
    assert re.search(says, outcome.error.message)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: "x"}])
def test_a_column_that_is_not_json_fails_its_row(value: Any) -> None:
    async def main() -> list[Outcome]:
        return (await Setup({"main": Q}).run([{"q": value}, {"q": {"deep": [1.5, None]}}]))["main"]

    bad, good = run(main)
    assert bad.error is not None and bad.error.type == "ValueTypeError"
    assert "column 'q'" in bad.error.message
    assert good.value == {"deep": [1.5, None]}


def test_a_defect_fails_the_row_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Engine):
        async def generate(
            self, request: Request, on_prefilled: Callable[[], None] | None = None
        ) -> Completion:
            raise ZeroDivisionError("a defect")

    async def main() -> list[Outcome]:
        setup = Setup({"main": gen("", Q)}, engine=Broken(lambda _: 0.0, 1))
        return (await setup.run(rows(1)))["main"]

    (outcome,) = run(main)
    assert outcome.error is not None and outcome.error.type == "ZeroDivisionError"
    assert caplog.records[0].name == "halo.executor"
    assert caplog.records[0].exc_info is not None


def test_a_store_that_cannot_record_ends_the_run() -> None:
    class Full(Records):
        def record_outcome(self, outcome: Outcome) -> asyncio.Future[None]:
            raise OSError("no space left")

    async def main() -> None:
        await Setup({"main": gen("", Q)}, store=Full()).run(rows(5))

    with pytest.raises(OSError, match="no space left"):
        run(main)


# --- writes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_writes_happen_in_row_order_one_at_a_time(seed: int) -> None:
    rng = random.Random(seed)
    first = write("first", gen("", Q))
    second = write("second", gen("then ", Q), after=(first,))

    async def main() -> tuple[Tools, list[Outcome]]:
        setup = Setup(
            {"main": Project((Ordered((Q,), after=(second,)), first), ("q", "w"))},
            latency_s=lambda _: rng.uniform(0.1, 9),
            tool_latency_s=lambda: rng.uniform(0.1, 9),
            row_order=tuple(rng.sample(range(12), 12)),
            window=rng.randrange(1, 13),
        )
        # Some rows fail before their writes: those after them go on.
        data: list[dict[str, Json]] = [
            {"q": "FAIL" if rng.random() < 0.2 else f"q{i}"} for i in range(12)
        ]
        return setup.tools, (await setup.run(data))["main"]

    tools, outcomes = run(main)
    good = [o.row_index for o in outcomes if o.error is None]
    for name in ("first", "second"):
        assert [row for tool, row, _ in tools.begun if tool == name] == good
    place = {(tool, row): i for i, (tool, row, _) in enumerate(tools.begun)}
    assert all(place["first", row] < place["second", row] for row in good)


def test_a_failing_write_lets_the_next_row_write() -> None:
    async def main() -> tuple[list[int], list[bool]]:
        setup = Setup({"main": write("log", Q)})
        outcomes = (await setup.run([{"q": "bad"}, {"q": "ok"}]))["main"]
        return [row for _, row, _ in setup.tools.begun], [o.error is None for o in outcomes]

    assert run(main) == ([0, 1], [False, True])


def test_a_map_that_writes_goes_element_by_element_and_stops_at_a_failure() -> None:
    items = Const.of(["a", "b", "bad", "d"])
    body = Body(1, write("log", Param((), 0)))

    async def main() -> tuple[list[Json], Outcome]:
        rng = random.Random(7)
        setup = Setup({"main": Map((items,), body)}, tool_latency_s=lambda: rng.uniform(0.1, 9))
        (outcome,) = (await setup.run(rows(1)))["main"]
        return [values[0] for _, _, values in setup.tools.begun], outcome

    written, outcome = run(main)
    assert written == ["a", "b", "bad"]
    assert outcome.error is not None
    assert outcome.error.message == "log cannot (at map[2])"


def test_the_identity_of_a_write_is_its_place() -> None:
    body = Body(1, write("log", Param((), 0), call_id="main/log"))

    async def main() -> list[str]:
        setup = Setup({"main": Map((Const.of(["x", "x"]),), body)})
        await setup.values([{"q": "same"}, {"q": "same"}])
        return [site.identity for site in setup.tools.sites]

    identities = run(main)
    assert len(set(identities)) == 4, "equal rows and equal elements write apart"
    keys = row_keys([{"q": "same"}, {"q": "same"}])
    assert [
        (key in i, f"map[{n}]" in i)
        for (key, n), i in zip(
            [(keys[0], 0), (keys[0], 1), (keys[1], 0), (keys[1], 1)], identities, strict=True
        )
    ] == [(True, True)] * 4


def test_a_tool_that_changes_its_arguments_changes_no_other_row() -> None:
    class Vandal(Tools):
        async def call(
            self, name: str, arguments: Mapping[str, Json], site: CallSite, listener: object = None
        ) -> CallRecord:
            (value,) = arguments.values()
            assert isinstance(value, list)
            value.append("!")
            return await super().call(name, {"n": len(value)}, site)

    async def main() -> list[Json]:
        setup = Setup({"main": pure("count", Const.of(["a"]))})
        setup.tools.__class__ = Vandal
        return await setup.values(rows(3))

    assert run(main) == [[2], [2], [2]]


# --- stop and resume -----------------------------------------------------------------------------


def test_stop_lets_calls_in_flight_end_and_resume_does_the_rest() -> None:
    root = gen("second ", gen("first ", Q))

    async def main() -> None:
        undisturbed = await Setup({"main": root}, window=4, slots=2).values(rows(20))
        store = Records()
        stopped = Setup({"main": root}, store=store, window=4, slots=2)

        async def stop() -> None:
            await asyncio.sleep(5.5)
            stopped.executor.stop()

        stopping = asyncio.create_task(stop())
        outcomes = (await stopped.run(rows(20)))["main"]
        await stopping
        assert 0 < len(outcomes) < 20
        assert all(o.error is None for o in outcomes), "unfinished rows have no outcome"
        assert len(store.calls) == len(stopped.ours.asked), "what was asked is recorded"
        assert stopped.ours.busy == 0

        resumed = Setup({"main": root}, store=store, window=4, slots=2)
        rest = (await resumed.run(rows(20)))["main"]
        assert len(outcomes) + len(rest) == 20
        done = sorted([*outcomes, *rest], key=lambda o: o.row_index)
        assert [o.value for o in done] == undisturbed
        assert not set(resumed.ours.asked) & set(stopped.ours.asked), "no call is made twice"
        progress = resumed.executor.progress
        assert (progress.rows_total, progress.rows_done) == (20, 20)

    run(main)


def test_no_write_happens_out_of_order_when_stopped() -> None:
    async def main() -> tuple[list[int], int]:
        setup = Setup(
            {"main": write("log", gen("", Q))},
            latency_s=lambda text: 50.0 if text == "q3" else 1.0,
        )

        async def stop() -> None:
            await asyncio.sleep(10)
            setup.executor.stop()

        stopping = asyncio.create_task(stop())
        outcomes = (await setup.run(rows(8)))["main"]
        await stopping
        return [row for _, row, _ in setup.tools.begun], len(outcomes)

    # The call of row 3 is in flight and ends; its write had not begun, nor those behind it.
    assert run(main) == ([0, 1, 2], 3)


def test_a_row_that_was_stopped_has_no_outcome_even_if_it_has_failed() -> None:
    root = Project((gen("FAIL ", Q), gen("second ", gen("first ", Q))), ("a", "b"))

    async def main() -> None:
        store = Records()
        stopped = Setup({"main": root}, store=store, slots=1, latency_s=lambda _: 10.0)
        asyncio.get_running_loop().call_later(15, stopped.executor.stop)
        assert (await stopped.run(rows(1)))["main"] == []
        # A resume may find another error first: the row is recorded when all of it has ended.
        (outcome,) = (await Setup({"main": root}, store=store).run(rows(1)))["main"]
        assert outcome.error is not None and outcome.error.op == "FAIL "

    run(main)


def test_a_refused_call_stops_the_run_and_all_writes() -> None:
    root = write("log", When((Compare((Q, Const.of("two")), "=="), Q), TWO_CALLS, ONE_CALL))

    async def main() -> tuple[list[int], list[Outcome], int]:
        setup = Setup({"main": root}, window=4)
        # The dispatcher refuses by itself when its store can no longer record.
        asyncio.get_running_loop().call_later(0.5, setup.dispatcher.stop)
        data: list[dict[str, Json]] = [{"q": "two"}, *rows(20)]
        outcomes = (await setup.run(data))["main"]
        return [row for _, row, _ in setup.tools.begun], outcomes, len(setup.ours.asked)

    # Row 0 cannot go on, so no later row may write, although their calls have been answered.
    assert run(main) == ([], [], 4)


def test_rows_without_calls_can_be_stopped() -> None:
    async def main() -> int:
        setup = Setup({"main": Q})
        asyncio.get_running_loop().call_soon(setup.executor.stop)
        return len((await setup.run(rows(5000)))["main"])

    assert run(main) < 5000


def test_each_query_of_a_row_resumes_on_its_own() -> None:
    shared = pure("lookup", Q)
    queries = {"one": gen("one ", shared), "two": gen("two ", pure("more", shared))}

    async def main() -> None:
        store = Records()
        keys = row_keys(rows(2))
        store.outcomes["one", keys[0]] = Outcome("one", 0, keys[0], "kept")
        setup = Setup(queries, store=store)
        outcomes = await setup.run(rows(2))
        assert [o.row_index for o in outcomes["one"]] == [1]
        assert [o.row_index for o in outcomes["two"]] == [0, 1]
        assert 'one ["q0"]' not in setup.ours.asked

    run(main)


def test_cancelling_the_run_cancels_its_calls() -> None:
    async def main() -> int:
        setup = Setup({"main": gen("", Q)}, latency_s=lambda _: 1e6)
        task = asyncio.create_task(setup.run(rows(10)))
        await asyncio.sleep(1)
        assert setup.ours.busy == 10
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(1)
        return setup.ours.busy

    assert run(main) == 0


def test_progress_counts_rows_of_each_query_and_calls() -> None:
    shared = gen("a ", Q)

    async def main() -> None:
        setup = Setup({"one": shared, "two": gen("FAIL ", shared)}, window=2)
        task = asyncio.create_task(setup.run([{"q": "same"}, {"q": "same"}, {"q": "c"}]))
        await asyncio.sleep(0.5)
        during = setup.executor.progress
        await task
        after = setup.executor.progress
        assert (during.rows_active, during.rows_done, during.calls_in_flight) == (2, 0, 1)
        assert (after.rows_total, after.rows_done, after.rows_failed) == (6, 6, 3)
        assert (after.queries["one"].rows_failed, after.queries["two"].rows_failed) == (0, 3)
        assert (after.requested, after.made, after.shared) == (6, 4, 2)
        assert setup.executor.calls_requested == 6
        assert after.rows_active == after.calls_in_flight == 0

    run(main)


def test_an_executor_runs_once() -> None:
    async def main() -> None:
        setup = Setup({"main": Q})
        await setup.run(rows(1))
        with pytest.raises(InvariantError, match="runs once"):
            await setup.run(rows(1))

    run(main)
