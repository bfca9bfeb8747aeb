"""Rows that are equal in all that is read of them: one is run, and the others end with it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest
from executor_setup import Engine, Q, Records, Setup, gen, pure, rows, run, write
from hypothesis import given, settings
from hypothesis import strategies as st

import halo
from costmodel.usage import OpMetrics, Usage
from halo.session import Session
from planner.logical import (
    CALLS,
    Agent,
    Body,
    Column,
    Compare,
    Const,
    Effect,
    Filter,
    Flatten,
    Generate,
    Group,
    Json,
    Limit,
    Loop,
    Map,
    Op,
    Param,
    Project,
    Prompt,
    Recover,
    Ref,
    Result,
    Scan,
    Sort,
    Sql,
    When,
)
from runtime.backends.base import Completion, Request
from runtime.backends.simulated import SimulatedBackend
from runtime.clock import LoopClock
from runtime.executor import Executor
from runtime.records import Outcome, row_keys
from runtime.run import RunHandle, RunInputs
from runtime.sharing import CallTable
from runtime.sql_tool import Databases
from runtime.tool_runner import ToolRunner
from runtime.tools import ToolSpec

Data = Sequence[Mapping[str, Json]]
Outcomes = Mapping[str, Sequence[Outcome]]


class Rows(Setup):
    """A `Setup` with a real tool runner. Unless `together`, each row is run."""

    def __init__(
        self,
        queries: Mapping[str, Op],
        *specs: ToolSpec,
        database: Path | None = None,
        writable: bool = False,
        together: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(queries, **options)
        clock = LoopClock()
        databases = Databases(database, writable=frozenset({""} if writable else ()))
        self.runner = ToolRunner(
            {spec.name: spec for spec in specs},
            databases,
            CallTable(self.store, self.metrics),
            self.store,
            clock,
        )
        self.executor = Executor(
            self.physical,
            dispatcher=self.dispatcher,
            tools=self.runner,
            tool_schemas={},
            store=self.store,
            clock=clock,
            metrics=self.metrics,
            shares=self.runner.shares if together else None,
        )

    async def run(self, data: Data) -> dict[str, list[Outcome]]:
        try:
            async with asyncio.timeout(10_000):  # of virtual time: a row that never ends
                return await super().run(data)
        finally:
            await self.runner.close()

    async def started(self, data: Data) -> tuple[int, dict[str, list[Outcome]]]:
        """How many rows are under way when all that may have started have; the outcomes."""
        ending = asyncio.create_task(self.run(data))
        await asyncio.sleep(0)
        active = self.executor.progress.rows_active
        return active, await ending

    @property
    def counts(self) -> dict[str, tuple[int, int, int, int]]:
        """(requested, made, shared, replayed) of each operator that makes calls."""
        counted = {
            op.label or op.kind: self.metrics.get(op.fingerprint, OpMetrics())
            for op in self.plan.walk_all()
            if isinstance(op, CALLS)
        }
        for m in counted.values():
            assert m.requested == m.made + m.shared + m.replayed
        return {name: (m.requested, m.made, m.shared, m.replayed) for name, m in counted.items()}


def tool(name: str, function: Callable[..., Any], effect: Effect = Effect.PURE) -> ToolSpec:
    return ToolSpec(name, function, effect=effect, retries=0)


async def echo(p0: Json) -> Json:
    await asyncio.sleep(0.5)
    return [p0]


def same(n: int, q: Json = "a") -> list[dict[str, Json]]:
    return [{"q": q} for _ in range(n)]


def told(outcomes: Outcomes) -> dict[str, list[Any]]:
    """Outcomes as texts: in Python, 1 equals 1.0 and true."""
    return {
        name: [(o.row_index, o.row_key, json.dumps(o.value), o.error) for o in found]
        for name, found in outcomes.items()
    }


# --- what the rows become ------------------------------------------------------------------------


def test_equal_rows_end_apart_and_share_each_call() -> None:
    root = Project((gen("then ", gen("first ", Q)), pure("echo", Q)), ("text", "found"))
    data = [{"q": q} for q in "abaab"]

    async def main() -> None:
        setup = Rows({"main": root}, tool("echo", echo))
        active, outcomes = await setup.started(data)
        assert active == 2
        assert [(o.row_index, o.row_key) for o in outcomes["main"]] == [*enumerate(row_keys(data))]
        assert [o.value for o in outcomes["main"]] == [
            {"text": f"THEN FIRST {q.upper()}", "found": [q]} for q in "abaab"
        ]
        assert len(setup.ours.asked) == 4
        assert setup.counts == dict.fromkeys(("first ", "then ", "echo"), (5, 2, 3, 0))
        progress = setup.executor.progress
        assert (progress.rows_total, progress.rows_done, progress.rows_active) == (5, 5, 0)
        assert setup.executor.complete

    run(main)


def test_each_query_of_equal_rows_has_its_outcomes() -> None:
    shared = pure("echo", Q)

    async def main() -> None:
        setup = Rows({"one": gen("one ", shared), "two": shared}, tool("echo", echo))
        outcomes = await setup.run([*same(3), *same(1, "b")])
        assert [o.value for o in outcomes["one"]] == ['ONE ["A"]'] * 3 + ['ONE ["B"]']
        assert [o.value for o in outcomes["two"]] == [["a"]] * 3 + [["b"]]
        assert setup.counts == dict.fromkeys(("one ", "echo"), (4, 2, 2, 0))

    run(main)


def test_what_is_not_read_does_not_make_rows_different() -> None:
    data: list[dict[str, Json]] = [{"q": "a", "id": i} for i in range(4)]

    async def main(root: Op) -> int:
        setup = Rows({"main": root})
        active, outcomes = await setup.started(data)
        assert [o.row_key for o in outcomes["main"]] == row_keys(data)
        assert list(setup.counts.values()) == [(4, 1, 3, 0)]
        return active

    assert run(lambda: main(gen("", Q))) == 1
    assert run(lambda: main(gen("reads nothing"))) == 1


PAIRS: list[tuple[Json, Json]] = [
    ("1", 1),
    (1, 1.0),
    (1, True),
    (0, False),
    (0.0, -0.0),
    ("null", None),
    ("[1]", [1]),
    ([1], [1.0]),
    ([1, [2]], [1, 2]),
    ({"a": 1}, {"a": True}),
]
BOTH = Project((gen("", Q), Q), ("answer", "q"))


async def told_of(data: Data, **options: Any) -> dict[str, list[Any]]:
    return told(await Rows({"main": BOTH}, **options).run(data))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_different_json_is_different(one: Json, other: Json) -> None:
    data: Data = [{"q": one}, {"q": other}, {"q": one}]

    async def main() -> None:
        active, outcomes = await Rows({"main": BOTH}).started(data)
        assert active == 2
        assert told(outcomes) == await told_of(data, together=False)

    run(main)


def test_objects_with_another_order_of_keys_are_different() -> None:
    """A prompt has the keys in the order of the row."""
    data: Data = [{"q": {"a": 1, "b": 2}}, {"q": {"b": 2, "a": 1}}]

    async def main() -> None:
        assert await told_of(data) == await told_of(data, together=False)

    run(main)


@pytest.mark.parametrize(("fine", "bad"), [({"1": 2}, {1: 2}), ([1], (1,))])
def test_a_row_that_is_no_json_fails_beside_one_that_is(fine: Any, bad: Any) -> None:
    async def main() -> None:
        outcomes = await Rows({"main": BOTH}).run([{"q": fine}, {"q": bad}])
        assert [o.error is None for o in outcomes["main"]] == [True, False]

    run(main)


def test_rows_without_a_column_that_is_read_fail() -> None:
    data: Data = [*same(2, None), {"id": 1}, {"id": 2}]

    async def main() -> None:
        outcomes = (await Rows({"main": gen("", Q)}).run(data))["main"]
        assert [o.value for o in outcomes] == ["NULL", "NULL", None, None]
        assert all(o.error and "no column 'q'" in o.error.message for o in outcomes[2:])

    run(main)


def test_changing_the_value_of_a_row_changes_no_other() -> None:
    async def main() -> None:
        root = Project((pure("echo", Q), gen("", Q)), ("list", "text"))
        # Row 3 starts when the first of its equals has ended.
        setup = Rows({"main": root}, tool("echo", echo), window=1)
        outcomes = (await setup.run([*same(2), *same(1, "b"), *same(2)]))["main"]
        found: list[Any] = [o.value for o in outcomes]
        for i, value in enumerate(found):
            value["list"].append(i)
            value[f"row {i}"] = None
        assert [(value["list"], list(value)[2:]) for value in found] == [
            ([q, i], [f"row {i}"]) for i, q in enumerate("aabaa")
        ]

    run(main)


def test_a_value_of_any_depth_ends_its_rows_and_not_the_run() -> None:
    deep: Op = gen("", Q)
    for _ in range(2000):
        deep = Project((deep,), ("in",))

    async def main() -> list[str | None]:
        outcomes = (await Rows({"main": deep}).run(same(3)))["main"]
        return [o.error and o.error.type for o in outcomes]

    assert run(main) == [None] * 3


def test_relations_over_a_scan_get_each_of_its_equal_rows_in_order() -> None:
    scan = Scan((), "rows", ("q", "id"))
    q, number = Column((scan,), "q"), Column((scan,), "id")
    ordered = Sort((scan, gen("", q)), ("answer",), ("-answer",))
    grouped = Group((scan, q, gen("", q)), ("q", "answers"), 1)
    numbered = Group((scan, q, number), ("q", "ids"), 1)
    queries = {
        "ordered": Result((Column((ordered,), "answer"), ordered)),
        "grouped": Result((Column((grouped,), "answers"), grouped)),
        "numbered": Result((Column((numbered,), "ids"), numbered)),
    }
    data: Data = [{"q": q, "id": i} for i, q in enumerate("abaab")]

    async def main(*names: str) -> dict[str, list[Json]]:
        outcomes = await Rows({name: queries[name] for name in names}).run(data)
        return {name: [o.value for o in found] for name, found in outcomes.items()}

    expected = {
        "ordered": ["B", "B", "A", "A", "A"],
        "grouped": [["A", "A", "A"], ["B", "B"]],
        "numbered": [[0, 2, 3], [1, 4]],
    }
    for names in (*itertools.combinations(queries, 1), *itertools.combinations(queries, 2)):
        assert run(lambda names=names: main(*names)) == {name: expected[name] for name in names}


# --- rows of which each is run -------------------------------------------------------------------

P0 = Param((), 0)
ASK = Body(1, gen("", P0))
IS_A = Compare((Q, Const.of("a")), "==")
SCAN = Q.inputs[0]

EACH: dict[str, Op] = {
    "sampled": gen("", Q, temperature=1.0, call_id="main/1"),
    "one sampled, one greedy": gen("then ", gen("", Q, temperature=1.0, call_id="main/1")),
    "a writing tool": write("log", Q),
    "a tool that writes, whatever the plan says": pure("log", Q),
    "no such tool": pure("gone", Q),
    "a filter": Result((gen("", Q), Filter((SCAN, IS_A)))),
    "a filter by a call": Result((Q, Filter((SCAN, gen("", Q))))),
    "a limit": Result((gen("", Q), Limit((SCAN,), count=3))),
    "a condition": When((IS_A,), Body(0, gen("yes")), Body(0, gen("no"))),
    "a loop": Loop((Q,), Body(1, Compare((P0, Const.of("A")), "!=")), ASK),
    "a map": Map((pure("echo", Q),), ASK),
    "an agent": Agent((Q,), "m", Prompt((Ref(0),)), label="agent"),
    "a recovered call": Recover((gen("FAIL ", Q),)),
}


@pytest.mark.parametrize("root", EACH.values(), ids=EACH)
def test_rows_that_may_differ_are_each_run(root: Op) -> None:
    written: list[Json] = []

    async def log(p0: Json) -> Json:
        written.append(p0)
        return len(written)

    async def ran(together: bool) -> tuple[int, list[Any]]:
        specs = tool("echo", echo), tool("log", log, Effect.WRITE)
        setup = Rows({"main": root}, *specs, together=together)
        active, outcomes = await setup.started(same(3))
        seen = [told(outcomes), setup.counts, sorted(setup.ours.asked), [*written]]
        written.clear()
        return active, seen

    active, seen = run(lambda: ran(True))
    assert active == 3
    assert seen == run(lambda: ran(False))[1]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE items AS SELECT range AS id FROM range(3)")
    return path


COUNT = "SELECT count(*) AS n FROM items"


NOT_Q = Sql((Q,), text=f"{COUNT} WHERE id <> $q", params=("q",))
INSERT = Sql((), text="INSERT INTO items VALUES (3)", read_only=False, call_id="main/1")


@pytest.mark.parametrize(
    ("op", "writable", "active", "made", "value"),
    [
        (NOT_Q, False, 1, 1, [{"n": 2}]),
        (NOT_Q, True, 3, 3, [{"n": 2}]),
        (Sql((), text="SELECT now() > 'epoch'::TIMESTAMP AS n"), False, 3, 3, [{"n": True}]),
        (Sql((), text=COUNT, volatile=True, call_id="main/1"), False, 3, 3, [{"n": 3}]),
        (Sql((gen(COUNT),)), False, 3, 1, [{"N": 3}]),
        (INSERT, True, 3, 3, [{"Count": 1}]),
    ],
    ids=["pure", "a writable database", "volatile", "named volatile", "by a model", "writing"],
)
def test_equal_rows_share_queries_that_are_always_answered_the_same(
    shop: Path, op: Sql, writable: bool, active: int, made: int, value: Json
) -> None:
    async def main() -> None:
        setup = Rows({"main": op}, database=shop, writable=writable)
        under_way, outcomes = await setup.started(same(3, 1))
        assert [(o.value, o.error) for o in outcomes["main"]] == [(value, None)] * 3
        assert under_way == active
        assert setup.counts["Sql"] == (3, made, 3 - made, 0)

    run(main)
    with duckdb.connect(shop, read_only=True) as connection:
        assert connection.execute(COUNT).fetchall() == [(3 if op.read_only else 6,)]


def test_a_query_without_a_database_is_an_error_of_each_row() -> None:
    async def main() -> list[str]:
        outcomes = (await Rows({"main": Sql((), text="SELECT 1 AS one")}).run(same(2)))["main"]
        return [o.error.message if o.error else "" for o in outcomes]

    first, second = run(main)
    assert first == second
    assert "names no database" in first


def test_fresh_calls_are_made_once_a_run() -> None:
    async def main() -> None:
        setup = Rows({"main": gen("", Q, fresh=True)})
        active, outcomes = await setup.started(same(3))
        assert (active, [o.value for o in outcomes["main"]]) == (1, ["A"] * 3)
        assert setup.counts == {"Generate": (3, 1, 2, 0)}

    run(main)


def test_a_call_that_is_made_again_is_counted_for_each_row() -> None:
    """An answer that does not fit its type is asked for once more."""

    class Corrected(Engine):
        async def generate(
            self, request: Request, on_prefilled: Callable[[], None] | None = None
        ) -> Completion:
            await asyncio.sleep(1)
            return Completion("7" if len(request.messages) > 1 else "?", "stop", Usage(1, 1))

    root = Generate((Q,), "m", Prompt((Ref(0),)), label="n", schema_json='{"type":"integer"}')

    async def main(together: bool) -> tuple[list[Json], Any]:
        engine = Corrected(lambda _: 1.0, 8)
        setup = Rows({"main": root}, engine=engine, together=together)
        return await setup.values(same(3)), setup.counts

    assert run(lambda: main(True)) == run(lambda: main(False)) == ([7] * 3, {"n": (6, 2, 4, 0)})


# --- errors --------------------------------------------------------------------------------------


def test_when_the_first_of_equal_rows_fails_the_others_are_run() -> None:
    async def main() -> None:
        setup = Rows({"main": gen("FAIL ", gen("first ", Q))})
        data = same(4)
        outcomes = (await setup.run(data))["main"]
        assert [o.row_key for o in outcomes] == row_keys(data)
        assert [o.error and o.error.type for o in outcomes] == ["BackendError"] * 4
        assert Counter(setup.ours.asked) == {"first a": 1, "FAIL FIRST A": 2}
        assert setup.counts == {"first ": (4, 1, 3, 0), "FAIL ": (4, 2, 2, 0)}

    run(main)


def test_an_error_that_goes_away_fails_the_first_row_alone() -> None:
    calls: list[Json] = []

    async def flaky(p0: Json) -> Json:
        calls.append(p0)
        if len(calls) == 1:
            raise OSError("busy")
        return "fine"

    async def main() -> None:
        setup = Rows({"main": pure("flaky", Q)}, tool("flaky", flaky))
        outcomes = (await setup.run([*same(1, "b"), *same(3)]))["main"]
        assert outcomes[0].error is not None and "busy" in outcomes[0].error.message
        assert [o.value for o in outcomes[1:]] == ["fine"] * 3
        calls.clear()

        setup = Rows({"main": pure("flaky", Q)}, tool("flaky", flaky))
        outcomes = (await setup.run(same(4)))["main"]
        assert [o.error is None for o in outcomes] == [False, True, True, True]
        assert [o.value for o in outcomes[1:]] == ["fine"] * 3
        assert (calls, setup.counts) == (["a", "a"], {"flaky": (4, 2, 2, 0)})

    run(main)


def test_a_query_that_fails_leaves_the_others_of_equal_rows_alone() -> None:
    queries = {"fails": gen("FAIL ", Q), "goes on": gen("ok ", Q)}

    async def main() -> None:
        setup = Rows(queries)
        outcomes = await setup.run(same(3))
        assert all(o.error is not None for o in outcomes["fails"])
        assert [o.value for o in outcomes["goes on"]] == ["OK A"] * 3
        assert setup.counts["ok "] == (3, 1, 2, 0)

    run(main)


# --- a whole run ---------------------------------------------------------------------------------

LM = halo.Model()


@halo.workflow
def shorten(text: str) -> str:
    return LM.gen(f"Shorten this: {text}", max_tokens=8)


@pytest.mark.parametrize(("share", "most"), [(True, 1), (False, 5)])
def test_a_run_that_does_not_share_runs_each_row(share: bool, most: int) -> None:
    async def main() -> None:
        engine = SimulatedBackend(plan.workers[0].model, LoopClock())
        handle = RunHandle(inputs)
        ending = asyncio.create_task(handle.run({plan.workers[0].name: engine}))
        seen = {0}
        while not ending.done():
            await asyncio.sleep(0.01)
            if handle.progress is not None:
                seen.add(handle.progress.rows_active)
        finished = await ending
        assert max(seen) == most
        assert engine.requests_seen == (1 if share else 5)
        (outcomes,) = finished.outcomes.values()
        assert len(outcomes) == 5
        assert len({str(o.value) for o in outcomes}) == 1

    with Session(engine="simulated") as session:
        prepared = session.prepare(shorten, [{"text": "long"}] * 5)
        plan, data = prepared.plan, prepared.rows_by_source
        inputs = RunInputs(plan, prepared.stats, data, prepared.tools, share=share)
        run(main)


# --- rows under way ------------------------------------------------------------------------------


@pytest.mark.parametrize("root", [gen("", Q), gen("FAIL ", Q)], ids=["ends", "fails"])
def test_more_equal_rows_than_may_be_under_way(root: Op) -> None:
    async def main() -> int:
        outcomes = await Rows({"main": root}, window=1).run([*same(50), *rows(2), *same(50)])
        return len(outcomes["main"])

    assert run(main) == 102


def test_rows_that_wait_for_an_equal_one_keep_no_other_from_starting() -> None:
    async def main() -> dict[str, float]:
        setup = Rows({"main": gen("", Q)}, window=2)
        active, _ = await setup.started([*same(20), *same(1, "b"), *same(20), *same(1, "c")])
        assert active == 2
        return setup.ours.started_s

    assert run(main) == {"a": 0.0, "b": 0.0, "c": 1.0}


def test_after_a_failure_no_more_rows_are_under_way_than_may_be() -> None:
    async def main() -> int:
        setup = Rows({"main": gen("FAIL ", Q)}, window=2)
        ending = asyncio.create_task(setup.run(same(10)))
        most = 0
        while not ending.done():
            await asyncio.sleep(0.25)
            most = max(most, setup.executor.progress.rows_active)
        return most

    assert run(main) == 2


# --- stop and resume -----------------------------------------------------------------------------


def test_rows_that_wait_for_one_that_is_stopped_are_left_for_a_resume() -> None:
    root = {"main": gen("second ", gen("first ", Q))}
    data = [*same(4), *same(1, "b")]

    async def main() -> None:
        store = Records()
        stopped = Rows(root, store=store)
        asyncio.get_running_loop().call_later(0.5, stopped.executor.stop)
        assert (await stopped.run(data))["main"] == []
        assert not stopped.executor.complete
        assert stopped.executor.progress.rows_active == 0
        assert (sorted(stopped.ours.asked), len(store.calls)) == (["first a", "first b"], 2)

        resumed = Rows(root, store=store)
        outcomes = (await resumed.run(data))["main"]
        assert [o.row_key for o in outcomes] == row_keys(data)
        assert [o.value for o in outcomes] == ["SECOND FIRST A"] * 4 + ["SECOND FIRST B"]
        assert sorted(resumed.ours.asked) == ["second FIRST A", "second FIRST B"]
        assert resumed.counts == {"first ": (5, 0, 3, 2), "second ": (5, 2, 3, 0)}

    run(main)


def test_a_call_that_ends_after_the_stop_ends_all_that_wait_for_it() -> None:
    async def main() -> None:
        setup = Rows({"main": gen("", Q)})
        asyncio.get_running_loop().call_later(0.5, setup.executor.stop)
        assert await setup.values(same(3)) == ["A"] * 3

    run(main)


def test_equal_rows_of_which_some_are_recorded() -> None:
    data = same(4)
    keys = row_keys(data)
    queries = {"one": gen("one ", Q), "two": gen("two ", Q)}

    async def main() -> None:
        store = Records()
        for query, i in (("one", 0), ("one", 2), ("two", 2)):
            store.outcomes[query, keys[i]] = Outcome(query, i, keys[i], "kept")
        setup = Rows(queries, store=store)
        outcomes = await setup.run(data)
        assert {
            name: [(o.row_index, o.value) for o in found] for name, found in outcomes.items()
        } == {
            "one": [(1, "ONE A"), (3, "ONE A")],
            "two": [(0, "TWO A"), (1, "TWO A"), (3, "TWO A")],
        }
        assert setup.counts == {"one ": (2, 1, 1, 0), "two ": (3, 1, 2, 0)}
        progress = setup.executor.progress
        assert (progress.rows_total, progress.rows_done) == (8, 8)

    run(main)


# --- the same answers ----------------------------------------------------------------------------

ROWS = Scan((), "rows", ("x", "y"))
X, Y = Column((ROWS,), "x"), Column((ROWS,), "y")
A = gen("a ", X)
LIST = Flatten((ROWS, pure("pick", X)), ("each",))
SORTED = Sort((ROWS, A), ("a",), ("a",))
GROUPED = Group((ROWS, X, gen("b ", Y)), ("x", "b"), 1)


def over(value: Op, relation: Any = ROWS) -> Op:
    return Result((value, relation))


PURE = [
    over(A),
    over(gen("b ", A, Y)),
    over(pure("pick", X)),
    over(Project((gen("c ", pure("pick", X)), Y), ("c", "y"))),
    over(gen("nothing is read")),
    over(Y),
    over(When((X,), Body(0, gen("yes")), Body(0, Const.of("no")))),
    over(Recover((A,), detail=True)),
    over(gen("of those ", X), Filter((ROWS, Compare((Y, Const.of("a")), "==")))),
    over(gen("of those ", Y), Filter((ROWS, A))),
    over(A, Limit((ROWS,), count=3)),
    over(Column((SORTED,), "a"), SORTED),
    over(gen("all ", Column((GROUPED,), "b")), GROUPED),
    over(gen("each ", Column((LIST,), "each")), Limit((LIST,), count=2)),
]
DRAWN = over(gen("drawn ", X, temperature=1.0, call_id="drawn"))

CELLS: list[Json] = ["a", "b", "1", 1, 1.0, True, False, None, [1], {"k": [1]}, "FAIL", "bad"]
CELL = st.sampled_from(CELLS) | st.sampled_from(CELLS[:3])
TABLE = st.lists(
    st.fixed_dictionaries({"x": CELL}, optional={"y": CELL, "unread": CELL}), max_size=9
)


def flows(*more: Op) -> st.SearchStrategy[dict[str, Op]]:
    several = st.lists(st.sampled_from([*PURE, *more]), min_size=1, max_size=3, unique=True)
    return several.map(lambda chosen: {f"q{i}": op for i, op in enumerate(chosen)})


async def pick(p0: Json) -> Json:
    await asyncio.sleep(0.5)
    if p0 == "bad":
        raise ValueError("cannot")
    return [p0, "picked"]


@given(TABLE, flows(DRAWN), st.integers(1, 4), st.integers(1, 3), st.randoms())
@settings(max_examples=200)
def test_answers_are_those_of_rows_that_are_each_run(
    data: list[dict[str, Json]], queries: dict[str, Op], window: int, slots: int, rng: Any
) -> None:
    order = tuple(rng.sample(range(len(data)), len(data)))

    async def ran(together: bool) -> tuple[Any, ...]:
        setup = Rows(
            queries,
            tool("pick", pick),
            together=together,
            window=window,
            slots=slots,
            row_order=order,
        )
        outcomes = await setup.run(data)
        assert setup.executor.complete
        progress = setup.executor.progress
        assert progress.rows_done == progress.rows_total
        requested = {name: counts[0] for name, counts in setup.counts.items()}
        return told(outcomes), set(setup.ours.asked), requested

    assert run(lambda: ran(True)) == run(lambda: ran(False))


@given(TABLE, flows(), st.integers(1, 4), st.integers(0, 10), st.randoms())
@settings(max_examples=200)
def test_a_resumed_run_ends_as_one_in_which_each_row_is_run(
    data: list[dict[str, Json]], queries: dict[str, Op], window: int, stop_at: int, rng: Any
) -> None:
    """Some outcomes are recorded before, more in a run that is stopped, the rest when it is
    resumed."""
    options: dict[str, Any] = {"window": window, "slots": 2}

    def wired(store: Records, together: bool = True) -> Rows:
        return Rows(queries, tool("pick", pick), store=store, together=together, **options)

    async def main() -> None:
        whole = Records()
        await wired(whole, together=False).run(data)
        expected = sorted(map(shown, whole.outcomes.values()))

        store = Records()
        for place, outcome in whole.outcomes.items():
            if rng.random() < 0.2:
                store.outcomes[place] = outcome
        stopped = wired(store)
        asyncio.get_running_loop().call_later(stop_at / 2, stopped.executor.stop)
        await stopped.run(data)
        resumed = wired(store)
        await resumed.run(data)
        assert resumed.executor.complete
        assert sorted(map(shown, store.outcomes.values())) == expected
        asked = [text for text in (*stopped.ours.asked, *resumed.ours.asked) if "FAIL" not in text]
        assert len(asked) == len(set(asked)), "no call is made twice"

    run(main)


def shown(outcome: Outcome) -> tuple[str, ...]:
    """Without the error: which of several a row reports depends on the queries that it is run
    for."""
    ended = "failed" if outcome.error is not None else json.dumps(outcome.value)
    return outcome.query, f"{outcome.row_index:3}", outcome.row_key, ended
