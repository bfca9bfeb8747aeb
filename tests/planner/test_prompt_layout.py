"""The order of the parts of prompts: what changes places, and what a prefix cache answers then."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_plans import ask, column, query, scan

from costmodel.prefix_cache import PrefixCache, block_chain
from planner.context import PlanContext
from planner.logical import Json, LogicalPlan, ModelOp, Op, Project, Prompt, Ref
from planner.prompt_layout import predicted_hit_tokens
from planner.prompt_parts import paragraphs_of, prompt_of
from planner.rules.unsafe_hoist_stable_parts import unsafe_hoist_stable_parts

Row = dict[str, Json]


def model_ops(plan: LogicalPlan) -> list[ModelOp]:
    return [op for op in plan.walk() if isinstance(op, ModelOp)]


def rendered(op: ModelOp, row: Row) -> str:
    """The prompt of an operator over columns alone, on a row."""
    return "".join(
        s if isinstance(s, str) else str(row[getattr(op.inputs[s.index], "name", "")])
        for s in op.prompt.segments
    )


def answered(plan: LogicalPlan, rows: Sequence[Row]) -> int:
    """Characters of the rendered prompts that an unbounded cache answers; equal prompts are asked
    once. The order of the rows does not matter to it."""
    cache = PrefixCache(None, 8)
    found = 0
    for prompt in dict.fromkeys(rendered(op, row) for row in rows for op in model_ops(plan)):
        chain = block_chain(prompt, 8)
        found += 8 * cache.match(chain)
        cache.insert(chain)
    return found


# --- parts ---------------------------------------------------------------------------------------


def test_fields_are_lines_of_a_label_and_a_value() -> None:
    prompt = Prompt(("Book:\nTitle: ", Ref(0), "\nGenre: ", Ref(1), "\nRead it: ", Ref(2), " now."))
    (paragraph,) = paragraphs_of(prompt)
    assert paragraph.runs == ((1, 3),)
    turned = prompt_of([paragraph.arranged(lambda lines: range(len(lines))[::-1])])
    assert turned.segments[:4] == ("Book:\nGenre: ", Ref(1), "\nTitle: ", Ref(0))


@pytest.mark.parametrize(
    "segments",
    [
        ("a\n\nb\n\n", Ref(0), "c"),
        ("", Ref(0), "\n\n", Ref(1), "\n", Ref(2)),
        ("Title: ", Ref(0), "\nGenre: ", Ref(1)),
    ],
)
def test_parts_put_together_are_the_prompt(segments: tuple[str | Ref, ...]) -> None:
    assert prompt_of(paragraphs_of(Prompt(segments))) == Prompt(
        tuple(each for each in segments if each != "")
    )


# --- what it brings ------------------------------------------------------------------------------

COLUMNS = ("a", "b", "c", "d")
VALUES = st.sampled_from(
    ["x", "a longer value of many words, so that it counts", "y", "zz", "q" * 40]
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[LogicalPlan, list[Row]]:
    """One to three calls over a table: paragraphs of literals, values and fields in any order."""
    rows = draw(st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, VALUES)), max_size=20))
    table = scan(*COLUMNS)
    calls: list[Op] = []
    for number in range(draw(st.integers(1, 3))):
        segments: list[str | Op] = []
        for name in draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=4, unique=True)):
            segments += [draw(st.sampled_from(["\n\n", "\n", "\n\nIn short. "])), f"{name}: "]
            segments.append(column(table, name))
        segments.append(f"\n\nQuestion {number}: what is it about?")
        calls.append(ask(*segments))
    names = tuple(str(i) for i in range(len(calls)))
    return query("q", Project(tuple(calls), names), table), list(rows)


@settings(max_examples=40, deadline=None)
@given(batches())
def test_a_layout_is_never_worse_than_what_was_written(
    batch: tuple[LogicalPlan, list[Row]],
) -> None:
    plan, rows = batch
    context = PlanContext(rows={"rows": rows})
    after = unsafe_hoist_stable_parts(plan, context)
    assert predicted_hit_tokens(after, context) >= predicted_hit_tokens(plan, context)
    lines = [Counter("".join(map(repr, line)) for line in _lines(each)) for each in (plan, after)]
    assert lines[0] == lines[1]


def _lines(plan: LogicalPlan) -> list[Sequence[object]]:
    return [
        [op.inputs[s.index] if isinstance(s, Ref) else s for s in line]
        for op in model_ops(plan)
        for paragraph in paragraphs_of(op.prompt)
        for line in paragraph.lines
    ]


def joined(count: int = 400) -> list[Row]:
    """Rows of three tables joined: a review, its product with a description, its shop."""
    drawn = random.Random(7)
    products = [f"product {i} " + "made of wood and wool " * 6 for i in range(20)]
    shops = [f"shop {i} in the old town" for i in range(5)]
    return [
        {
            "a": f"review {i}: {drawn.randrange(10**6)} of {drawn.randrange(10**6)}",
            "b": f"p{(product := drawn.randrange(20))}",
            "c": products[product],
            "d": shops[product % 5],
        }
        for i in range(count)
    ]


def flat(count: int = 400) -> list[Row]:
    """A flat table of four columns with few values each."""
    drawn = random.Random(8)
    return [
        {
            "a": f"size {drawn.randrange(40)}",
            "b": f"colour {drawn.randrange(3)} " * 5,
            "c": f"kind {drawn.randrange(9)} " * 3,
            "d": drawn.choice(["yes", "no"]),
        }
        for _ in range(count)
    ]


def fields(*names: str) -> LogicalPlan:
    table = scan(*COLUMNS)
    segments: list[str | Op] = ["Read the row and say in one sentence what it is about."]
    for number, name in enumerate(names):
        segments += ["\n" if number else "\n\n", f"{name}: ", column(table, name)]
    return query("q", ask(*segments), table)


@pytest.mark.parametrize(
    ("rows", "written", "found"),
    [(joined(), 25_536, 92_664), (flat(), 38_824, 51_632)],
    ids=["joined", "flat"],
)
def test_the_order_of_fields_is_worth_most_of_a_prompt(
    rows: list[Row], written: int, found: int
) -> None:
    """Counted on the rendered prompts, not by the prediction that chose."""
    plan = fields(*COLUMNS)
    context = PlanContext(rows={"rows": rows})
    after = unsafe_hoist_stable_parts(plan, context)
    assert (answered(plan, rows), answered(after, rows)) == (written, found)
    assert predicted_hit_tokens(after, context) > predicted_hit_tokens(plan, context)


def test_a_bounded_cache_decides_with_the_order_of_the_rows() -> None:
    rows = joined(200)
    plan = fields(*COLUMNS)
    small = PlanContext(rows={"rows": rows}, cache_tokens=100)
    after = unsafe_hoist_stable_parts(plan, small)
    assert predicted_hit_tokens(after, small) > 2 * predicted_hit_tokens(plan, small)


def test_more_rows_than_a_trial_looks_at_are_sampled_evenly() -> None:
    rows = joined(3_000)
    after = unsafe_hoist_stable_parts(fields(*COLUMNS), PlanContext(rows={"rows": rows}))
    assert answered(after, rows) > 2 * answered(fields(*COLUMNS), rows)
