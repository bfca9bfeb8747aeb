"""Statistics: exact where the rows tell, labelled where they do not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import strategies
from hypothesis import given, settings
from sample_plans import LOOKUP, PUBLISH, ask, chain, column, headline, objection, query, scan

from planner.logical import (
    Agent,
    Body,
    Choose,
    Column,
    Const,
    Field,
    Format,
    Generate,
    Json,
    LogicalPlan,
    Loop,
    Map,
    Op,
    Param,
    Prompt,
    Reduce,
    Ref,
    Scan,
    Tool,
    When,
)
from planner.merge import merge
from planner.stats import OpStats, PlanStats, estimate


def words(text: str) -> int:
    """A token counter that tests can do in the head."""
    return len(text.split())


def stats_of(value: Op, rows: list[dict[str, Json]], of: Op | None = None) -> OpStats:
    """Statistics of `of` (of the value itself without it) in a query over `rows`."""
    source = scan(*rows[0]) if rows else scan()
    return estimate(query("q", value, source), {"rows": rows}, words).of(of or value)


def over(**columns: list[Json]) -> list[dict[str, Json]]:
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def test_equal_arguments_are_one_call() -> None:
    rows = over(question=["a", "b", "a", "a"])
    found = stats_of(ask("Say ", column(scan())), rows)
    assert (found.uses, found.distinct, found.calls, found.calls_alone) == (4, 2, 2, 4)
    assert found.calls_from == "exact"


def test_only_the_columns_that_reach_an_operator_tell_its_calls() -> None:
    rows = over(doc=["x", "x", "y", "y"], question=["1", "2", "3", "3"])
    source = scan("doc", "question")
    summary = ask("Sum ", column(source, "doc"))
    answer = ask(summary, " then ", column(source))
    assert stats_of(answer, rows, summary).calls == 2
    assert stats_of(answer, rows).calls == 3
    assert stats_of(answer, rows).calls_from == "assumed"  # two summaries may turn out equal


@pytest.mark.parametrize("values", [[1, "1"], [True, 1], [None, "null"], [[1], "[1]"], [1.0, 1]])
def test_values_that_only_read_alike_are_different(values: list[Json]) -> None:
    assert stats_of(ask(column(scan())), over(question=values)).distinct == 2


def test_missing_columns_count_as_null() -> None:
    rows: list[dict[str, Json]] = [{"question": None}, {}]
    assert stats_of(ask(column(scan())), rows).distinct == 1


def test_sampled_and_writing_calls_never_collapse_nor_what_reads_them() -> None:
    rows = over(question=["a"] * 5)
    drawn = ask("Draw ", column(scan()), temperature=1.0, call_id="d")
    after = ask("Read ", drawn)
    write = Tool((column(scan()),), tool=PUBLISH, params=("x",), call_id="w")
    assert stats_of(after, rows, drawn).calls == 5
    assert stats_of(after, rows).calls == 5
    assert stats_of(write, rows).calls == 5


def test_a_call_without_columns_is_made_once() -> None:
    found = stats_of(ask("Hello"), over(question=["a", "b", "c"]))
    assert (found.uses, found.calls) == (3, 1)


def test_no_rows_are_no_calls() -> None:
    found = estimate(headline(), {"rows": []}, words)
    assert (found.total.calls, found.total.input_tokens, found.rows) == (0, 0, {"rows": 0})


# --- tokens --------------------------------------------------------------------------------------


def test_input_tokens_are_exact_over_distinct_calls() -> None:
    rows = over(question=["one", "one", "two words", "three more words"])
    found = stats_of(ask("Say this: ", column(scan())), rows)
    assert found.input_tokens == 3 * 2 + (1 + 2 + 3)
    assert (found.input_from, found.output_tokens, found.output_from) == ("exact", 3 * 8, "assumed")


def test_answers_are_assumed_to_take_half_of_what_they_may() -> None:
    first = ask("Say ", column(scan()), max_tokens=40)
    found = stats_of(ask("Repeat: ", first), over(question=["a", "b"]))
    assert (found.input_tokens, found.input_from) == (2 * (1 + 20), "assumed")


def test_a_choice_answers_one_of_its_options() -> None:
    choice = Choose(
        (column(scan()),), "m", Prompt((Ref(0),)), options=("yes", "no it is not"), max_tokens=99
    )
    found = stats_of(choice, over(question=["a", "b"]))
    assert (found.output_tokens, found.output_from) == (2 * 2.5, "declared")


def test_a_member_of_a_column_is_counted_itself() -> None:
    docs: list[Json] = [{"title": "a b", "n": 1}, {"title": "a b", "n": 2}]
    title = Field((column(scan("doc"), "doc"),), "title")
    found = stats_of(ask("Read ", title), over(doc=docs))
    assert (found.calls, found.input_tokens, found.calls_from) == (1, 3, "exact")


def test_formats_add_up() -> None:
    source = scan("a", "b")
    both = Format((column(source, "a"), column(source, "b")), Prompt((Ref(0), " or ", Ref(1))))
    found = stats_of(ask("Pick: ", both), over(a=["x y", "x y"], b=["z", "w"]))
    assert found.input_tokens == 2 * (1 + 2 + 1 + 1)


def test_formats_of_formats_stay_small() -> None:
    value: Op = column(scan())
    for _ in range(60):
        value = Format((value, value), Prompt((Ref(0), Ref(1))))
    assert stats_of(ask(value), over(question=["w"])).input_tokens == 2.0**60


# --- prefixes ------------------------------------------------------------------------------------


def test_the_literal_prefix_is_reused_by_all_but_the_first_call() -> None:
    rows = over(question=["a", "b", "c", "d"])
    call = replace(ask("one two three ", column(scan())), system=Prompt(("system of four words",)))
    found = stats_of(call, rows)
    assert found.prefixes == ((7, 3),)
    assert found.cached_tokens() == 3 * 7
    assert found.cached_tokens(block_tokens=4) == 3 * 4
    assert found.cached_tokens(block_tokens=8) == 0


def test_rows_of_one_document_reuse_the_document() -> None:
    rows = over(doc=["long old text"] * 3 + ["other new text"] * 3, question=[*"abcdef"])
    source = scan("doc", "question")
    found = stats_of(ask("Read ", column(source, "doc"), " and say ", column(source)), rows)
    # Six calls over two documents: four find "Read <doc> and say", one more finds "Read" alone.
    assert found.prefixes == ((1, 1), (6, 4))


def test_what_differs_in_each_row_reuses_nothing_behind_it() -> None:
    drawn = ask("Draw ", temperature=1.0, call_id="d")
    found = stats_of(ask("See ", drawn, " now"), over(question=["a", "b", "c"]))
    assert found.prefixes == ((1, 2),)


def test_the_turns_of_an_agent_read_their_prompt_again() -> None:
    agent = Agent((), "m", Prompt(("one two three four",)), tools=(LOOKUP,), max_turns=6)
    found = stats_of(agent, over(question=["a", "b"]))
    assert found.calls == 3
    assert found.cached_tokens() == 2 * 4


# --- bodies --------------------------------------------------------------------------------------


def test_a_map_runs_its_body_for_each_element() -> None:
    rows = over(docs=[["a", "b", "c"], ["d"]])
    each = ask("Sum ", Param((), 0))
    found = stats_of(Map((column(scan("docs"), "docs"),), Body(1, each)), rows, each)
    assert (found.uses, found.calls, found.calls_from) == (4, 4, "exact")


def test_what_a_body_captures_is_asked_once() -> None:
    rows = over(docs=[["a", "b"], ["c", "d"]], question=["q", "q"])
    source = scan("docs", "question")
    same = ask("About ", Param((), 1))
    both = ask(same, " and ", Param((), 0))
    value = Map((column(source, "docs"), column(source)), Body(2, both))
    assert stats_of(value, rows, same).calls == 1
    assert stats_of(value, rows, both).calls == 4


def test_the_bounds_of_a_list_are_what_its_schema_declares() -> None:
    schema = json.dumps(
        {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 4}
    )
    listed = Generate((column(scan()),), "m", Prompt((Ref(0),)), schema_json=schema)
    each = ask("Sum ", Param((), 0))
    found = stats_of(Map((listed,), Body(1, each)), over(question=["a", "b"]), each)
    assert (found.uses, found.calls_from) == (2 * 3, "assumed")


def test_a_reduction_merges_groups_until_one_is_left() -> None:
    merged = ask("Merge ", Param((), 0))
    value = Reduce((Const.of([*range(20)]), column(scan())), Body(2, ask(merged, Param((), 1))), 4)
    # 20 elements: 5 groups, then 2, then 1.
    assert stats_of(value, over(question=["a", "b"]), merged).uses == 2 * (5 + 2 + 1)


def test_a_branch_is_assumed_to_take_half_of_the_rows() -> None:
    then = ask("Yes ", Param((), 0))
    value = When((column(scan()), column(scan())), Body(1, then), Body(1, Param((), 0)))
    found = stats_of(value, over(question=[*"abcd"]), then)
    assert (found.uses, found.calls, found.calls_from) == (2, 2, "assumed")


def test_a_loop_is_assumed_to_take_half_of_its_rounds() -> None:
    step = ask("Better ", Param((), 0))
    value = Loop((column(scan()),), Body(1, Const.of(True)), Body(1, step), 6)
    assert stats_of(value, over(question=["a", "b"]), step).calls == 2 * 3


def test_an_operator_of_two_bodies_is_counted_for_both() -> None:
    each = ask("Sum ", Param((), 0))
    maps = [Map((Const.of(items),), Body(1, each)) for items in (["a"], ["b", "c"])]
    value = Format(tuple(maps), Prompt((Ref(0), Ref(1))))
    assert stats_of(value, over(question=["a"]), each).calls == 3


# --- plans ---------------------------------------------------------------------------------------


def test_a_batch_counts_shared_rows_once_and_queries_alone() -> None:
    plan = merge({"headline": headline(), "objection": objection()})
    rows = {"rows": over(question=[f"q{i}" for i in range(30)])}
    total = estimate(plan, rows, words).total
    assert (total.calls, total.calls_alone) == (4 * 30, 6 * 30)


def test_two_inputs_add_up() -> None:
    def over_source(name: str) -> LogicalPlan:
        source = scan(source=name)
        return query("x", ask("Hi ", column(source)), source)

    plan = merge({"a": over_source("one"), "b": over_source("two")})
    rows = {"one": over(question=["x", "y"]), "two": over(question=["x"])}
    stats = estimate(plan, rows, words)
    assert stats.total.calls == 3
    assert stats.rows == {"one": 2, "two": 1}


def test_rows_of_equal_leading_values_go_together_in_order_of_appearance() -> None:
    rows = over(doc=["x", "y", "x", "z", "y"], question=[*"abcde"])
    source = scan("doc", "question")
    call = ask("Read ", column(source, "doc"), column(source))
    stats = estimate(query("q", call, source), {"rows": rows}, words)
    assert stats.prefix_order == {"rows": (0, 2, 1, 4, 3)}


def test_the_longest_leading_values_decide_the_order() -> None:
    rows = over(tag=["s", "t", "s", "t"], doc=["long text a"] * 2 + ["long text b"] * 2)
    source = scan("tag", "doc")
    by_tag = ask("T ", column(source, "tag"))
    by_doc = ask("D ", column(source, "doc"), by_tag)
    stats = estimate(query("q", by_doc, source), {"rows": rows}, words)
    assert stats.prefix_order["rows"] == (0, 1, 2, 3)


def test_rows_stay_as_they_are_when_grouping_gains_nothing() -> None:
    rows = over(question=["c", "a", "b"])
    stats = estimate(headline(), {"rows": rows}, words)
    assert stats.prefix_order == {"rows": (0, 1, 2)}


def test_50000_rows_and_a_chain_of_5000_calls_are_estimated() -> None:
    rows = {"rows": over(question=[f"question {i % 40_000}" for i in range(50_000)])}
    assert estimate(chain(10), rows, words).total.calls == 10 * 40_000
    assert estimate(chain(5000), {"rows": rows["rows"][:10]}, words).total.calls == 50_000


def test_statistics_survive_json() -> None:
    stats = estimate(headline(), {"rows": over(question=["a", "b"])}, words)
    read = PlanStats.from_json(json.loads(json.dumps(stats.to_json())))
    assert (read.ops, read.rows) == (stats.ops, stats.rows)


@settings(max_examples=80)
@given(strategies.plans())
def test_any_plan_has_sensible_numbers(plan: LogicalPlan) -> None:
    columns = {op.name for op in plan.walk() if isinstance(op, Column)}
    rows: list[dict[str, Json]] = [dict.fromkeys(columns, f"v{i % 2}") for i in range(4)]
    sources = {op.source for op in plan.walk() if isinstance(op, Scan)}
    stats = estimate(plan, dict.fromkeys(sources, rows), words)
    for op in plan.walk_all():
        found = stats.of(op)
        assert 0 <= found.distinct <= found.uses + 1e-9
        assert 0 <= found.cached_tokens() <= found.input_tokens + 1e-9
