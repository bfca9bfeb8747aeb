"""Relations: rows that plans make, keep, group and order; their rules, estimates and EXPLAIN."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from sample_plans import ask, column, scan

from costmodel.tokens import estimate_tokens
from costmodel.usage import OpMetrics, Usage
from planner.context import PlanContext
from planner.errors import PlanError
from planner.explain import FORMATS, explain, explain_physical
from planner.listing import Listing
from planner.logical import (
    Choose,
    Collect,
    Column,
    Compare,
    Const,
    Field,
    Filter,
    Flatten,
    Generate,
    Group,
    Json,
    Limit,
    LogicalPlan,
    ModelOp,
    Op,
    Pairs,
    Project,
    Prompt,
    Recover,
    Reduce,
    Ref,
    Relation,
    Result,
    Sort,
    SqlRows,
)
from planner.merge import merge
from planner.physical import Worker, place
from planner.relations import ALL_ROWS
from planner.rewrite import rewrite
from planner.stats import estimate
from planner.verify import verify

Golden = Callable[[str, str], None]

ROWS = scan("id", "text", "stars")
TEXT, STARS = column(ROWS, "text"), column(ROWS, "stars")
FEW = Compare((STARS, Const.of(2)), "<=")


def asks(question: str, value: Op) -> Op:
    answer = Choose((value,), "m", Prompt((question, Ref(0))), options=("yes", "no"))
    return Compare((answer, Const.of("yes")), "==")


def of(value: Op, rows: Relation, name: str = "q") -> LogicalPlan:
    return LogicalPlan(((name, Result((value, rows))),))


def reviews(count: int = 40) -> dict[str, list[dict[str, Json]]]:
    return {
        "rows": [
            {"id": i, "text": f"Review number {i % 20} of many", "stars": i % 5 + 1}
            for i in range(count)
        ]
    }


def harvested() -> LogicalPlan:
    """A SQL statement as its front end splits it: harvest, answer, finish."""
    distinct = SqlRows((), "shop.db", "SELECT DISTINCT body FROM reviews", ("body",))
    answer = Recover((ask("Sum up: ", Column((distinct,), "body"), label="sum"),))
    answers = Collect(
        (distinct, Column((distinct,), "body"), answer), ("body", "sum"), ("VARCHAR", "VARCHAR")
    )
    final = SqlRows(
        (answers,),
        "shop.db",
        "SELECT r.id, a.sum FROM reviews r LEFT JOIN answers a USING (body)",
        ("id", "sum"),
        ("answers",),
    )
    row = Project((Column((final,), "id"), Column((final,), "sum")), ("id", "sum"))
    return of(row, final, "summaries")


def everything_relational() -> LogicalPlan:
    """Every relation, one made of the other."""
    listed = Generate((TEXT,), "m", Prompt(("List the points of ", Ref(0))), schema_json=LIST)
    kept = Limit((Filter((Filter((ROWS, FEW)), asks("Angry? ", TEXT))),), 10, 1)
    points = Flatten((kept, listed, column(ROWS, "id")), ("point", "id", "at"), "at")
    point = Column((points,), "point")
    grouped = Group((points, Column((points,), "id"), point), ("id", "points"), 1)
    merged = Reduce((Column((grouped,), "points"),))
    ordered = Sort(
        (grouped, Column((grouped,), "id"), merged), ("id", "merged"), ("-id",), label="latest"
    )
    ids = Collect((ROWS, column(ROWS, "id")), ("id",), ("BIGINT",))
    both = Pairs(
        (
            ordered,
            ids,
            Column((ordered,), "id"),
            Column((ordered,), "merged"),
            Column((ids,), "id"),
        ),
        ("left", "merged", "right"),
        2,
        (("left", "right"),),
    )
    table = SqlRows(
        (both, Const.of(5)),
        text="SELECT left, merged FROM both WHERE left < $most",
        columns=("left", "merged"),
        tables=("both",),
        params=("most",),
    )
    return of(Column((table,), "merged"), table)


LIST = '{"type":"array","items":{"type":"string"},"minItems":1,"maxItems":3}'


def test_a_plan_of_every_relation(golden: Golden) -> None:
    plan = everything_relational()
    verify(plan)
    stats = estimate(plan, reviews(), estimate_tokens)
    golden("explain/relations.txt", explain(plan, stats=stats))


STAGES = ("bound", "merged", "optimized", "physical", "analyze")
KINDS = ("Scan", "SqlRows", "Filter", "Limit", "Collect", "Flatten", "Pairs", "Group", "Sort")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_of_a_plan_of_every_relation_prints_in_every_format(
    stage: str, form: str
) -> None:
    merged = merge({"q": everything_relational(), "other": harvested()})
    context = PlanContext(rows=reviews())
    rewritten = rewrite(merged, context)
    stats = context.stats(rewritten.plan, orders=True)
    worker = Worker("simulated:m", "simulated", "m", 8, prefix_cache=True)
    physical = place(rewritten.plan, stats, {"m": worker})
    used = Usage(input_tokens=400, output_tokens=20, cached_tokens=100)
    metrics = {
        op.fingerprint: OpMetrics(requested=30, made=20, shared=10, usage=used)
        for op in rewritten.plan.walk_all()
        if isinstance(op, ModelOp)
    }
    match stage:
        case "bound":
            plan, text = everything_relational(), explain(everything_relational(), format=form)
        case "merged":
            plan = merged
            text = explain(merged, stats=context.stats(merged), format=form)
        case "optimized":
            plan = rewritten.plan
            text = explain(plan, stats=stats, format=form, rewritten=rewritten)
        case "physical":
            plan = rewritten.plan
            text = explain_physical(physical, stats, format=form, rewritten=rewritten)
        case _:
            plan = rewritten.plan
            text = explain_physical(physical, stats, metrics, format=form, rewritten=rewritten)
    for kind in {op.kind for op in plan.walk()} & set(KINDS):
        assert kind in text
    if form == "json":
        assert len(json.loads(text)["operators"]) == len(list(Listing.of(plan).walk()))
    if form == "text":
        for footer in FOOTERS[stage]:
            assert re.search(footer, text), footer


FOOTERS = {
    "bound": [r"q = #\d+ for each row of #\d+"],
    "merged": [r"merged: \d+ operators of 2 queries are \d+ \(\d+ shared\)", "~ assumed"],
    "optimized": [r"rewrites: push_filters_down|rewrites: [a-z_]+\(", r"off with --no-<name>"],
    "physical": [
        r"rows: rows in (input|prefix) order, #\d+ grouped by body, \d+ rows in flight",
        r"worker simulated:m: .*prefix cache",
        "no mark: counted on the rows",
    ],
    "analyze": [
        r"calls .*requested \d+, made \d+: \d+ saved by sharing equal calls, 0 replayed",
        r"prefix reuse: \d+ of [\d,]+ input tokens \(simulated\)",
    ],
}


def test_a_limit_that_only_skips_says_so() -> None:
    plan = of(TEXT, Limit((ROWS,), ALL_ROWS, 2))
    assert "Limit(all, offset=2)" in explain(plan)


def test_a_statement_of_sql(golden: Golden) -> None:
    plan = harvested()
    verify(plan)
    golden("explain/harvest.txt", explain(plan, stats=estimate(plan, {}, estimate_tokens)))


# --- what is legal -------------------------------------------------------------------------------


def test_a_column_is_taken_from_the_base() -> None:
    kept = Filter((ROWS, FEW))
    assert kept.base == ROWS
    assert kept.column_names == ("id", "text", "stars")
    with pytest.raises(PlanError, match="take it from its `base`"):
        Column((kept,), "text")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Filter((ROWS,)), "a relation and a predicate"),
        (lambda: Filter((TEXT, FEW)), "takes a relation first"),
        (lambda: Limit((ROWS,), -1), "count -1"),
        (lambda: Limit((ROWS,), 1, -2), "offset -2"),
        (lambda: Collect((ROWS, TEXT), ("a", "b")), "2 columns and 1 values"),
        (lambda: Collect((ROWS, TEXT, STARS), ("a", "a")), "column twice"),
        (lambda: Collect((ROWS, TEXT), ("a",), ("VARCHAR", "INT")), "1 columns and 2 types"),
        (lambda: Flatten((ROWS, TEXT), ("at", "a"), "at"), "must be its last column"),
        (lambda: Pairs((ROWS, TEXT), ()), "takes 2 relations first"),
        (lambda: Pairs((ROWS, ROWS, TEXT), ("a",), 0, (("a", "a"),)), "no column of its left"),
        (lambda: Group((ROWS, TEXT), ("a",), 2), "n_keys 2"),
        (lambda: Sort((ROWS, TEXT), ("a",), ("b",)), "sorts by 'b'"),
        (lambda: SqlRows((TEXT,), text="SELECT 1", tables=("t",)), "takes a relation first"),
        (lambda: SqlRows((), text="SELECT $a", params=("a",)), "1 parameters and 0 inputs"),
        (lambda: Column((SqlRows((), text="SELECT 1 a", columns=("a",)),), "b"), "has: a"),
        (lambda: Result((TEXT, TEXT)), "the relation whose rows"),
    ],
)
def test_what_cannot_mean_anything_is_refused(make: Callable[[], Op], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make()


OTHER = scan("id", source="other")


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (column(OTHER, "id"), ROWS),
        (TEXT, Collect((ROWS, TEXT), ("a",))),
        (TEXT, Filter((ROWS, Compare((column(OTHER, "id"),), "truthy")))),
        (Const.of(1), Pairs((ROWS, OTHER, TEXT, STARS), ("a", "b"), 1)),
        (Const.of(1), SqlRows((TEXT,), text="SELECT $a", params=("a",))),
        (Field((ROWS,), "a"), ROWS),
        (ROWS, ROWS),
    ],
)
def test_values_are_of_the_rows_that_they_are_read_for(value: Op, rows: Relation) -> None:
    with pytest.raises(Exception, match=r"the rows of|reads a relation as a value"):
        verify(of(value, rows))


# --- merging and estimates -----------------------------------------------------------------------


def test_queries_with_different_filters_share_their_calls() -> None:
    summary = ask("Sum up: ", TEXT)
    angry, short = Filter((ROWS, FEW)), Filter((ROWS, asks("Short? ", TEXT)))
    plan = merge({"a": of(summary, angry), "b": of(summary, short), "c": of(summary, ROWS)})
    verify(plan)
    assert sum(isinstance(op, Generate) for op in plan.walk()) == 1
    stats = estimate(plan, reviews(), estimate_tokens)
    # "c" needs every row; "a" and "b" alone would need half of them each.
    assert stats.of(summary).uses == 40
    assert stats.of(summary).calls == 20
    assert stats.of(summary).calls_alone == 80


def test_what_a_filter_drops_is_not_counted() -> None:
    urgent = asks("Urgent? ", TEXT)
    kept = Filter((Filter((ROWS, FEW)), urgent))
    answer = ask("Answer ", TEXT)
    plan = of(answer, kept)
    stats = estimate(plan, reviews(), estimate_tokens)
    assert stats.of(FEW).uses == 40
    assert stats.of(urgent).uses == 20
    assert stats.of(answer).uses == 10
    assert stats.relations[kept.fingerprint].rows == 10
    assert stats.relations[kept.fingerprint].rows_from == "assumed"


def test_parts_of_the_same_rows_need_their_union() -> None:
    inner = Filter((ROWS, FEW))
    outer = Limit((inner,), 3)
    other = Filter((ROWS, Compare((STARS, Const.of(5)), "==")))
    answer = ask("Answer ", TEXT)
    nested = merge({"a": of(answer, inner), "b": of(answer, outer)})
    apart = merge({"a": of(answer, inner), "b": of(answer, other)})
    assert estimate(nested, reviews(), estimate_tokens).of(answer).uses == 20
    assert estimate(apart, reviews(), estimate_tokens).of(answer).uses == 30


def test_made_rows_are_counted() -> None:
    listed = Generate((TEXT,), "m", Prompt(("List ", Ref(0))), schema_json=LIST)
    points = Flatten((ROWS, listed, STARS), ("point", "stars"))
    point, stars = Column((points,), "point"), Column((points,), "stars")
    by_stars = Group((points, stars, point), ("stars", "points"), 1)
    answer = ask("About ", point)
    stats = estimate(
        merge({"points": of(answer, points), "stars": of(Const.of(1), by_stars)}),
        reviews(),
        estimate_tokens,
    )
    assert stats.relations[points.fingerprint].rows == 80
    # 20 different texts of 2 points each: rows with equal texts share their points.
    assert stats.of(answer).calls == 40
    assert stats.relations[by_stars.fingerprint].rows == 5
    nothing = Group((ROWS, TEXT), ("texts",), 0)
    whole = estimate(of(Const.of(1), nothing), reviews(), estimate_tokens)
    assert whole.relations[nothing.fingerprint].rows == 1
