"""Rows that plans make, keep, group and order, at run time."""

from __future__ import annotations

from itertools import groupby
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_plans import ask, column, scan
from simulated_run import Ran, run_plan

from planner.logical import (
    Choose,
    Collect,
    Column,
    Compare,
    Const,
    Effect,
    Field,
    Filter,
    Flatten,
    Format,
    Group,
    Json,
    Limit,
    LogicalPlan,
    Map,
    Op,
    Ordered,
    Pairs,
    Project,
    Prompt,
    Recover,
    Ref,
    Relation,
    Result,
    Sort,
    SqlRows,
    Tool,
    ToolRef,
)
from planner.merge import merge
from planner.verify import verify
from runtime.backends.base import Request
from runtime.errors import BackendError
from runtime.row_queue import GroupedRows
from runtime.stages import StageRow

ROWS = scan("id", "text", "stars", "tags")
ID, TEXT, STARS, TAGS = (column(ROWS, name) for name in ROWS.columns)
FEW = Compare((STARS, Const.of(2)), "<=")
WRITE = ToolRef("note", "", Effect.WRITE)


def of(value: Op, rows: Relation, name: str = "q") -> LogicalPlan:
    return LogicalPlan(((name, Result((value, rows))),))


def data(n: int = 12) -> dict[str, list[dict[str, Json]]]:
    return {
        "rows": [
            {"id": i, "text": f"text {i}", "stars": i % 4, "tags": [f"t{j}" for j in range(i % 3)]}
            for i in range(n)
        ]
    }


def go(plan: LogicalPlan, rows: Any = None, **options: Any) -> Ran:
    verify(plan)
    return run_plan(plan, rows or data(), **options)


def values(plan: LogicalPlan, rows: Any = None, **options: Any) -> list[Json]:
    (answers,) = go(plan, rows, **options).answers.values()
    return answers


def fails_on(text: str) -> Any:
    def fail(request: Request) -> BackendError | None:
        if text in request.messages[-1].content:
            return BackendError("no", backend="simulated")
        return None

    return fail


# --- filters -------------------------------------------------------------------------------------


def test_a_filter_keeps_the_rows_for_which_its_predicate_is_true() -> None:
    ran = go(of(ID, Filter((ROWS, FEW))))
    assert ran.answers["q"] == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert [o.row_index for o in ran.outcomes["q"]] == ran.answers["q"]


def test_nothing_is_asked_for_rows_that_a_filter_drops() -> None:
    judged = Compare((Choose((TEXT,), "m", Prompt((Ref(0), "?")), options=("a", "b")),), "truthy")
    ran = go(of(ask("Sum up ", TEXT), Filter((Filter((ROWS, FEW)), judged))))
    assert len(ran.outcomes["q"]) == 9
    assert ran.requests == 18  # nine judgements, and all nine texts are kept


def test_unknown_is_not_true() -> None:
    some = Compare((STARS, Const.of(2)), "==", nulls=True)
    rows: Any = {"rows": [dict(data(1)["rows"][0], stars=s, id=s) for s in (2, None, 3)]}
    assert values(of(ID, Filter((ROWS, some))), rows) == [2]
    negated = Compare((some,), "not", nulls=True)
    assert values(of(ID, Filter((ROWS, negated))), rows) == [3]


def test_queries_with_different_filters_share_what_both_need() -> None:
    answer = ask("Sum up ", TEXT)
    many = Filter((ROWS, Compare((STARS, Const.of(2)), ">=")))
    plan = merge({"few": of(answer, Filter((ROWS, FEW))), "many": of(answer, many)})
    ran = go(plan)
    assert [len(ran.outcomes[name]) for name in ("few", "many")] == [9, 6]
    assert ran.requests == 12
    metrics = ran.metrics[answer.fingerprint]
    assert (metrics.requested, metrics.made) == (12, 12)


def test_a_predicate_that_fails_leaves_a_failed_row() -> None:
    judged = Choose((TEXT,), "m", Prompt(("Keep? ", Ref(0))), options=("a", "b"))
    kept = Filter((ROWS, Compare((judged,), "truthy")))
    ran = go(of(ID, kept), fail=fails_on("text 3"))
    assert ran.answers["q"] == [0, 1, 2, {"error": "BackendError"}, *range(4, 12)]


def test_filters_count_what_they_keep() -> None:
    kept = Filter((ROWS, FEW))
    counts = go(of(ID, kept)).metrics[kept.fingerprint]
    assert (counts.requested, counts.kept) == (12, 9)


def test_writes_of_dropped_rows_do_not_happen_and_hold_nobody_up() -> None:
    write = Tool((ID,), WRITE, ("id",), "w")
    ran = go(of(Ordered((ID,), after=(write,)), Filter((ROWS, FEW))))
    assert len(ran.writes) == 9
    assert ran.answers["q"] == [0, 1, 2, 4, 5, 6, 8, 9, 10]


# --- limits --------------------------------------------------------------------------------------


def test_a_limit_takes_the_first_rows_in_order() -> None:
    assert values(of(ID, Limit((ROWS,), 3))) == [0, 1, 2]
    assert values(of(ID, Limit((ROWS,), 3, 2))) == [2, 3, 4]
    assert values(of(ID, Limit((Filter((ROWS, FEW)),), 3, 2))) == [2, 4, 5]
    assert values(of(ID, Filter((Limit((ROWS,), 4), FEW)))) == [0, 1, 2]
    assert values(of(ID, Limit((ROWS,), 0))) == []
    assert values(of(ID, Limit((ROWS,), 99))) == list(range(12))


def test_a_limit_ignores_the_planned_order() -> None:
    order = {"rows": tuple(reversed(range(12)))}
    assert values(of(ID, Limit((ROWS,), 3)), row_order=order) == [0, 1, 2]


def test_a_limit_over_a_model_predicate_asks_few_rows_more_than_it_needs() -> None:
    judged = Choose((TEXT,), "m", Prompt(("Keep? ", Ref(0))), options=("yes", "no"))
    kept = Filter((ROWS, Compare((judged, Const.of("yes")), "==")))
    rows = data(400)
    everything = go(of(ID, kept), rows)
    first = everything.answers["q"][:10]
    assert all(isinstance(number, int) for number in first)
    needed = int(str(first[-1])) + 1
    ran = go(of(ID, Limit((kept,), 10)), rows, slots=64, window=256)
    assert ran.answers["q"] == first
    assert needed <= ran.requests <= needed + 10
    assert everything.requests == 400


def test_failed_rows_do_not_count() -> None:
    judged = Choose((TEXT,), "m", Prompt(("Keep? ", Ref(0))), options=("a", "b"))
    kept = Limit((Filter((ROWS, Compare((judged,), "truthy"))),), 3)
    answers = values(of(ID, kept), fail=fails_on("text 1"))
    assert answers[:4] == [0, {"error": "BackendError"}, 2, 3]


def test_a_limit_behind_other_relations_stops_the_rows_before_them() -> None:
    listed = Map((TAGS,))
    tags = Flatten((ROWS, listed, ask("Sum up ", TEXT)), ("tag", "sum"))
    ran = go(of(Column((tags,), "tag"), Limit((tags,), 3)), data(300), slots=4)
    assert ran.answers["q"] == ["t0", "t0", "t1"]
    assert ran.requests < 10


# --- made rows -----------------------------------------------------------------------------------


def test_flatten_makes_a_row_of_each_element() -> None:
    tags = Flatten((ROWS, TAGS, ID), ("tag", "id", "at"), "at")
    row = Project(tuple(Column((tags,), name) for name in tags.columns), tags.columns)
    assert values(of(row, tags), data(3)) == [
        {"tag": "t0", "id": 1, "at": 0},
        {"tag": "t0", "id": 2, "at": 0},
        {"tag": "t1", "id": 2, "at": 1},
    ]


def test_flatten_of_null_is_nothing_and_of_a_text_is_an_error() -> None:
    rows: Any = {"rows": [dict(data(1)["rows"][0], tags=t) for t in (None, "abc", ["x"])]}
    tags = Flatten((ROWS, TAGS), ("tag",))
    assert values(of(Column((tags,), "tag"), tags), rows) == [{"error": "ValueTypeError"}, "x"]


def test_groups_come_in_order_of_first_appearance_with_lists_in_row_order() -> None:
    grouped = Group((ROWS, STARS, ID), ("stars", "ids"), 1)
    row = Project((Column((grouped,), "stars"), Column((grouped,), "ids")), ("s", "ids"))
    assert values(of(row, grouped), data(6)) == [
        {"s": 0, "ids": [0, 4]},
        {"s": 1, "ids": [1, 5]},
        {"s": 2, "ids": [2]},
        {"s": 3, "ids": [3]},
    ]


def test_no_rows_are_one_group_without_keys_and_no_group_with_keys() -> None:
    nothing = Filter((ROWS, Const.of(False)))
    whole = Group((nothing, ID), ("ids",), 0)
    by_id = Group((nothing, ID), ("id",), 1)
    assert values(of(Column((whole,), "ids"), whole)) == [[]]
    assert values(of(Column((by_id,), "id"), by_id)) == []


def test_a_failed_row_fails_its_group_and_no_other() -> None:
    grouped = Group((ROWS, STARS, ask("Sum up ", TEXT)), ("stars", "sums"), 1)
    answers = values(of(Column((grouped,), "stars"), grouped), fail=fails_on("text 5"))
    assert answers == [0, {"error": "BackendError"}, 2, 3]


def test_sort_is_stable_with_nulls_last_both_ways() -> None:
    rows: Any = {
        "rows": [dict(data(1)["rows"][0], id=i, stars=s) for i, s in enumerate([2, None, 1, 2, 3])]
    }
    up = Sort((ROWS, ID, STARS), ("id", "stars"), ("stars",))
    down = Sort((ROWS, ID, STARS), ("id", "stars"), ("-stars",))
    assert values(of(Column((up,), "id"), up), rows) == [2, 0, 3, 4, 1]
    assert values(of(Column((down,), "id"), down), rows) == [4, 0, 3, 2, 1]


def test_the_best_rows_by_a_model_are_a_limit_over_a_sort() -> None:
    score = Choose((TEXT,), "m", Prompt(("How urgent? ", Ref(0))), options=tuple("12345"))
    ordered = Sort((ROWS, ID, score), ("id", "score"), ("-score", "id"))
    scores = values(of(score, ROWS))
    best = sorted(range(12), key=lambda i: (-int(str(scores[i])), i))[:3]
    assert values(of(Column((ordered,), "id"), Limit((ordered,), 3))) == best


def test_pairs_of_equal_values() -> None:
    others = scan("id", "stars", source="others")
    both = Pairs(
        (Filter((ROWS, FEW)), others, ID, STARS, column(others, "id"), column(others, "stars")),
        ("id", "stars", "other", "their stars"),
        2,
        (("stars", "their stars"),),
    )
    pair = Format((Column((both,), "id"), Column((both,), "other")), Prompt((Ref(0), "-", Ref(1))))
    rows = {
        **data(6),
        "others": [
            {"id": "a", "stars": 1.0},
            {"id": "b", "stars": None},
            {"id": "c", "stars": 1},
            {"id": "d", "stars": 2},
        ],
    }
    assert values(of(pair, both), rows) == ["1-a", "1-c", "2-d", "5-a", "5-c"]


def test_pairs_of_rows_with_themselves() -> None:
    both = Pairs((ROWS, ROWS, ID, ID), ("a", "b"), 1)
    smaller = Filter((both, Compare((Column((both,), "a"), Column((both,), "b")), "<")))
    pair = Project((Column((both,), "a"), Column((both,), "b")), ("a", "b"))
    assert values(of(pair, smaller), data(3)) == [
        {"a": 0, "b": 1}, {"a": 0, "b": 2}, {"a": 1, "b": 2},
    ]  # fmt: skip


def test_a_query_reads_tables_and_makes_rows() -> None:
    first = SqlRows((), text="SELECT body FROM t", columns=("body",))
    body = Column((first,), "body")
    answers = Collect((first, body, ask("Sum up ", body)), ("body", "sum"))
    final = SqlRows((answers,), text="SELECT x FROM a", columns=("x",), tables=("a",))
    ran = go(merge({"one": of(Column((final,), "x"), final), "two": of(body, first)}), {"rows": []})
    assert len(ran.answers["one"]) == 4
    assert len(ran.answers["two"]) == 2
    assert ran.tool_calls == 2  # the harvest, which both queries use, and the final query
    assert ran.requests == 2


def test_a_query_over_failed_rows_fails_unless_they_are_recovered() -> None:
    sums = ask("Sum up ", TEXT)

    def final(value: Op) -> LogicalPlan:
        table = Collect((ROWS, ID, value), ("id", "sum"))
        made = SqlRows((table,), text="SELECT x FROM a", columns=("x",), tables=("a",))
        return of(Column((made,), "x"), made)

    failed = go(final(sums), fail=fails_on("text 5"))
    (outcome,) = failed.outcomes["q"]
    assert outcome.error is not None
    assert "1 row of table 'a' could not be computed" in outcome.error.message
    recovered = go(final(Recover((sums,))), fail=fails_on("text 5"))
    assert len(recovered.answers["q"]) == 24
    (error,) = recovered.executor.recovered
    assert (error.row_index, error.error.type) == (5, "BackendError")


def test_a_recovered_failure_is_null_or_told() -> None:
    sums = ask("Sum up ", TEXT)
    told = Recover((sums,), detail=True)
    plan = merge({"null": of(Recover((sums,)), ROWS), "told": of(told, ROWS)})
    answers = go(plan, data(2), fail=fails_on("text 1")).answers
    assert isinstance(answers["null"][0], str)
    assert answers["null"][1] is None
    assert answers["told"][0] == {"value": answers["null"][0], "error": None}
    assert answers["told"][1] == {"value": None, "error": "no"}


def test_rows_of_different_stages_are_independent_of_the_window() -> None:
    tags = Flatten((Filter((ROWS, FEW)), TAGS, ask("Sum ", TEXT)), ("tag", "sum"))
    tag = Column((tags,), "tag")
    grouped = Group((tags, tag, ask("Of ", Column((tags,), "sum"))), ("tag", "all"), 1)
    plan = of(Field((Column((grouped,), "all"),), 0), grouped)
    wide = values(plan, slots=64, window=500)
    narrow = values(plan, slots=1, window=1)
    assert wide == narrow
    assert len(wide) == 2


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_many_rows(count: int) -> None:
    tags = Flatten((ROWS, TAGS), ("tag",))
    grouped = Group((tags, Column((tags,), "tag")), ("tag",), 1)
    found = values(of(Column((grouped,), "tag"), grouped), data(count))
    assert found == ["t0", "t1"][: min(2, count and 2)] if count != 1 else found == []


# --- the order in which made rows start ----------------------------------------------------------


def asked_in_order(plan: LogicalPlan, rows: dict[str, list[dict[str, Json]]]) -> list[str]:
    """The prompts of a run as the engine sees them, one slot, and the results checked."""
    seen: list[str] = []

    def look(request: Request) -> BackendError | None:
        seen.append(request.messages[-1].content)
        return None

    one_by_one = run_plan(plan, rows, fail=look, slots=1, window=1)
    many = run_plan(plan, rows)
    assert many.answers == one_by_one.answers
    return seen


def rounds(n: int = 6) -> dict[str, list[dict[str, Json]]]:
    """Rows whose texts come around again and again: a, b, c, a, b, c."""
    return {
        "rows": [{"id": i, "text": "abc"[i % 3], "stars": i, "tags": ["x", "y"]} for i in range(n)]
    }


def test_rows_of_a_sort_start_together_where_their_prompts_begin_alike() -> None:
    by = Sort((ROWS, ID, TEXT), columns=("id", "text"), by=("-id",))
    answer = ask("Read ", Column((by,), "text"), " number ", Column((by,), "id"))
    seen = asked_in_order(of(Project((Column((by,), "id"), answer), ("id", "a")), by), rounds())
    assert [text.split()[1] for text in seen] == ["c", "c", "b", "b", "a", "a"]


def test_results_keep_the_order_of_the_relation() -> None:
    by = Sort((ROWS, ID, TEXT), columns=("id", "text"), by=("-id",))
    answer = ask("Read ", Column((by,), "text"), " number ", Column((by,), "id"))
    ran = run_plan(of(Project((Column((by,), "id"), answer), ("id", "a")), by), rounds())
    assert [value["id"] for value in ran.answers["q"]] == [5, 4, 3, 2, 1, 0]  # type: ignore[index,call-overload]


def test_flattened_rows_start_by_element_when_prompts_begin_with_it() -> None:
    flat = Flatten((ROWS, TAGS, ID), columns=("tag", "id"))
    everything = Sort((flat, Column((flat,), "tag"), Column((flat,), "id")), ("tag", "id"), ())
    answer = ask("Tag ", Column((everything,), "tag"), " of ", Column((everything,), "id"))
    seen = asked_in_order(of(answer, everything), rounds(4))
    assert [text.split()[1] for text in seen] == ["x"] * 4 + ["y"] * 4


def test_rows_of_a_query_and_failed_rows_start_in_groups() -> None:
    flat = Flatten((ROWS, TAGS), columns=("tag",))
    by = Sort((flat, Column((flat,), "tag")), columns=("tag",), by=())
    answer = ask("Tag ", Column((by,), "tag"))
    rows = rounds(4)
    rows["rows"][1]["tags"] = "no list"
    assert len(run_plan(of(answer, by), rows).answers["q"]) == 7


def test_limits_and_writes_keep_the_order_of_made_rows() -> None:
    by = Sort((ROWS, ID, TEXT), columns=("id", "text"), by=("id",))
    answer = ask("Read ", Column((by,), "text"), " number ", Column((by,), "id"))
    assert [t.split()[1] for t in asked_in_order(of(answer, Limit((by,), 4)), rounds())] == [
        "a", "b", "c", "a",
    ]  # fmt: skip
    note = Tool((answer,), WRITE, ("text",), "q/1")
    assert [t.split()[1] for t in asked_in_order(of(note, by), rounds())][:4] == list("abca")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), max_size=30), st.randoms())
def test_every_waiting_row_starts_once_and_groups_stay_together(
    rows: list[tuple[str, int]], random: Random
) -> None:
    queue: GroupedRows[StageRow] = GroupedRows([("a",), ("b",)])
    for index, (a, b) in enumerate(rows):
        queue.append(StageRow(index, str(index), {"a": a, "b": b}))
    started = [queue.popleft() for _ in rows]
    assert sorted(row.index for row in started) == list(range(len(rows)))
    groups = [rows[row.index] for row in started]
    assert len(list(groupby(groups))) == len(set(rows))
    late: list[int] = []
    for index in range(len(rows)):
        queue.append(StageRow(index, "", {"a": rows[index][0], "b": rows[index][1]}))
        if random.random() < 0.5:
            late.append(queue.popleft().index)
    late += [queue.popleft().index for _ in range(len(queue))]
    assert sorted(late) == list(range(len(rows)))
    assert not queue
